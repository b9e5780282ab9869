"""One dot per network (Figs. 3b, 4b, 4c) or one dot per unit (Figs. 7, A3, A4)."""

import numpy as np
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedLocator, LogLocator

from repro.ablation import auc
from repro.checks import check_names, check_table
from repro.claims.statistics import spearman
from repro.plots import style as look
from repro.plots import words

LINES = " · lines: least squares, networks pooled"


def per_network(table, normalize=False):
    """One row per network (and epoch): its AUC, mean over orders, beside what the table says of it.

    Parameters
    ----------
    table : DataFrame
        Cumulative curves merged with history, or a table that has a column `auc` already.
    normalize : bool
        Divide each AUC by the accuracy before ablation.

    Returns
    -------
    DataFrame with the table's columns, `auc`, and `generalization_error` where both accuracies are known.

    Raises
    ------
    ValueError
        If a column is missing, or if `normalize` is asked of areas that are there already.
    """
    check_table(table, "network")
    keys = ["network", *(["epoch"] if "epoch" in table else [])]
    if "auc" in table:
        if normalize:
            raise ValueError("normalize: expected curves to take the AUC from, found a column 'auc' already")
        areas = table.assign(auc=words.floats(table, "auc")).groupby(keys)["auc"].mean()
    else:
        check_table(table, "order", "fraction_ablated", "accuracy")
        areas = auc(table, by=[*keys, "order"], normalize=normalize).groupby(level=keys).mean()
    rows = table.drop_duplicates(keys).set_index(keys).assign(auc=areas).reset_index()
    if {"train_accuracy", "test_accuracy"} <= set(rows) and "generalization_error" not in rows:
        rows["generalization_error"] = rows["train_accuracy"] - rows["test_accuracy"]
    return rows


def scatter(ax, table, x, y, hue=None):
    """Draw one dot per row, with Spearman's rank correlation in the emptiest corner: of all dots or, where networks have several,
    the mean of the networks' own. Where dots are units coloured by layer, also the mean of those within the layers of each
    network, which may have another sign.

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        Rows where x or y is missing (dead units) are left out, and the note says how many.
    x, y : str
        Columns.
    hue : str, optional
        Column for the colours; "layer" is coloured by depth.
    """
    _draw_dots(ax, table, x, y, hue)
    look.corner_note(ax, words.note(table) + words.left_out(table, x, y))


def _draw_dots(ax, table, x, y, hue, lines=False):
    """`scatter` without the note under its axis; with a regression line for each level of hue, if asked."""
    data, color_by = words.points(table, x, y, hue)
    levels = look.levels(data, color_by) if hue else [None]
    palette = look.colors(color_by, levels) if hue else {None: look.OKABE_ITO[0]}
    # Shuffled, or the last layer would cover the others; always alike, so that a figure can be drawn again.
    dots = data.sample(frac=1, random_state=0)
    size, alpha = _dot(len(dots))
    ax.scatter(
        dots["_x"],
        dots["_y"],
        s=size,
        c=dots[color_by].map(palette).tolist() if hue else palette[None],
        alpha=alpha * (0.6 if lines else 1),
        edgecolors="white" if len(dots) <= 250 else "none",
        linewidths=0.4,
        rasterized=len(dots) > 500,
        zorder=2,
    )
    for level in levels if lines else ():
        _regression(ax, data[data[color_by] == level], palette[level], thin=len(levels) > 12)
    ax.set(xlabel=words.label(x), ylabel=words.outcome_label(table, y))
    if x == "selectivity":
        ax.set_xlim(-0.02, 1.02)
        ax.xaxis.set_major_locator(FixedLocator(np.linspace(0, 1, 6)))
    if y == "selectivity":  # above 1 there is room for a correlation
        ax.set_ylim(-0.02, 1.2)
        ax.yaxis.set_major_locator(FixedLocator(np.linspace(0, 1, 6)))
    look.plain_ticks(ax.xaxis)
    look.plain_ticks(ax.yaxis)
    if hue:
        look.level_key(ax, color_by, palette, linestyle="", marker="o")
    look.in_emptiest_corner(ax, _correlations(data, layers=hue == "layer"), data)


def _correlations(data, layers):
    """What the corner says of the columns `_x` and `_y`."""
    if "network" in data and data["network"].duplicated().any():
        text = f"Spearman ρ = {words.rho(rank_correlations(data, '_x', '_y', 'network').rho.mean())} (networks)"
    else:
        text = f"Spearman ρ = {words.rho(spearman(data['_x'], data['_y']))} (all dots)"
    if layers and "network" in data:
        text += f"\nρ = {words.rho(rank_correlations(data, '_x', '_y').rho.mean())} (layers)"
    return text


def rank_correlations(table, x, y="delta_loss", by=("network", "layer")):
    """Spearman's ρ of two columns over the units of each network and layer (or what `by` names).

    Returns
    -------
    DataFrame
        The first row of each group, with a column `rho`; dead units (NaN) do not count, and where no others are
        left, `rho` is NaN.
    """
    by = check_names("by", by)
    check_table(table, x, y, *by)

    def rho_of(units):
        alive = units.dropna()
        return spearman(alive[x], alive[y])

    units = table.assign(**{column: words.values(table, column) for column in (x, y)})
    rho = units.groupby(by, sort=False)[[x, y]].apply(rho_of)
    return table.drop_duplicates(by).merge(rho.rename("rho").reset_index(), on=by, how="left")


def auc_against(ax, table, x="generalization_error", hue=None, normalize=False):
    """Draw the AUC against a property of the network, one dot per network (Figs. 3b, 4c) or snapshot (Fig. 4b).

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        Cumulative curves merged with history, or one row per network with a column `auc`.
    x, hue : str
        Columns, such as "generalization_error" (taken from the two accuracies if absent), "test_loss", "lr".
    normalize : bool
        Divide the AUC by the intact accuracy; only of curves.
    """
    rows = per_network(table, normalize)
    _draw_dots(ax, rows, x, "auc", hue)
    ax.set_ylabel(words.label("auc_normalized" if normalize else "auc"))
    note = " · one dot per network"
    if rows["network"].duplicated().any():
        note = " · one dot per snapshot, one line per network"
        for _, run in rows.sort_values("epoch").groupby("network"):
            ax.plot(words.values(run, x), run["auc"], color=look.GREY, alpha=0.6, linewidth=0.7, zorder=1.5)
    look.corner_note(ax, words.note(table) + note)


def importance(ax, table, x="selectivity", y="delta_loss", lines=False):
    """Draw the importance of units against their selectivity, coloured by depth (Figs. 7, A4).

    Where a few units matter far more than the rest, the y axis is linear about 0 and logarithmic beyond.

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        Selectivity merged with single-unit ablation: network, layer, unit, the columns `x` and `y`.
    x : str
        "selectivity" or "mutual_information".
    y : str
        "delta_loss" or "delta_accuracy".
    lines : bool
        Draw a regression line for each layer (Figs. 7c, 7e).
    """
    change = words.values(table, y).dropna()
    size = change.abs()
    heavy = size.max() > 12 * max(size.quantile(0.9), 1e-12)
    if heavy:
        bend = 10.0 ** np.round(np.log10(max(size.quantile(0.75), size.max() * 1e-4)))
        ax.set_yscale("symlog", linthresh=bend, linscale=0.6)
    _draw_dots(ax, table, x, y, "layer", lines)
    note = words.note(table) + words.left_out(table, x, y) + LINES * lines
    if heavy:
        _symlog_ticks(ax, bend, change)
        note += f" · y: log scale beyond ±{words.number(bend)}"
    look.corner_note(ax, note)


def _dot(n):
    """Area in points² and opacity of one of n dots."""
    for most, size, alpha in ((100, 20, 0.9), (500, 11, 0.75), (3000, 5, 0.55)):
        if n <= most:
            return size, alpha
    return 2.5, 0.4


def _regression(ax, rows, color, thin):
    """A line of least squares, as far as its own dots reach in x and in y."""
    x, y = rows["_x"].to_numpy(), rows["_y"].to_numpy()
    if len(x) < 3 or np.ptp(x) == 0:
        return
    slope, intercept = np.polyfit(x, y, 1)
    grid = np.linspace(x.min(), x.max(), 200)  # many points: on a symlog axis the line is bent
    line = intercept + slope * grid
    seen = (line >= y.min()) & (line <= y.max())
    # Of few lines each stands out from the dots; the rims of many would cover them.
    rim = [] if thin else [Stroke(linewidth=2.7, foreground="white", alpha=0.9), Normal()]
    ax.plot(grid[seen], line[seen], color=color, linewidth=0.9 if thin else 1.5, path_effects=rim, zorder=3)


def _symlog_ticks(ax, bend, change):
    """Ticks at 0 and at a few powers of ten either side, as many as there is room for, and small ones between them; where there
    are few powers of ten, also at three times those."""
    steps = (1, 3) if change.abs().max() < 100 * bend else (1,)
    ticks, small = [0.0], []
    for sign, end in ((1, change.max()), (-1, -change.min())):
        if end >= bend:
            large = _log_ticks(bend, end, steps)
            ticks += [*(sign * large[:: 1 if len(large) <= 4 else 2])]
            small += [*(sign * _log_ticks(bend, end, range(2, 10)))]
    ax.yaxis.set_major_locator(FixedLocator(sorted(ticks)))
    ax.yaxis.set_minor_locator(FixedLocator(sorted(small)))


def _log_ticks(low, high, steps):
    ticks = LogLocator(subs=steps).tick_values(low, high)
    return ticks[(ticks >= low * 0.99) & (ticks <= high)]
