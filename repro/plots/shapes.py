"""How a property of units is distributed: with and without batch norm (Fig. 6), layer by layer (Fig. A2)."""

import numpy as np

from repro.checks import check_table
from repro.plots import style as look
from repro.plots import words


def bandwidth(sample, grid):
    """Standard deviation of a kernel by Silverman's rule, at least 1 % of the grid's length."""
    quarter, three_quarters = np.quantile(sample, [0.25, 0.75])
    scale = min(np.std(sample), (three_quarters - quarter) / 1.34) or np.std(sample)
    return max(0.9 * scale * len(sample) ** -0.2, 0.01 * np.ptp(grid))


def density(sample, grid, low=-np.inf, high=np.inf, width=None):
    """Gaussian kernel density of a sample on a grid, reflected at the bounds: none of it is lost beyond them.

    Parameters
    ----------
    sample, grid : array (n,), array (m,)
    low, high : float
        The bounds of what the sample can be.
    width : float, optional
        Standard deviation of the kernel, by default that of `bandwidth`.

    Returns
    -------
    array (m,), which integrates to 1 between the bounds.
    """
    sample = np.asarray(sample, dtype=float)
    width = width or bandwidth(sample, grid)
    mirrored = [sample] + [2 * bound - sample for bound in (low, high) if np.isfinite(bound)]
    z = (grid[:, None] - np.concatenate(mirrored)) / width  # (m, up to 3 n)
    return np.exp(-0.5 * z * z).sum(1) / (len(sample) * width * np.sqrt(2 * np.pi))


def distributions(ax, table, column="selectivity", hue="batch_norm"):
    """Draw how a column is distributed over units: bold for all networks together, thin for each (Fig. 6).

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        Of the analysis "selectivity"; dead units (NaN) are left out, and the note says how many.
    column : str
        "selectivity" or "mutual_information".
    hue : str
        Column whose levels are compared; the dashed lines stand at their medians, of mutual information at their means, which
        is what C6 is about.
    """
    data, grid, low, high = _alive(table, column)
    check_table(data, "network", hue)
    palette = look.colors(hue, look.levels(data, hue))
    width = bandwidth(
        data["_x"], grid
    )  # the same for all: else a network's curve is smoother than that of all together
    entries, center = {}, "mean" if column == "mutual_information" else "median"
    thin = {"linewidth": 0.6, "alpha": 0.55, "zorder": 2}
    dashed = {"linewidth": 1, "dashes": (3, 1.8), "zorder": 3}
    for level, color in palette.items():
        rows = data[data[hue] == level]
        for _, network in rows.groupby("network"):
            ax.plot(grid, density(network["_x"], grid, low, high, width), color=color, **thin)
        pooled = density(rows["_x"], grid, low, high, width)
        middle = rows["_x"].agg(center)
        ax.fill_between(grid, pooled, color=color, alpha=0.13, linewidth=0, zorder=1.5)
        ax.plot(grid, pooled, color=color, linewidth=1.9, zorder=3)
        ax.plot([middle, middle], [0, np.interp(middle, grid, pooled)], color=color, **dashed)
        entries[f"{words.level_name(hue, level)} ({center} {middle:.2f})"] = {"color": color, "linewidth": 1.9}
    ax.set_xlim(grid[0], grid[-1])
    ax.set_ylim(bottom=0)
    look.plain_ticks(ax.xaxis)
    look.plain_ticks(ax.yaxis)
    per = " (per bit)" if column == "mutual_information" else ""
    ax.set(xlabel=words.label(column), ylabel=f"density of units{per}")
    look.key(ax, words.label(hue), entries)
    look.corner_note(ax, f"{words.note(table)} · thin: each network · dashed: {center}{words.left_out(table, column)}")


def by_depth(ax, table, column="selectivity"):
    """Draw how a column is distributed in every layer, a ridge each, the first at the bottom (Fig. A2).

    Parameters
    ----------
    ax : matplotlib Axes
    table : DataFrame
        Of the analysis "selectivity", layers in forward order; dead units (NaN) are left out.
    column : str
        "selectivity" or "mutual_information". The dots stand at the layers' means, of which CA2 speaks.
    """
    data, grid, low, high = _alive(check_table(table, "layer").assign(depth=words.depth(table)), column)
    layers = look.levels(data, "depth")
    palette = look.colors("depth", layers)
    ridges = {layer: density(rows["_x"], grid, low, high) for layer, rows in data.groupby("depth")}
    # Ridges have equal areas. Four of five stay below 0.9 layers where there are two, below 3.2 where there are 49; the tallest
    # may be 1.6 times as high.
    overlap = np.interp(len(layers), [2, 11, 49], [0.9, 1.9, 3.2])
    tops = [ridge.max() for ridge in ridges.values()]
    unit = overlap / max(np.quantile(tops, 0.8), max(tops) / 1.6)
    thin = np.interp(len(layers), [11, 49], [0.8, 0.5])
    for layer in reversed(layers):  # lower ridges in front of higher ones
        ridge = layer + unit * ridges[layer]
        order = 2 + (len(layers) - layers.index(layer)) / len(layers)
        ax.fill_between(grid, layer, ridge, color=palette[layer], alpha=0.85, linewidth=0, zorder=order)
        outline = np.where(ridges[layer] > 0.01 * ridges[layer].max(), ridge, np.nan)  # or it would cover the spine
        ax.plot(grid, outline, color="white", linewidth=thin, zorder=order)
    means = data.groupby("depth")["_x"].mean()
    size = np.interp(len(layers), [2, 11, 49], [4, 3.2, 2])
    ax.plot(means, means.index, "o", color="#222222", markersize=size, markeredgecolor="white",
            markeredgewidth=0.4, zorder=4)  # fmt: skip
    ax.set_xlim(grid[0], grid[-1])
    ax.set_ylim(layers[0] - 0.3, None)
    step = next(step for step in (1, 2, 5, 10, 20, 50) if len(layers) / step <= 12)
    ax.set_yticks([layer for layer in layers if layer in (layers[0], layers[-1]) or layer % step == 0])
    ax.grid(False, axis="y")
    look.plain_ticks(ax.xaxis)
    ax.set(xlabel=words.label(column), ylabel="layer (depth)")
    look.corner_note(ax, f"{words.note(table)} · dot: mean{words.left_out(table, column)}")


def _alive(table, column):
    """The rows with a value (in a column `_x`), a grid over what it can be, and the bounds of that."""
    data = check_table(table, column).assign(_x=words.values(table, column))
    data = data[np.isfinite(data["_x"])]
    if data.empty:
        raise ValueError(f"table: expected units with a {column}, found none (all dead)")
    low = 0.0 if data["_x"].min() >= 0 else -np.inf
    high = 1.0 if column == "selectivity" else np.inf
    left = 0.0 if low == 0 else data["_x"].min()
    right = high if np.isfinite(high) else left + 1.04 * (data["_x"].max() - left or 1.0)
    return data, np.linspace(left, right, 160), low, high
