"""A number a network against another: dots for networks, lines through their means (later work, X2 to X5)."""

from matplotlib.ticker import FixedLocator, MaxNLocator

from repro.plots import style as look
from repro.plots import words
from repro.plots.dots import spearman
from repro.plots.lines import log_epochs


def means(ax, table, x, y, hue=None, scale="linear"):
    """Draw one dot a row and lines through the means at each `x`.

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        A row a network (for each `x` and level of `hue`); rows without `y` are left out.
    x, y : str
        Columns.
    hue : str, optional
        Column for the colours; "layer" is coloured by depth.
    scale : {"linear", "log", "epochs"}
        Of the x axis; "log" has its ticks at the values themselves, "epochs" room for epoch 0.
    """
    if scale not in ("linear", "log", "epochs"):
        raise ValueError(f"scale: expected linear, log or epochs, got {scale!r}")
    data = table.assign(_x=words.values(table, x), _y=words.values(table, y))
    if hue == "layer":
        hue, data = "depth", data.assign(depth=words.depth(table))
    data = data.dropna(subset=["_x", "_y"])
    if data.empty:
        raise ValueError(f"table: expected rows with {x} and {y}, found none")
    palette = look.colors(hue, look.levels(data, hue)) if hue else {None: look.OKABE_ITO[0]}
    dots = {"marker": "o", "linestyle": "", "markersize": 3, "markeredgewidth": 0, "alpha": 0.45}
    for level, color in palette.items():
        rows = data[data[hue] == level] if hue else data
        ax.plot(rows["_x"], rows["_y"], color=color, zorder=2, **dots)
        line = rows.groupby("_x")["_y"].mean()
        ax.plot(line.index, line, color=color, linewidth=1.4, zorder=3)
    if scale == "log":
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(sorted(data["_x"].unique())))
        ax.xaxis.set_minor_locator(FixedLocator([]))
    elif scale == "epochs":
        log_epochs(ax, data["_x"])
    elif x == "depth":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    look.plain_ticks(ax.xaxis)
    look.plain_ticks(ax.yaxis)
    ax.set(xlabel=words.label(x), ylabel=words.label(y))
    if hue:
        look.level_key(ax, hue, palette, linestyle="-")
    look.corner_note(ax, f"{words.note(table)} · dots: networks, lines: means")


def rank_correlations(table, x, y="delta_loss", by=("network", "layer")):
    """Spearman's ρ of two columns over the units of each network and layer (or what `by` names).

    Returns
    -------
    DataFrame
        The first row of each group, with a column `rho`; dead units (NaN) do not count, and where no others are
        left, `rho` is NaN.
    """
    by = [by] if isinstance(by, str) else list(by)
    words.require(table, x, y, *by)

    def rho_of(units):
        alive = units.dropna()
        return spearman(alive[x], alive[y])

    units = table.assign(**{column: words.values(table, column) for column in (x, y)})
    rho = units.groupby(by, sort=False)[[x, y]].apply(rho_of)
    return table.drop_duplicates(by).merge(rho.rename("rho").reset_index(), on=by, how="left")
