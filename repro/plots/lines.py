"""Accuracy under cumulative ablation (Figs. 1, 3a, 5, A1) and noise (Fig. 2); a training run (Fig. 4a)."""

import numpy as np
from matplotlib.ticker import FixedLocator, LogLocator

from repro.checks import check_names, check_table
from repro.claims.tables import chance
from repro.plots import style as look
from repro.plots import words
from repro.plots.dots import per_network

THIN = {"linewidth": 0.6, "alpha": 0.55, "zorder": 2.2}  # lines of single networks
DASHES = ["-", (0, (3, 1.6)), (0, (1, 1.3)), (0, (4, 1.3, 1, 1.3))]


def spread(table, x, y, over, by=()):
    """Mean and SD of `y` at each `x`: over the repeats of each network, then averaged over networks.

    Parameters
    ----------
    table : DataFrame
        With columns `network`, `x`, `y` and those of `over` and `by`.
    over : str
        The repeats within a network: "order" or "repeat".
    by : str or sequence of str
        Columns whose levels are kept apart.

    Returns
    -------
    DataFrame with columns *by, x, mean, std (of n − 1; 0 for a single repeat).

    Raises
    ------
    ValueError
        If a column is missing or `x` or `y` no numbers, if there are no rows, if rows differ in something that is not named,
        or if the networks of one level were not measured at the same `x`.
    """
    by = check_names("by", by, least=0)
    check_table(table, "network", x, y, over, *by)
    table = table.assign(**{x: words.floats(table, x).round(9), y: words.floats(table, y)})
    if table.empty:
        raise ValueError("table: expected rows, found none")
    keys = [*by, "network", over, x]
    if table.duplicated(keys).any():
        raise ValueError(f"table: expected one row for each {', '.join(keys)}; what else differs must be hue or style")
    networks = table.groupby([*by, "network", x], sort=False)[y].agg(["mean", "std"]).fillna({"std": 0.0})
    levels = networks.reset_index().assign(all="table").groupby(by or "all")
    if (levels.size() != levels["network"].nunique() * levels[x].nunique()).any():  # some network lacks some x
        raise ValueError(f"{x}: expected the same values for all networks{' of one ' if by else ''}{' and '.join(by)}")
    return networks.groupby([*by, x]).mean().reset_index()


def curves(ax, table, hue=None, style=None, y="accuracy", vlines=(), each=False):
    """Draw accuracy against the fraction of units ablated, the band one SD over orders (Figs. 1, 3a, 5, A1).

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        Of the analysis "cumulative": network, order, fraction_ablated, the column `y`.
    hue, style : str, optional
        Columns told apart by colour and by dashes.
    y : str
        "accuracy", "accuracy_top5" or "loss".
    vlines : float or sequence of float
        Where to draw dotted vertical lines; a level of `hue` gives its line its colour (Fig. 5a).
    each : bool
        Draw a thin line for every network in place of the band (Fig. 3a).
    """
    palette = _lines(ax, table, "fraction_ablated", y, "order", hue, style, each)
    for x in np.atleast_1d(vlines):
        color = next((color for level, color in palette.items() if level == x), look.GREY)
        ax.axvline(x, color=color, linewidth=1.1, linestyle=(0, (1, 1.8)), zorder=1.5)
    ax.set_xlim(0, 1)
    look.plain_ticks(ax.xaxis)
    # The number beside the fraction, where there is but one.
    units = table.groupby("network")["n_ablated"].max().unique() if "n_ablated" in table else []
    total = f" of {units[0]:,.0f}" if len(units) == 1 and table["fraction_ablated"].max() == 1 else ""
    ax.set_xlabel(f"units ablated (fraction{total})")
    _accuracy_axis(ax, table, y)
    note = f"{words.note(table)} · {'thin: each network' if each else 'band: SD over orders'}"
    if np.size(vlines):
        note += f" · dotted: {words.label(hue).split(' (')[0] if hue else 'marks'} of that colour"
    look.corner_note(ax, note)


def noise(ax, table, hue=None, style=None, y="accuracy"):
    """Draw accuracy against the scale of the noise on every unit, on a logarithmic axis (Fig. 2).

    Accuracy without noise has no place on that axis: dots at the left edge show it, over a tick labelled 0. A grey line is
    half way from there to chance, where networks are compared.

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        Of the analysis "noise": network, repeat, scale, the column `y`.
    hue, style : str, optional
        Columns told apart by colour and by dashes.
    y : str
        "accuracy", "accuracy_top5" or "loss".
    """
    noisy = table[words.floats(table, "scale") > 0]
    if noisy.empty:
        raise ValueError("table: expected rows with scale > 0, found none")
    palette = _lines(ax, noisy, "scale", y, "repeat", hue, style, each=False)
    low, high = noisy["scale"].min(), noisy["scale"].max()
    ax.set_xscale("log")
    ticks = [tick for tick in LogLocator().tick_values(low, high) if low * 0.99 <= tick <= high * 1.01]
    left, note = low, f"{words.note(table)} · band: SD over runs"
    if (table["scale"] == 0).any():
        zero = low / (high / low) ** 0.13
        left = zero / (high / low) ** 0.08
        intact = table[table["scale"] == 0]
        _intact_dots(ax, intact, y, hue, palette, zero, high / low)
        ticks = [zero, *ticks]
        note += " · dots: without noise"
        if y == "accuracy":
            half = (intact.groupby("network")[y].mean().mean() + chance(table)) / 2
            ax.axhline(half * 100, color=look.GREY, linewidth=0.8, linestyle=(0, (1, 1.8)), zorder=1.5)
            note += " · dotted: half way to chance"
        # The axis is broken between 0 and where the logarithm begins.
        gap = {"marker": [(-1, -2), (1, 2)], "markersize": 6, "markeredgewidth": 0.7, "color": "#888888"}
        ax.plot(low / (high / low) ** 0.05, 0, transform=ax.get_xaxis_transform(), clip_on=False, **gap)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    minor = LogLocator(subs=range(2, 10)).tick_values(low, high)
    ax.xaxis.set_minor_locator(FixedLocator(minor[(minor >= low) & (minor <= high)]))
    ax.xaxis.set_major_formatter(lambda x, _: "0" if x < low * 0.99 else words.number(x))
    ax.set_xlim(left, high * 1.05)
    ax.set_xlabel(words.label("scale"))
    _accuracy_axis(ax, table, y)
    look.corner_note(ax, note)


def _intact_dots(ax, intact, y, hue, palette, zero, span):
    """A dot for each level of hue at `zero`, side by side on an axis that spans this factor: intact networks are often equally
    accurate."""
    dot = {"markersize": 3.4, "markeredgewidth": 0, "clip_on": False, "zorder": 3}
    beside = np.linspace(-0.045, 0.045, len(palette)) if len(palette) > 1 else [0.0]
    for shift, (level, color) in zip(beside, palette.items(), strict=True):
        mean = _where(intact, {hue: level} if hue else {}).groupby("network")[y].mean().mean()
        ax.plot(zero * span**shift, mean * words.factor(y), "o", color=color, **dot)


def training(ax, table, normalize=False):
    """Draw training and test loss (left axis) and the AUC (right axis) against the epoch (Fig. 4a).

    Bold are means over networks, thin each network, whose lowest test loss and highest AUC are marked by dots.

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        network, epoch, train_loss, test_loss, and either `auc` or cumulative curves to take it from.
    normalize : bool
        Whether the AUC is divided by the intact accuracy; only of curves.

    Returns
    -------
    Axes of the AUC, on the right.
    """
    data = per_network(table, normalize)
    data = data.assign(**{column: words.floats(data, column) for column in ("epoch", "train_loss", "test_loss")})
    right = ax.twinx()
    ax.set_zorder(right.get_zorder() + 1)  # or the AUC's lines would cover those of the loss
    ax.patch.set_visible(False)
    series = {
        "training": (ax, "train_loss", look.OKABE_ITO[4], DASHES[1]),
        "test": (ax, "test_loss", look.OKABE_ITO[0], DASHES[0]),
        "AUC": (right, "auc", look.OKABE_ITO[5], DASHES[0]),
    }
    dot = {"marker": "o", "markersize": 3.4, "markeredgecolor": "white", "markeredgewidth": 0.5, "zorder": 4}
    entries = {}
    for name, (axes, column, color, dashes) in series.items():
        runs = data.pivot(index="epoch", columns="network", values=column)
        axes.plot(runs, color=color, linestyle=dashes, **THIN)
        axes.plot(runs.mean(axis=1), color=color, linestyle=dashes)
        entries[name] = {"color": color, "linestyle": dashes}
        if column != "train_loss":
            at, best = (runs.idxmax(), runs.max()) if column == "auc" else (runs.idxmin(), runs.min())
            axes.plot(at, best, linestyle="", color=color, clip_on=False, **dot)
    log_epochs(ax, data["epoch"])
    ax.set_xlim(data["epoch"].min(), data["epoch"].max() * 1.1)  # room for a line at the last epoch
    ax.set_ylim(bottom=0)
    for axis in (ax.xaxis, ax.yaxis, right.yaxis):
        look.plain_ticks(axis)
    _tie_axes(ax, right)
    right.set_ylabel(words.label("auc_normalized" if normalize else "auc"), color=look.OKABE_ITO[5])
    ax.set(xlabel="epoch", ylabel="loss (nats)")
    look.key(ax, "loss (left axis) and AUC (right)", entries)
    look.corner_note(
        ax, f"{words.note(table)} · bold: mean, thin: each network · dots: its lowest test loss, its highest AUC"
    )
    return right


def _tie_axes(ax, right):
    """Let two axes of one panel look like one: a frame, ticks of epochs and vertical lines are drawn once."""
    ax.grid(False)  # it would be drawn over the AUC; and horizontal lines could stand for one of the two scales only
    right.grid(False, axis="y")
    right.xaxis.set_visible(True)
    right.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    right.spines["right"].set_visible(True)
    right.spines["bottom"].set_visible(False)
    right.spines["left"].set_visible(False)


def log_epochs(ax, epochs):
    """A logarithmic axis of epochs; the untrained network, after epoch 0, stands left of the first."""
    if not (epochs > 0).any():
        raise ValueError("epoch: expected epochs > 0 for a logarithmic axis, found none")
    first, last = epochs[epochs > 0].min(), epochs.max()
    if untrained := epochs.min() == 0:
        ax.set_xscale("symlog", linthresh=first, linscale=0.3)
    else:
        ax.set_xscale("log")
    steps = LogLocator(subs=(1, 2, 5) if last < 100 * first else (1, 3)).tick_values(first, last)
    ticks = [0] * bool(untrained) + [t for t in steps if first <= t <= last]
    if last > 1.4 * ticks[-1]:  # room for the end of training
        ticks.append(last)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(FixedLocator([]))


def _lines(ax, table, x, y, over, hue, style, each):
    """Draw a line with its band for each level of hue and style, and the keys; return the colours of hue."""
    told_apart = [column for column in (hue, style) if column]
    check_table(table, *told_apart)
    factor, points = words.factor(y), spread(table, x, y, over, list(dict.fromkeys(told_apart)))
    palette = look.colors(hue, look.levels(table, hue)) if hue else {None: look.OKABE_ITO[0]}
    kinds = look.levels(table, style) if style else [None]
    if len(kinds) > len(DASHES):
        raise ValueError(f"style: expected a column of at most {len(DASHES)} levels, {style!r} has more")
    dashes = dict(zip(kinds, DASHES, strict=False))
    # A name in both columns ("random") is one curve, to which others are compared; the key of dashes tells it.
    both = {level for level in palette if isinstance(level, str) and level in dashes and hue != style}
    palette |= dict.fromkeys(both, look.DARK)
    alpha = 0.2 if len(palette) <= 3 else 0.11  # many bands lie on one another
    for level, color in palette.items():
        for kind, dash in dashes.items():
            chosen = {column: value for column, value in ((hue, level), (style, kind)) if column}
            rows = _where(points, chosen)
            if rows.empty:
                continue
            mean, std = rows["mean"] * factor, rows["std"] * factor
            ax.plot(rows[x], mean, color=color, linestyle=dash, zorder=2.5)
            if each:
                for _, network in _where(table, chosen).groupby("network"):
                    line = network.groupby(x)[y].mean() * factor
                    ax.plot(line.index, line, color=color, linestyle=dash, **THIN)
            else:
                band = {"color": color, "alpha": alpha, "linewidth": 0, "zorder": 2}
                ax.fill_between(rows[x], mean - std, mean + std, **band)
    if hue:
        look.level_key(ax, hue, {level: color for level, color in palette.items() if level not in both}, linestyle="-")
    if style:
        colors = {kind: palette[kind] if kind in both else look.GREY for kind in dashes}
        entries = {
            words.level_name(style, kind): {"color": colors[kind], "linestyle": dash} for kind, dash in dashes.items()
        }
        look.key(ax, words.label(style), entries)
    return palette


def _where(table, chosen):
    for column, value in chosen.items():
        table = table[table[column] == value]
    return table


def _accuracy_axis(ax, table, y):
    if y.startswith("accuracy"):
        ax.set_ylim(0, 103)  # room for the line of an intact network
        ax.yaxis.set_major_locator(FixedLocator(range(0, 101, 20)))
    look.plain_ticks(ax.yaxis)
    ax.set_ylabel(words.outcome_label(table, y))
