"""One self-contained page: the interactive diagrams, the figures and the scorecard.

It opens from disk, without a server and without a network. Its policy line forbids requests outright; images, numbers and
scripts stand in the page itself. The diagrams are the very modules that notebooks use (`repro.widgets`).
"""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from repro import notebooks, store, widgets
from repro.claims.verdicts import BEFOREHAND, FEW, HINDSIGHT, HOW, minus
from repro.recipe import Recipe
from repro.widgets.diagram import HERE, Diagram, module, style

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline' blob:"
PIXELS = 115  # of the page to an inch of a figure
MARKS = {"reproduced": "✓", "partly": "~", "not reproduced": "✗"}

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="Interactive diagrams, figures and scorecard of a reproduction of Morcos et al. (2018)">
<link rel="icon" href="data:,">
<title>Delete neurons by hand</title>
<style>
$style</style>
<header>
<h1>Delete neurons by hand</h1>
<p class="lead">Does a neural network need each of its neurons? Does it need those most that we can interpret? And what gives
away a network that has merely memorized? Three diagrams to try it out, and every figure of a reproduction.</p>
</header>
<main>
$parts
$scorecard
$figures
</main>
<footer>
<p class="text">A reproduction of A. S. Morcos, D. G. T. Barrett, N. C. Rabinowitz and M. Botvinick, <i>On the importance of
single directions for generalization</i> (ICLR 2018, arXiv 1803.06959). The first two diagrams follow those of the companion
article <i>Understanding deep learning through neuron deletion</i> (2018). Everything here is computed from networks trained
anew; <code>repro site</code> writes this page.</p>
</footer>
$sources
<script type="application/json" id="widgets">$states</script>
<script type="module">
$script</script>
</html>
""")

PARTS = {  # a diagram's name: title and text of its part of the page
    "deletion": (
        "How much does one neuron matter?",
        "This network reads handwritten digits. It is real, only small, and it runs in this page. Darker means more active. "
        "Click a neuron and it falls silent: the connections that leave it fade, and the outputs, the answer and the accuracy "
        "on every test image follow. Deleting one or two neurons may do little or a lot, depending on which; "
        "many together undo the network. Can you find ten of the 32 that it does not need?",
    ),
    "importance": (
        "Are the neurons we understand the ones that matter?",
        "Some units answer to one class only, so we can say what they detect. It is tempting to think that they do the work. "
        "Each dot is one unit: further right it is easier to interpret, further up its deletion does more damage on test images. "
        "Step through what could have been, then see what is.",
    ),
    "memorization": (
        "Deleting units tells who has memorized",
        "Two networks of the same shape have learned the same images by heart. One was given the true labels; for the other "
        "they were shuffled, so there was nothing to understand. Intact, both look perfect. Move the slider to delete "
        "the same share of units in each: the network that memorized needs nearly all of them.",
    ),
}


def parameters() -> dict:
    """What stands in the parameters cell of notebooks/interactive.ipynb: the networks that notebook and page show."""
    return notebooks.defaults(notebooks.parse(notebooks.FOLDER / "interactive.ipynb"))


def diagrams() -> list[Diagram]:
    """The three diagrams."""
    small, wide, seeds = (parameters()[name] for name in ("small", "wide", "networks"))
    return [
        widgets.Deletion(Recipe(**small)),
        widgets.Importance([Recipe(**wide, seed=seed) for seed in range(seeds)]),
        widgets.Memorization(Recipe(**wide), Recipe(**wide, corruption=1.0)),
    ]


def write(preset: str = "digits", path: Path | None = None) -> Path:
    """Write the page, by default figures/site/index.html.

    Parameters
    ----------
    preset : str
        Whose figures and scorecard are shown, as far as they are there; the diagrams are always of small networks.
    path : Path, optional

    Returns
    -------
    Path of the page.
    """
    folder = store.figures(preset)
    path = path or folder.parent / "site" / "index.html"
    shown = diagrams()
    states = [{"module": d.name, "place": f"widget-{d.name}", "state": d.state()} for d in shown]
    page = PAGE.substitute(
        policy=POLICY,
        style=style() + (HERE / "page.css").read_text(encoding="utf-8"),
        parts="\n".join(_part(diagram.name) for diagram in shown),
        scorecard=_scorecard(folder / "scorecard.json"),
        figures=_figures(folder),
        sources="\n".join(f'<script type="text/plain" id="{d.name}">\n{module(d.name)}</script>' for d in shown),
        states=json.dumps(states).replace("</", "<\\/"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )
    store.write_whole(path, page.encode())
    return path


def _part(name: str) -> str:
    title, text = PARTS[name]
    return (
        f'<section class="part">\n<h2>{escape(title)}</h2>\n<p class="text">{escape(text)}</p>\n'
        f'<div class="widget" id="widget-{name}"></div>\n</section>'
    )


def _scorecard(path: Path) -> str:
    """The verdicts as a table; nothing where no notebook has reached one yet."""
    verdicts = notebooks.read_json(path)
    if not verdicts:
        return ""
    paper, later = ([v for v in verdicts if v["claim"].startswith("X") == x] for x in (False, True))
    parts = [_table(paper, "Scorecard", f"{BEFOREHAND} {HOW}")] if paper else []
    parts += ["<h3>What later work says</h3>", _table(later, "Scorecard of later work", HINDSIGHT)] if later else []
    return '<section class="part">\n<h2>Which claims hold?</h2>\n' + "\n".join(parts) + "\n</section>"


def _table(verdicts: list[dict], label: str, about: str) -> str:
    """Verdicts, each with its rule folded, below a sentence about those rules."""
    # Narrow screens show a table's parts as blocks, which would be no table to a screen reader without these roles.
    rows = []
    for v in verdicts:
        rule = f"<details><summary>rule</summary>{escape(v['rule'])}</details>" if v.get("rule") else ""
        cells = {
            "": f"<b>{escape(v['claim'])}</b>",
            "statement": escape(v["statement"]) + rule,
            "subject": escape(v["subject"]),
            "effects": _effects(v["effects"]),
            f"verdict {v['verdict'].split()[0]}": f"{MARKS.get(v['verdict'], '')} {escape(v['verdict'])}",
        }
        row = "".join(f'<td role="cell" class="{kind}">{text}</td>' for kind, text in cells.items())
        rows.append(f'<tr role="row">{row}</tr>')
    names = ("claim", "statement", "about", "ours, 95 % interval", "verdict")
    head = "".join(f'<th role="columnheader">{name}</th>' for name in names)
    return (
        f'<p class="text">{escape(about)}</p>\n<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<table role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">\n{chr(10).join(rows)}\n</tbody></table></div>'
    )


def _effects(effects: list[dict]) -> str:
    """What the verdict rests on; a long list is folded."""
    lines = [f"<div>{_effect(effect)}</div>" for effect in effects if effect["judged"]]
    if len(lines) <= FEW + 1:
        return "".join(lines)
    return f"{''.join(lines[:FEW])}<details><summary>{len(lines) - FEW} more</summary>{''.join(lines[FEW:])}</details>"


def _effect(effect: dict) -> str:
    low, high = (_number(effect[end]) for end in ("low", "high"))
    return f"{escape(effect['name'])}: <b>{_number(effect['estimate'])}</b>&nbsp;[{low},&nbsp;{high}]"


def _number(value: float | None) -> str:
    return "–" if value is None else minus(f"{value:.3g}")


def _figures(folder: Path) -> str:
    """The pictures that the notebooks drew, in the paper's order."""
    names = {path.stem: path for path in sorted(folder.glob("*.png"))}
    if not names:
        return ""
    order = dict.fromkeys([*notebooks.NAMES, *names])
    pictures = "\n".join(_figure(names[name]) for name in order if name in names)
    return f'<section class="part">\n<h2>Every figure, drawn again</h2>\n<div class="figures">\n{pictures}\n</div>\n</section>'


def _figure(path: Path) -> str:
    panels = (notebooks.read_json(path.with_suffix(".json")) or {"panels": {}})["panels"]
    notebook = notebooks.FOLDER / f"{path.stem}.ipynb"
    title = notebooks.title(notebooks.parse(notebook)) if notebook.exists() else path.stem
    alt = ". ".join([title, *(f"{letter}: {panel['title']}" for letter, panel in panels.items())])
    with Image.open(path) as image:
        dots = image.info.get("dpi", (200, 200))[0]
        width, height = (round(PIXELS * side / dots) for side in image.size)
    data = base64.b64encode(path.read_bytes()).decode()
    caption = escape(title if title.endswith("?") else f"{title}.")
    return (
        f'<figure style="width: {width}px"><img loading="lazy" width="{width}" height="{height}" alt="{escape(alt)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )
