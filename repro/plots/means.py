"""A number per network against another: dots for networks, lines through their means (later work, X2 to X5)."""

import numpy as np
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import ScaledTranslation

from repro.plots import style as look
from repro.plots import words
from repro.plots.lines import log_epochs


def means(ax, table, x, y, hue=None, scale="linear"):
    """Draw one dot per row and lines through the means at each `x`.

    Dots of different levels stand side by side where there are few levels, and so do networks where each has several rows;
    then a dash marks the mean of each network. Many levels get no dots, but a bold line through the means of all.

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        A row per network (for each `x` and level of `hue`); rows without `y` are left out.
    x, y : str
        Columns.
    hue : str, optional
        Column for the colours; "layer" is coloured by depth.
    scale : {"linear", "log", "epochs"}
        Of the x axis; "log" has its ticks at the values themselves, "epochs" room for epoch 0.
    """
    if scale not in ("linear", "log", "epochs"):
        raise ValueError(f"scale: expected linear, log or epochs, got {scale!r}")
    data, hue = words.points(table, x, y, hue)
    palette = look.colors(hue, look.levels(data, hue)) if hue else {None: look.OKABE_ITO[0]}
    many = len(palette) > look.MOST_NAMED
    for shift, (level, color) in zip(_side_by_side(len(palette)), palette.items(), strict=True):
        rows = data[data[hue] == level] if hue else data
        if not many:
            _dots(ax, rows, color, shift)
        line = rows.groupby("_x")["_y"].mean()
        ax.plot(line.index, line, color=color, linewidth=0.9 if many else 1.4, zorder=3)
    if many:
        line = data.groupby(["_x", hue])["_y"].mean().groupby("_x").mean()
        ax.plot(line.index, line, color=look.DARK, linewidth=2.2, zorder=4)
    values = sorted(data["_x"].unique())
    if scale == "log":
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(values))
        ax.xaxis.set_minor_locator(FixedLocator([]))
    elif scale == "epochs":
        log_epochs(ax, data["_x"])
    elif len(values) <= 12:
        ax.xaxis.set_major_locator(FixedLocator(values))
    look.plain_ticks(ax.xaxis)
    look.plain_ticks(ax.yaxis)
    ax.set(xlabel=words.label(x), ylabel=words.label(y))
    if hue:
        look.level_key(ax, hue, palette, linestyle="-")
    several = "network" in data and data.duplicated(["network", "_x", *([hue] if hue else [])]).any()
    dots = "dash: mean of a network" if several else "dots: networks"
    key = "lines: means over networks · bold: mean of the lines" if many else f"{dots} · lines: means"
    look.corner_note(ax, f"{words.note(table)} · {key}")


def _dots(ax, rows, color, shift):
    """Dots at each x, shifted by so many points; those of networks with several rows apart from one another."""
    dots = {"marker": "o", "linestyle": "", "markersize": 3, "markeredgewidth": 0, "alpha": 0.45, "zorder": 2}
    dash = {"marker": "_", "linestyle": "", "markersize": 5, "markeredgewidth": 1.2, "zorder": 2.5}

    def beside(points):
        return ax.transData + ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)

    ax.update_datalim(rows[["_x", "_y"]].to_numpy())  # which moved artists do not tell
    ax.autoscale_view()
    if "network" not in rows or not rows.duplicated(["network", "_x"]).any():
        ax.plot(rows["_x"], rows["_y"], color=color, transform=beside(shift), **dots)
        return
    ax.margins(x=0.08)
    rank = rows.groupby("_x")["network"].transform(lambda names: names.factorize()[0])
    for i, more in enumerate(_side_by_side(rank.max() + 1)):
        network = rows[rank == i]
        mean = network.groupby("_x")["_y"].mean()
        ax.plot(network["_x"], network["_y"], color=color, transform=beside(shift + more), **dots)
        ax.plot(mean.index, mean, color=look.DARK, transform=beside(shift + more), **dash)


def _side_by_side(n):
    """Shifts in points of n things around one place."""
    return (np.arange(n) - (n - 1) / 2) * 3.6
