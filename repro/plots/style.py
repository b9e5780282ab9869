"""The look of a panel: house style, colours for the levels of a column, key above the axes, note below."""

from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import matplotlib.style
import numpy as np
import seaborn as sns
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.legend_handler import HandlerBase
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import ScaledTranslation

from repro.checks import check_table
from repro.plots import words

STYLE = Path(__file__).parents[1] / "house.mplstyle"
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
GREY = "#767676"
DARK = "#333333"
NOTE_SIZE = 6  # points
MOST_NAMED = 6  # levels of a numeric column that a key names one by one; more become a gradient


def house():
    """A context in which matplotlib draws in the house style; outside of it nothing changes."""
    return mpl.style.context(STYLE)


def levels(table, column):
    """The levels of a column in the order to draw them: numbers ascending, True before False, else as met."""
    check_table(table, column)
    if table[column].isna().any():  # they would be left out unsaid
        raise ValueError(f"table: expected a value of {column} in every row, found some without")
    found = list(table[column].unique())
    if all(isinstance(level, bool | np.bool_) for level in found):
        return sorted(found, reverse=True)
    return sorted(found) if _numeric(found) else found


def _numeric(found):
    return all(isinstance(level, int | float | np.number) and not isinstance(level, bool) for level in found)


def colormap(column):
    """The colour map of a numeric column, cut to the part that is easily seen on white."""
    name, low, high = {
        "corruption": ("viridis", 0.05, 0.78),  # clean is dark, fully corrupted bright
        "depth": ("flare", 0.12, 1.0),  # early is light
    }.get(column, ("crest_r", 0.0, 0.8))
    return ListedColormap(sns.color_palette(name, as_cmap=True)(np.linspace(low, high, 256)), f"house_{name}")


def norm(column, found):
    """From the values of a numeric column to [0, 1]; logarithmic if they span a factor of 30 or more."""
    if column == "corruption":  # a fraction has the same colour in every figure
        return Normalize(0, 1)
    low, high = float(min(found)), float(max(found))
    return LogNorm(low, high) if low > 0 and high >= 30 * low and column != "depth" else Normalize(low, high)


def colors(column, found):
    """A colour for each level of a column.

    Two levels, and levels that are no numbers, get the colours of Okabe and Ito; numbers a sequential map, and so do layers
    and fractions of corrupted labels however few, so that they look the same in every figure.

    Raises
    ------
    ValueError
        If more levels are no numbers than there are colours.
    """
    if column in ("depth", "corruption") or (_numeric(found) and len(found) > 2):
        scale, cmap = norm(column, found), colormap(column)
        return {level: cmap(float(scale(level))) for level in found}
    if len(found) > len(OKABE_ITO):
        most = len(OKABE_ITO)
        raise ValueError(f"hue: expected a column of at most {most} names, {column!r} has {len(found)}")
    return dict(zip(found, OKABE_ITO, strict=False))


def plain_ticks(axis):
    """Write tick labels as plain numbers: 0, 0.5, 1, not 0.0, 0.5, 1.0."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: words.number(x)))


class _Gradient(HandlerBase):
    """Draws colours as a bar in place of a legend's handle."""

    def __init__(self, colors):
        super().__init__()
        self.colors = colors

    def create_artists(self, legend, handle, xdescent, ydescent, width, height, fontsize, trans):
        steps = len(self.colors)
        return [
            Rectangle(
                (-xdescent + width * i / steps, -ydescent + 0.15 * height),
                width * (1.0 if i == steps - 1 else 1.5) / steps,  # overlap, or hairlines show between them
                0.7 * height,
                facecolor=color,
                linewidth=0,
                transform=trans,
            )
            for i, color in enumerate(self.colors)
        ]


def gradient_key(ax, title, column, palette):
    """Write the key of a numeric column with many levels: a bar of their colours, and what they span."""
    handle = Rectangle((0, 0), 1, 1)
    log = ", log scale" if isinstance(norm(column, palette), LogNorm) else ""
    factor = words.factor(column)
    low, high = (words.rough(end * factor) for end in (min(palette), max(palette)))
    handlers = {Rectangle: _Gradient(list(palette.values()))}
    return _place(ax, _legend(ax, [handle], [f"{low} to {high}{log}"], title, 1, handlelength=7, handler_map=handlers))


def key(ax, title, entries):
    """Write a legend above the left end of the axes, where it cannot cover data.

    A second one stands beside the first, or above it where there is no room. `repro.plots.Figure` puts the
    title above them all; elsewhere give the title a `pad`.

    Parameters
    ----------
    ax : matplotlib Axes
    title : str
        What the entries are, with a unit.
    entries : dict
        Label to the keywords of the `Line2D` that stands for it.
    """
    size = FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points()
    gaps = mpl.rcParams["legend.handletextpad"] + mpl.rcParams["legend.columnspacing"]
    styles = {line.get("linestyle", "-") for line in entries.values()}
    # A dash must be long enough to be told from a line, a dot takes little room.
    handle = 0.6 if styles <= {""} else mpl.rcParams["legend.handlelength"] if styles <= {"-"} else 2.0
    each = [text_width(text, size) + (handle + gaps) * size for text in entries]
    room = width(ax) + mpl.rcParams["legend.columnspacing"] * size
    columns = len(each) if sum(each) <= room else max(1, int(room // max(each)))
    handles = [Line2D([], [], **{"markeredgewidth": 0, **line}) for line in entries.values()]
    return _place(ax, _legend(ax, handles, list(entries), title, columns, handlelength=handle))


def keys(ax):
    """The keys of the axes, in the order in which they were written."""
    return [artist for artist in ax.get_children() if isinstance(artist, Legend)]


def _legend(ax, handles, labels, title, columns, **options):
    legend = Legend(ax, handles, labels, title=title, ncols=columns, alignment="left", loc="lower left", **options)
    legend.get_title().set_color(GREY)
    return legend


def _place(ax, legend):
    """Put a legend a little above the axes, right of the last one or, without room, above them all."""
    gap, lift = 10, 4  # points
    dpi, box, others = ax.figure.dpi, ax.get_window_extent(), keys(ax)
    ax.add_artist(legend)
    right, up = 0.0, lift * dpi / 72
    if others:
        right = others[-1].get_window_extent().x1 - box.x0 + gap * dpi / 72
        up = others[-1].get_window_extent().y0 - box.y1
        if right + legend.get_window_extent().width > box.width:
            right, up = 0.0, max(other.get_window_extent().y1 for other in others) - box.y1 + lift * dpi / 72
    shift = ScaledTranslation(right / dpi, up / dpi, ax.figure.dpi_scale_trans)
    legend.set_bbox_to_anchor((0, 1), ax.transAxes + shift)
    return legend


def width(ax):
    """Width of axes in points, as they are laid out now."""
    return ax.get_window_extent().width * 72 / ax.figure.dpi


@lru_cache(maxsize=10_000)
def text_width(text, size):
    """Width of a line of text in points."""
    return float(np.ptp(TextPath((0, 0), text, size=size).vertices[:, 0])) if text.strip() else 0.0


def wrap(text, room, size, separator=" "):
    """Break a text between words so that no line is wider than `room` points (unless a single word is)."""
    lines = [""]
    for word in text.replace("\n", separator).split(separator):
        longer = f"{lines[-1]}{separator}{word}" if lines[-1] else word
        if lines[-1] and text_width(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def fit_labels(ax):
    """Break a label that is longer than its axis, before the unit if it has one, or the edge of the figure would cut it."""
    box = ax.get_window_extent()
    for label, length in ((ax.xaxis.label, box.width), (ax.yaxis.label, box.height)):
        text, size, room = label.get_text(), label.get_size(), length * 72 / ax.figure.dpi
        if text_width(text, size) > room:
            label.set_text(text.replace(" (", "\n(") if " (" in text else wrap(text, room, size))


def named(ax, gid):
    """The text of the axes that was given this name, or None."""
    return next((text for text in ax.texts if text.get_gid() == gid), None)


def corner_note(ax, text):
    """Write (or replace) the small grey note under the label of the x axis, as wide as the axes at most."""
    text = wrap(text, 0.97 * width(ax), NOTE_SIZE, " · ")  # a renderer's letters are a little wider than their outlines
    if found := named(ax, "note"):
        found.set_text(text)
        return found
    # Tied to the label itself: wherever the layout moves that, the note stays just below.
    return ax.annotate(
        text,
        xy=(0, 0),
        xycoords=(ax.transAxes, ax.xaxis.label),
        xytext=(0, -4),
        textcoords="offset points",
        ha="left",
        va="top",
        size=NOTE_SIZE,
        color=GREY,
        annotation_clip=False,
        gid="note",
    )


def level_key(ax, column, palette, **line):
    """Write the key to the colours of a column: level by level, or as a gradient if there are many.

    Parameters
    ----------
    ax : matplotlib Axes
    column : str
    palette : dict
        Level to colour, as `colors` returns it.
    line : keywords of the `Line2D` that stands for a level
    """
    title = words.label(column)
    if _numeric(palette) and len(palette) > MOST_NAMED:
        return gradient_key(ax, title, column, palette)
    if not _numeric(palette):  # "five smallest" has no unit
        title = title.split(" (")[0]
    entries = {words.level_name(column, level): {"color": color, **line} for level, color in palette.items()}
    return key(ax, title, entries)


def in_emptiest_corner(ax, text, data, size=7):
    """Write a few lines of text in the corner of the axes where the fewest points (`_x`, `_y` of `data`) lie; if any does, the
    axes grow to make room for the text beside them."""
    ax.autoscale_view()  # else the points are not yet where they will be seen
    places = ax.transAxes.inverted().transform(ax.transData.transform(data[["_x", "_y"]].to_numpy()))
    corners = [(right, top) for top in (True, False) for right in (True, False)]
    lines = text.split("\n")
    # The final layout may leave less room.
    wide = 1.25 * max(text_width(line, size) for line in lines) / width(ax) + 0.06
    high = 0.04 + 0.1 * len(lines)

    def crowd(corner):
        right, top = corner
        x, y = (1 - places[:, 0] if right else places[:, 0]), (1 - places[:, 1] if top else places[:, 1])
        return np.sum((x < wide) & (y < high))

    right, top = min(corners, key=crowd)
    if crowd((right, top)):
        edge = ax.transData.inverted().transform(ax.transAxes.transform((0, 1 + high if top else -high)))[1]
        ax.set_ylim(**{"top" if top else "bottom": edge})
    ax.text(
        0.98 if right else 0.02,
        0.98 if top else 0.03,
        text,
        transform=ax.transAxes,
        ha="right" if right else "left",
        multialignment="right" if right else "left",
        va="top" if top else "bottom",
        size=size,
        color=DARK,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.2},
        zorder=5,
    )
