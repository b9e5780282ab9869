"""Words for what a table holds: axis labels with units, names of levels, layers by depth, notes."""

import re
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pandas as pd

from repro.checks import check_table
from repro.claims.verdicts import minus
from repro.data import short_name
from repro.recipe import Recipe

# column: (label with its unit, factor from the table's unit to the label's)
LABELS = {
    "accuracy": ("accuracy (%)", 100),
    "accuracy_top5": ("top-5 accuracy (%)", 100),
    "train_accuracy": ("training accuracy (%)", 100),
    "test_accuracy": ("test accuracy (%)", 100),
    "generalization_error": ("generalization error (% points)", 100),
    "loss": ("loss (nats)", 1),
    "train_loss": ("training loss (nats)", 1),
    "test_loss": ("test loss (nats)", 1),
    "delta_loss": ("change in loss (nats)", 1),
    "delta_accuracy": ("change in accuracy (% points)", 100),
    "auc": ("AUC (raw)", 1),
    "auc_normalized": ("AUC (÷ intact accuracy)", 1),
    "fraction_ablated": ("units ablated (fraction)", 1),
    "n_ablated": ("units ablated (number)", 1),
    "scale": ("noise (standard deviations of the unit)", 1),
    "selectivity": ("class selectivity", 1),
    "mutual_information": ("mutual information (bits)", 1),
    "l1_norm": ("L1 norm of the unit's weights", 1),
    "corruption": ("corrupted labels (%)", 100),
    "dropout": ("dropout (fraction)", 1),
    "lr": ("learning rate", 1),
    "batch_size": ("batch size (images)", 1),
    "batch_norm": ("batch norm", 1),
    "value": ("ablated to", 1),
    "n_train": ("training images", 1),
    "depth": ("layer (depth)", 1),
    "rho": ("rank correlation with importance", 1),
    "mean_selectivity": ("mean class selectivity", 1),
    "folded_l1_norm": ("L1 norm, batch norm folded in", 1),
    "by": ("in order of", 1),
    "alpha": ("weight of selectivity in the loss, α", 1),
    "width": ("units of each hidden layer", 1),
    "largest_drop": ("largest drop of a class (% points)", 100),
    "preferred_drop": ("drop of the preferred class (% points)", 100),
    "drop": ("drop of test accuracy (% points)", 100),
}
MODELS = {"mlp": "MLP", "convnet": "ConvNet", "resnet50": "ResNet-50"}
# What analyses find out, for notes.
MEASURED = {"cumulative": "ablation", "ranked": "ablation in order", "projections": "directions"}
MEASURED |= {"noise": "noise", "single_unit": "importance", "class_drops": "drops", "selectivity": "selectivity"}
CPUS = {"x86_64", "aarch64", "arm64"}  # architectures; any other device is called as the table calls it

# Networks that differ in their seed alone are repeats.
SETTINGS = [field.name for field in fields(Recipe) if field.name != "seed"]


def label(column):
    """Name a column in plain words, with its unit."""
    return LABELS.get(column, (str(column).replace("_", " "), 1))[0]


def factor(column):
    """From the unit of a column to that of its label."""
    return LABELS.get(column, ("", 1))[1]


def values(table, column):
    """The column in the unit of its label, as floats; NaN for the mutual information of dead units, too, which is 0 by
    definition and says nothing."""
    found = floats(table, column) * factor(column)
    return found.mask(table["dead"].astype(bool)) if column == "mutual_information" and "dead" in table else found


def points(table, x, y, hue):
    """The rows where both columns have a value, these as `_x` and `_y` in the units of their labels; and the column that
    tells colours apart, which for "layer" is its depth."""
    data = check_table(table).assign(_x=values(table, x), _y=values(table, y))
    if hue == "layer":
        hue, data = "depth", data.assign(depth=depth(table))
    data = data[np.isfinite(data["_x"]) & np.isfinite(data["_y"])]
    if data.empty:
        raise ValueError(f"table: expected rows with finite {x} and {y}, found none")
    return data, hue


def floats(table, column):
    """A column as floats; raise a ValueError if `table` lacks it, or if it holds something else."""
    check_table(table, column)
    try:
        return table[column].astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"table: expected numbers as {column} ({error})") from error


def outcome_label(table, y):
    """Name an accuracy or a loss of a damaged network, or a change in it, with the split that it was measured on if the table
    tells; other columns as `label` does."""
    on = {which for column in table.filter(regex="_on$") for which in table[column].dropna().unique()}
    splits = {"test" if "test" in which else "training" for which in on if " and " not in which}
    if len(splits) != 1 or re.search("training|test", label(y)):
        return label(y)
    return re.sub("(top-5 )?(accuracy|loss)", rf"{splits.pop()} \g<0>", label(y), count=1)


def level_name(column, level):
    """Name one level of a column for a key: 0.2 of `corruption` is "20", True of `batch_norm` is "with"."""
    if isinstance(level, bool | np.bool_):
        return "with" if level else "without"
    if column == "dataset":
        return short_name(level)
    if column == "model":
        return MODELS.get(level, level)
    if isinstance(level, int | float | np.number):
        return number(level * factor(column))
    return str(level)


def number(x):
    """Write a number as briefly as it can be read."""
    return minus(f"{x:.4g}")


def rho(x):
    """Write a correlation: two digits."""
    return minus(f"{x:.2f}")


def rough(x):
    """Write a number for the end of a range: two digits are enough below 1."""
    return number(float(f"{x:.2g}") if abs(x) < 1 else x)


def depth(table):
    """Depth of each row's layer: 1 for the first layer of the network, counted in the order of appearance.

    Layers have the names of a traced graph (`relu3`, `layer2.1.relu_2`), which say little to a reader.

    Parameters
    ----------
    table : DataFrame
        With a column `layer`; the layers of each network stand in forward order.

    Returns
    -------
    Series of int, with the index of `table`.
    """
    check_table(table, "layer")
    return pd.Series(pd.factorize(table["layer"])[0] + 1, index=table.index, name="depth")


def note(table):
    """Say in one line what a table was made from.

    Parameters
    ----------
    table : DataFrame
        As `repro.experiment.measure` returns it. What differs from row to row is given as a range, if at all;
        a column that is not there is not mentioned.

    Returns
    -------
    str, such as "digits · MLP 2×128 · 90 epochs · 4 networks × 10 orders · CPU".
    """
    parts = []
    if "dataset" in check_table(table):
        parts.append(" + ".join(short_name(name) for name in table["dataset"].unique()))
    if "n_train" in table and table["n_train"].notna().all():  # else some were trained on all
        parts.append(f"{_range(table['n_train'], ',.0f')} training images")
    if "model" in table:
        parts.append(" + ".join(_model(name, rows) for name, rows in table.groupby("model", sort=False)))
    if "batch_norm" in table and not table["batch_norm"].any() and "mlp" not in set(table.get("model", ())):
        parts.append("no batch norm")
    if "dropout" in table and table["dropout"].max() > 0:
        parts.append(f"dropout {_range(table['dropout'])}")
    if "corruption" in table and table["corruption"].nunique() == 1 and table["corruption"].iloc[0] > 0:
        parts.append(f"{_range(table['corruption'] * 100)} % of labels corrupted")
    if "lr" in table and table["lr"].nunique() > 1:
        parts.append(f"learning rate {_learning_rates(table)}")
    if "batch_size" in table and table["batch_size"].nunique() > 1:
        parts.append(f"batch size {_range(table['batch_size'])}")
    if "epochs" in table:
        early = "epoch" in table and (table["epoch"] != table["epochs"]).any()  # snapshots along training
        parts.append((f"after {_range(table['epoch'])} of " if early else "") + _count(table["epochs"], "epoch"))
    if "network" in table:
        parts.append(_networks(table))
    devices = [table[column].dropna().unique() for column in table.filter(regex="_device$")]  # one of each analysis
    if names := dict.fromkeys("CPU" if name in CPUS else name for some in devices for name in some):
        parts.append(" + ".join(names))
    for analysis, name in MEASURED.items():
        some = table.get(f"{analysis}_on", pd.Series(dtype=object)).dropna().unique()
        parts += [f"{name} on {which}" for which in sorted(some) if "up to" in which]
    return " · ".join(parts)


def _learning_rates(table):
    """ "0.003–1"; where each arm of batch norm has its own, "0.004, without batch norm 0.001"."""
    arms = table.groupby("batch_norm")["lr"].unique().map(list) if "batch_norm" in table else {}
    if len(arms) == 2 and all(len(rates) == 1 for rates in arms):
        return f"{rough(arms[True][0])}, without batch norm {rough(arms[False][0])}"
    return f"{rough(table['lr'].min())}–{rough(table['lr'].max())}"


def _range(column, form=".4g"):
    low, high = format(column.min(), form), format(column.max(), form)
    return low if low == high else f"{low}–{high}"


def _count(column, thing):
    """ "1 order", "10 orders", "60–90 epochs"."""
    return f"{_range(column, ',.0f')} {thing}" + ("" if column.max() == 1 else "s")


def _model(model, rows):
    """ "MLP 2×128", "MLP 512-256", "MLP 2×128 to 2×512", "ConvNet 1/8 width"."""
    name = MODELS.get(model, model)
    if "width" not in rows:
        return name
    # A width may be a number, several numbers, or either as text once models of both kinds share a column.
    widths = {tuple(map(float, re.findall(r"[\d.]+", str(w)))) for w in rows["width"].map(_plain)}
    if model != "mlp":
        widths = sorted({w[0] if w else 1.0 for w in widths})
        ends = [_share(w) for w in widths[:1] + widths[1:][-1:]]
        return f"{name} {' to '.join(ends)} width"
    # One number is that of each of two layers; without any, `models.build` makes 128.
    widths = sorted(w * 2 if len(w) == 1 else w or (128.0, 128.0) for w in widths)
    shapes = [f"{len(w)}×{w[0]:g}" if len(set(w)) == 1 else "-".join(f"{n:g}" for n in w) for w in widths]
    return f"{name} {' to '.join(shapes[:1] + shapes[1:][-1:])}".rstrip()


def _share(width):
    """A width factor as a fraction of small numbers where it is one: "1/8", "0.01", "full"."""
    fraction = Fraction(width).limit_denominator(64)
    if width == 1:
        return "full"
    return str(fraction) if abs(fraction - width) < 1e-9 else number(width)


def _plain(width):
    return np.asarray(width).tolist() if isinstance(width, list | tuple | np.ndarray) else width


def _networks(table):
    """ "24 networks (4 per setting) × 10 orders"."""
    networks = table.drop_duplicates("network")
    text = _count(pd.Series([len(networks)]), "network")
    settings = [networks[column].map(str) for column in SETTINGS if column in networks]
    if settings and len(networks) > 1:
        repeats = networks.groupby(settings).size()
        if len(repeats) > 1 and repeats.max() > 1:
            text += f" ({_range(repeats, '.0f')} per setting)"
    for column, thing in (("order", "order"), ("repeat", "run")):
        if column in table:
            text += f" × {_count(table.groupby('network')[column].nunique(), thing)}"
    return text


def left_out(table, *columns):
    """Say which share of the table's units has no value in one of these columns, being dead: "" if none has."""
    share = 1 - np.logical_and.reduce([np.isfinite(values(table, column)) for column in columns]).mean()
    return f" · without dead units ({share:.1%})" if share else ""
