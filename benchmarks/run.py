"""Exact ablation side by side with other implementations: `make bench` writes benchmarks/README.md and cost.png.

Everything runs in one process, one after the other, on whatever else the machine is doing: compare ratios, not seconds.
Networks are He-initialized and images Gaussian noise, so that half of all units are active on an image; a trained
network's units are silent more often, and it is measured faster.
"""

import argparse
import platform
import sys
import time
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import rivals, train
from repro import ablation, models, noise, units, values
from repro.ablation import sequences
from repro.evaluation import evaluating
from repro.plots.style import OKABE_ITO, house
from tests import plain

FOLDER = Path(__file__).parent
SAMPLE = 20  # units or points of a rival that are timed
LAST = ("relu9", "relu10", "relu11")  # of the ConvNet
BLOCKS = ("layer4.0.relu_2", "layer4.1.relu_2", "layer4.2.relu_2")  # of the ResNet


def seconds(function, repeats=3, enough=15):
    """The shortest of some runs, in seconds, and what the function returned; a long run is not repeated."""
    times = []
    while len(times) < repeats and sum(times) < enough:
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def matrix_rate(size=2048):
    """Multiply-adds a second of a float32 matrix product on all cores."""
    a = torch.randn(size, size)
    return size**3 / seconds(lambda: a @ a, 10)[0]


def multiply_adds(function, n):
    """Multiply-adds that a function of a number of images makes for n of them, counted by torch on a few and scaled; on
    one thread, because the counter sees no other."""
    few = max(2, n // 20)

    def addmm(a, b, c, **_):
        return 2 * b[0] * b[1] * c[1]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm}) as counter:
            function(few)
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops() / 2 * n / few


def network(kind, n):
    """A model and n images with labels."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if kind == "convnet":
        model, shape = models.convnet(), (3, 32, 32)
    elif kind == "resnet":
        model, shape = models.resnet50(10), (3, 96, 96)
    else:
        model, shape = models.mlp(784, kind, 10), (1, 28, 28)
    models.he_normal(model)
    x = torch.randn(n, *shape, generator=generator)
    return model.eval(), x, torch.randint(10, (n,), generator=generator)


def sampled_units(layers, number):
    """At least `number` units of all layers together, the same number of each, so that their mean cost is that of all
    units where layers have as many: {layer: [unit, …]}."""
    rng = np.random.default_rng(0)
    each = -(-number // len(layers))
    return {name: sorted(rng.permutation(n)[: min(each, n)].tolist()) for name, n in layers.items()}


def single(title, kind, n, layers=None, must=None, captum=True):
    """Rows of the table: single-unit ablation by us and by the rivals."""
    model, x, y = network(kind, n)
    found = units.Cut(model, x[:2], layers).layers
    sample = sampled_units(found, SAMPLE)
    names = None if layers is None else list(layers)
    run = lambda n: ablation.single_unit(model, x[:n], y[:n], names)  # noqa: E731
    ours, table = seconds(lambda: run(n))
    rows = [dict(work=title, method="repro", seconds=ours, floor=multiply_adds(run, n), must=must)]
    deltas = table.set_index(["layer", "unit"]).delta_loss
    whole = {name: 0.0 for name in ("hook loop", "Captum", "one image at a time")}
    apart = dict(whole)
    intact = plain.loss_and_accuracy(plain.logits(model, x), y)[0]
    with torch.no_grad():
        for layer, chosen in sample.items():
            constant = {layer: torch.zeros(found[layer])}
            start = time.perf_counter()
            for unit in chosen:
                mask = plain.mask({layer: found[layer]}, [(layer, unit)])
                loss = plain.loss_and_accuracy(plain.logits(model, x, plain.clamped(mask, constant)), y)[0]
                difference = abs(loss - intact - deltas[layer, unit]) / max(1, loss)
                apart["hook loop"] = max(apart["hook loop"], difference)
            whole["hook loop"] += (time.perf_counter() - start) / len(chosen) * found[layer]
            if captum:
                change, taken = rivals.captum(model, x, y, layer, found[layer], chosen)
                whole["Captum"] += taken
                difference = np.abs(change.numpy() - deltas[layer][chosen].to_numpy()).max() / max(1, intact)
                apart["Captum"] = max(apart["Captum"], difference)
                taken = rivals.one_image_at_a_time(model, x, y, layer, found[layer], chosen)
                whole["one image at a time"] += taken
    timed = f"{sum(map(len, sample.values()))} of {sum(found.values())} units"
    for method, taken in whole.items():
        if taken:
            also = ", 100 images" if method.startswith("one") else ""
            difference = np.nan if also else apart[method]
            rows.append(dict(work=title, method=method, seconds=taken, timed=timed + also, difference=difference))
    return rows


def cumulative(title, kind, n, layers=None, orders=10, steps=20, must=None):
    """The same of cumulative curves; the rival is timed on some of their points, spread over all."""
    model, x, y = network(kind, n)
    cut = units.Cut(model, x[:2], layers)
    names = None if layers is None else list(layers)
    run = lambda n: ablation.cumulative(model, x[:n], y[:n], names, orders=orders, steps=steps)  # noqa: E731
    ours, table = seconds(lambda: run(n))
    chosen = sequences(cut.units, orders, 0)
    picked = np.unique(np.linspace(0, len(table) - 1, min(SAMPLE, len(table))).astype(int))
    constant = {name: torch.zeros(k) for name, k in cut.layers.items()}
    worst, start = 0.0, time.perf_counter()
    for row in table.iloc[picked].itertuples():
        mask = plain.mask(cut.layers, chosen[row.order][: row.n_ablated])
        loss = plain.loss_and_accuracy(plain.logits(model, x, plain.clamped(mask, constant)), y)[0]
        worst = max(worst, abs(loss - row.loss) / max(1, loss))
    taken = (time.perf_counter() - start) * len(table) / len(picked)
    timed = f"{len(picked)} of {len(table)} points"
    return [
        dict(work=title, method="repro", seconds=ours, floor=multiply_adds(run, n), must=must),
        dict(work=title, method="hook loop", seconds=taken, timed=timed, difference=worst),
    ]


def noisy(title, kind, n, scales=9, repeats=10):
    """Noise on all units: against drawing and adding it in hooks, a run of the whole network for every point."""
    model, x, y = network(kind, n)
    cut = units.Cut(model, x[:2])
    grid = np.logspace(-1.5, 1, scales).tolist()
    run = lambda n: noise.sweep(model, x[:n], y[:n], grid, repeats)  # noqa: E731
    ours, _ = seconds(lambda: run(n))
    with evaluating(model):
        spread = values.standard_deviations(cut, x)
    add = lambda name, h: h + torch.randn_like(h) * spread[name] if name in spread else h  # noqa: E731
    taken, _ = seconds(lambda: plain.loss_and_accuracy(plain.logits(model, x, add), y))
    return [
        dict(work=title, method="repro", seconds=ours, floor=multiply_adds(run, n)),
        dict(work=title, method="hook loop", seconds=taken * scales * repeats, timed=f"1 of {scales * repeats} points"),
    ]


def works(quick, whole):
    """Everything that is timed, (function, arguments) in the order of the table."""
    n, some, images, few = (500, 6, 60, 4) if quick else (10_000, 1000 if whole else 100, 1000, 256)
    small = "2 × 512"
    yield single, dict(title=f"single unit, MLP {small}, {n:,} images", kind=[512, 512], n=n, must=40)
    yield single, dict(title=f"single unit, MLP 2 × 2048, {n:,} images", kind=[2048, 2048], n=n, must=80, captum=False)
    yield cumulative, dict(title=f"10 orders × 20 steps, MLP {small}, {n:,} images", kind=[512, 512], n=n, must=15)
    one = dict(kind=[512, 512], n=n, orders=1, steps=64, must=20)
    yield cumulative, dict(title=f"one curve of 64 steps, MLP {small}, {n:,} images", **one)
    maps = dict(kind="convnet", n=some, must=3, captum=False)
    yield single, dict(title=f"single feature map, all 2816, ConvNet, {some:,} images", **maps)
    yield (
        cumulative,
        dict(
            title=f"10 orders × 20 steps, last three layers, ConvNet, {images:,} images",
            kind="convnet", n=images, layers=LAST, must=6,
        ),
    )  # fmt: skip
    yield (
        single,
        dict(
            title=f"single feature map, last three blocks, ResNet-50, {few} images",
            kind="resnet", n=few, layers=BLOCKS, must=4, captum=False,
        ),
    )  # fmt: skip
    yield noisy, dict(title=f"noise, 9 scales × 10 repeats, MLP {small}, {n:,} images", kind=[512, 512], n=n)


def costs(quick):
    """Seconds of single-unit ablation of all units against width (2,000 images) and number of images (2 × 512)."""
    rows = []
    widths, counts = ([32, 64], [100, 200]) if quick else ([64, 128, 256, 512, 1024], [500, 2000, 8000, 32000])
    n = counts[1]
    for width, images in [(w, n) for w in widths] + [(512, c) for c in counts if c != n]:
        for row in single("", [width, width], images, captum=width <= 512 and images <= 8000):
            rows.append(dict(width=width, images=images, method=row["method"], seconds=row["seconds"]))
    return pd.DataFrame(rows)


def draw(table, path):
    """Two log-log panels: cost against width, cost against number of images."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    images = table.images.mode()[0]
    with house():
        figure, axes = plt.subplots(1, 2, figsize=(6.6, 2.9), sharey=True, layout="constrained")
        panels = [("width", table[table.images == images]), ("images", table[table.width == 512])]
        for ax, (column, some) in zip(axes, panels, strict=True):
            for color, marker, (method, rows) in zip(
                OKABE_ITO, "osD^", some.groupby("method", sort=False), strict=False
            ):
                rows = rows.sort_values(column)
                ax.loglog(rows[column], rows.seconds, color=color, marker=marker, label=method)
            ax.grid(True, which="major", alpha=0.3)
        axes[0].set(xlabel="units in each of two hidden layers", ylabel="all units ablated one by one (s)")
        axes[1].set(xlabel="images")
        axes[0].set_title(f"{images:,} images", loc="left")
        axes[1].set_title("2 × 512 units", loc="left")
        axes[1].legend(frameon=False)
        figure.savefig(path, dpi=200)
        plt.close(figure)


def markdown(rows, rate, training):
    """The README: where and how it was measured, then the tables."""
    lines = [
        "| work | method | time | ratio | must | largest difference | floor | timed |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    table = pd.DataFrame(rows).reindex(columns=["work", "method", "seconds", "floor", "must", "timed", "difference"])
    for title, group in table.groupby("work", sort=False):
        ours = group.iloc[0]
        for row in group.itertuples():
            is_ours = row.method == "repro"
            work = title if is_ours else ""
            floor = f"{ours.floor / rate:.2g} s" if is_ours else ""
            must = f"{ours.must:.0f}×" if row.method == "hook loop" and ours.must == ours.must else ""
            ratio = "" if is_ours else f"**{row.seconds / ours.seconds:.0f}×**"
            apart = f"{row.difference:.0e}" if row.difference == row.difference else ""
            timed = "" if is_ours else row.timed
            lines.append(
                f"| {work} | {row.method} | {_time(row.seconds)} | {ratio} | {must} | {apart} | {floor} | {timed} |"
            )
    where = f"{torch.get_num_threads()} CPU threads ({platform.machine()}), torch {torch.__version__}"
    return TEXT.format(where=where, rate=2 * rate / 1e9, table="\n".join(lines), training=training)


def _time(s):
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if s >= 2 * size:
            return f"{s / size:.1f} {unit}"
    return f"{s:.2f} s" if s >= 0.1 else f"{s * 1000:.0f} ms"


TEXT = """# Benchmarks

`make bench` runs everything below side by side in one process and writes this page. Last run on {where}; a float32
matrix product reaches {rate:.0f} GFLOP/s there. Compare the ratios: seconds change from machine to machine.

## Ablation

{table}

- **ratio**: the rival's time over ours. **must**: what we hold ourselves to.
- **hook loop**: a forward hook clamps the unit, the whole network runs again, over batches of 1,000 images in memory.
  **Captum**: `LayerFeatureAblation`. **one image at a time**: a hook and a `DataLoader` with batches of one, as public
  replications do it.
- **timed**: a rival's cost is the same for every unit, so it is timed on a random sample and scaled.
- **largest difference** of the loss (nats) between the rival's units or points and ours; of losses above 1, relative.
- **floor**: an estimate, the multiply-adds that our method makes, as torch counts them, at the rate of the matrix product above;
  products of other sizes can be faster than that one.
- Networks are He-initialized and images Gaussian noise: half of all units are active on an image. Those of a trained
  network are silent more often, and silent units cost nothing.

![Seconds against width and against the number of images](cost.png)

## Training

{training}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written: does everything run?")
    parser.add_argument("--whole", action="store_true", help="feature maps on 1,000 images, not 100: 45 minutes more")
    options = parser.parse_args()
    quick = options.quick
    warnings.filterwarnings("ignore", module="captum")
    rate, rows = matrix_rate(), []
    for function, arguments in works(quick, options.whole):
        rows += function(**arguments)
        print(pd.DataFrame(rows[-4:]).to_string(index=False, max_colwidth=40), file=sys.stderr)
    training = train.markdown(quick)
    table = costs(quick)
    text = markdown(rows, rate, training)
    if quick:
        print(text)
        return
    draw(table, FOLDER / "cost.png")
    (FOLDER / "README.md").write_text(text)
    print(f"wrote {FOLDER / 'README.md'} and {FOLDER / 'cost.png'}")


if __name__ == "__main__":
    main()
