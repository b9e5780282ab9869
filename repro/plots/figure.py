"""A figure of the paper: its panels, what they claim, and the files they are written to."""

import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.transforms import Bbox
from PIL import Image

from repro import claims, store
from repro.experiment import Missing
from repro.plots import style as look

WIDTH = {1: 3.6, 2: 6.0, 3: 7.6}  # inches for one row of that many panels; 2.5 each beyond
HEIGHT = 2.9  # inches a row
MOST_INCHES = 100  # a side; much larger ones cannot be drawn


class Figure:
    """The panels of one figure in the house style.

    A panel whose networks or tables are not at hand says so in its place; it is not drawn from anything else.

    Parameters
    ----------
    name : str
        Name of the files, such as "fig1".
    preset : str
        The tier of the figure; its folder.
    panels : str
        Letters in a row, "abc", or rows of them as for `matplotlib.pyplot.subplot_mosaic`, "ab;cd".
    width, height : float, optional
        Size in inches.
    folder : path, optional
        Where the files go; by default the preset's own folder.

    Attributes
    ----------
    figure : matplotlib Figure
    verdicts : list of dict
        What `check` found: the panel and the fields of the verdict.
    missing : dict
        Panel to the `repro.experiment.Missing` that kept it from being drawn.

    Notes
    -----
    A preset's folder is `$REPRO_FIGURES/<preset>/`, or `figures/<preset>/` beside the library.
    """

    def __init__(self, name, preset="digits", panels="a", width=None, height=None, folder=None):
        self.name, self.preset = store.plain_name("name", name), preset
        self.folder = Path(folder) if folder else store.figures(preset)
        self.verdicts, self.missing = [], {}
        self._titles, self._extra, self._panel = {}, {}, None
        if not isinstance(panels, str) or not all(panels.split(";")):
            raise ValueError(f"panels: expected letters, rows of them apart by ';', got {panels!r}")
        rows = panels.split(";")
        columns = len(rows[0])
        if any(len(row) != columns for row in rows):
            raise ValueError(f"panels: expected rows of one length, '.' for an empty place, got {panels!r}")
        for argument, inches in (("width", width), ("height", height)):
            if inches is not None and not (isinstance(inches, int | float | np.number) and 0 < inches <= MOST_INCHES):
                raise ValueError(f"{argument}: expected inches, from 0 to {MOST_INCHES}, got {inches!r}")
        size = (width or WIDTH.get(columns, 2.5 * columns), height or HEIGHT * len(rows))
        with look.house():
            # Not pyplot's: a figure that pyplot knows is shown, half drawn, after every cell of a notebook.
            self.figure = Canvas(figsize=size, layout="constrained")
            FigureCanvasAgg(self.figure)
            try:
                self.axes = self.figure.subplot_mosaic(panels)
            except ValueError as error:
                raise ValueError(f"panels: expected one rectangle of each letter, got {panels!r}") from error
            for ax in self.axes.values():
                ax.set(xlabel="x", ylabel="y")
            # Laid out once, so that keys and notes know how much room they have.
            self.figure.draw_without_rendering()
            for ax in self.axes.values():
                ax.set(xlabel="", ylabel="", visible=False)

    @contextlib.contextmanager
    def panel(self, letter, title=""):
        """Draw one panel: yields its axes, in the house style.

        Parameters
        ----------
        letter : str
            One of the letters of `panels`.
        title : str
            A few words, beside the letter.
        """
        if letter not in self.axes:
            raise ValueError(f"letter: expected one of {', '.join(self.axes)}, found {letter!r}")
        ax = self.axes[letter]
        self._empty(letter)
        ax.set_visible(True)
        self._titles[letter], self._panel = title, letter
        before = set(self.figure.axes)
        try:
            with look.house():
                yield ax
        except Missing as error:
            self._extra[letter] = [axes for axes in self.figure.axes if axes not in before]
            self._empty(letter)
            self.missing[letter] = error
            self._say_missing(ax)
        finally:
            self._panel = None
            self._extra[letter] = [axes for axes in self.figure.axes if axes not in before]

    def check(self, claim, table):
        """Test a claim on a table, show the verdict and remember it.

        Parameters
        ----------
        claim : str
            Such as "C1".
        table : DataFrame
            What `repro.claims.check` expects for that claim.

        Returns
        -------
        repro.claims.Verdict
        """
        verdict = claims.check(claim, table)
        _show(verdict)
        self.verdicts.append({"panel": self._panel, **verdict.to_dict()})
        return verdict

    def note(self, letter, text):
        """Replace the small note under a panel, for one that is drawn from several tables."""
        if letter not in self.axes:
            raise ValueError(f"letter: expected one of {', '.join(self.axes)}, found {letter!r}")
        with look.house():
            look.corner_note(self.axes[letter], text)

    def save(self):
        """Write the figure, each of its panels, and what was found.

        That is `<name>.png`, `<name>.svg`, `<name><letter>.svg` and `<name>.json`; a notebook shows the
        picture.

        Returns
        -------
        Path of the PNG.
        """
        path = self.folder / f"{self.name}.png"
        with look.house():
            boxes = self._arrange()
            store.write_whole(path, _palette(self._drawn("png", dpi=200)))
            store.write_whole(path.with_suffix(".svg"), self._drawn("svg", metadata={"Date": None}))
            for letter in self._titles:
                self._save_panel(letter, boxes[letter])
        record = json.dumps(self._record(), indent=1, ensure_ascii=False, default=_json)
        store.write_whole(path.with_suffix(".json"), (record + "\n").encode())
        _show_image(path, self.figure.get_figwidth())
        return path

    def _drawn(self, kind, **options):
        """The figure as the bytes of a file."""
        content = io.BytesIO()
        self.figure.savefig(content, format=kind, **options)
        return content.getvalue()

    def _axes_of(self, letter):
        return [self.axes[letter], *self._extra.get(letter, [])]

    def _arrange(self):
        """Put titles above the keys, fit labels and notes, settle the layout; return each panel's box in inches."""
        figure = self.figure
        figure.set_layout_engine("constrained")
        layout = figure.get_layout_engine()
        layout.execute(figure)
        self._write_titles()
        layout.execute(figure)
        for axes in (axes for letter in self._titles for axes in self._axes_of(letter)):
            look.fit_labels(axes)
        layout.execute(figure)
        for letter in self._titles:  # as wide as the labels leave the axes
            _fit_notes(self.axes[letter])
        layout.execute(figure)
        figure.set_layout_engine("none")  # a panel saved by itself keeps its shape
        renderer = figure.canvas.get_renderer()
        boxes = {}
        for letter in self._titles:
            box = Bbox.union([axes.get_tightbbox(renderer) for axes in self._axes_of(letter)])
            boxes[letter] = box.padded(4 * figure.dpi / 72).transformed(figure.dpi_scale_trans.inverted())
        return boxes

    def _write_titles(self):
        """Title and letter of every panel, in line: above the tallest keys of its row, left of the widest labels of a y axis."""
        dpi, renderer = self.figure.dpi, self.figure.canvas.get_renderer()
        panels = {letter: self.axes[letter] for letter in self._titles}
        above, left = defaultdict(float), 14 * dpi / 72
        for ax in panels.values():
            row = ax.get_subplotspec().rowspan.start
            above[row] = max([above[row], *(key.get_window_extent().y1 - ax.bbox.y1 for key in look.keys(ax))])
            if (box := ax.yaxis.get_tightbbox(renderer)) is not None:
                left = max(left, ax.bbox.x0 - box.x0)
        for letter, ax in panels.items():
            pad = 5 + above[ax.get_subplotspec().rowspan.start] * 72 / dpi
            ax.set_title(self._titles[letter], loc="left", pad=pad)
            if old := look.named(ax, "letter"):
                old.remove()
            where = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
            bold = {"size": 10, "weight": "bold", "va": "baseline", "ha": "left", "gid": "letter"}
            ax.annotate(letter, (0, 1), (-left * 72 / dpi, pad), **where, **bold)

    def _save_panel(self, letter, box):
        mine = self._axes_of(letter)
        others = [axes for axes in self.figure.axes if axes not in mine and axes.get_visible()]
        for axes in others:
            axes.set_visible(False)
        picture = self._drawn("svg", bbox_inches=box, metadata={"Date": None})
        store.write_whole(self.folder / f"{self.name}{letter}.svg", picture)
        for axes in others:
            axes.set_visible(True)

    def _empty(self, letter):
        """Forget what a panel showed: its cell is run again, or its results are missing half way."""
        with look.house():  # clearing brings back what the current style says of axes
            self.axes[letter].clear()
        for axes in self._extra.pop(letter, []):
            axes.remove()
        self.missing.pop(letter, None)
        self.verdicts = [verdict for verdict in self.verdicts if verdict["panel"] != letter]

    def _say_missing(self, ax):
        """Say in grey, in the empty axes, which command would fill them."""
        ax.set(xticks=[], yticks=[], facecolor="#f7f7f7")
        ax.grid(False)
        ax.spines[:].set_visible(False)
        text = f"results not in data/ yet —\nrepro figures {self.name} --preset {self.preset} -p compute missing"
        middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
        # It is wrapped to the axes once they have their width; until then it must not push them together.
        ax.text(0.5, 0.5, text, size=7, color=look.GREY, gid="missing", in_layout=False, **middle)

    def _record(self):
        notes = {letter: look.named(self.axes[letter], "note") for letter in self._titles}
        return {
            "figure": self.name,
            "preset": self.preset,
            "panels": {
                letter: {
                    "title": title,
                    "note": notes[letter] and notes[letter].get_text().replace("\n", " · "),
                }
                for letter, title in self._titles.items()
            },
            "missing": {
                letter: {
                    "networks": [network.key for network in error.networks],
                    "tables": list(error.tables),
                }
                for letter, error in self.missing.items()
            },
            "verdicts": self.verdicts,
        }


def _palette(png):
    """A PNG with a palette of 256 colours, chosen for it: a third of the bytes, and hardly a difference to the eye. They are
    spread over the whole range: chosen by area, those of dots and lines would be lost. Each is then moved to the mean of the
    pixels that it stands for, so that greys stay grey."""
    content = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        colors = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
        colors.save(content, "PNG", optimize=True, dpi=picture.info["dpi"])
    return content.getvalue()


def _fit_notes(ax):
    """Wrap what is written under and in the axes to their width."""
    if note := look.named(ax, "note"):
        look.corner_note(ax, note.get_text())
    if note := look.named(ax, "missing"):
        lines = [look.wrap(line, 0.85 * look.width(ax), 7) for line in note.get_text().split("\n")]
        note.set_text("\n".join(lines))


def _json(value):
    """What json cannot write: numpy's numbers and arrays as Python's, anything else as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _notebook():
    """Whether this runs in the kernel of a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def _show(verdict):
    if _notebook():
        from IPython.display import display

        display(verdict)
    else:
        print(verdict)


def _show_image(path, inches):
    if _notebook():
        from IPython import display

        display.display(display.Image(filename=str(path), width=round(inches * 110)))
