"""The figure notebooks: which there are, the parameters they take, and what they would read from the store."""

from __future__ import annotations

import ast
import json
import math
import os
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from repro import store

FOLDER = store.REPOSITORY / "notebooks"
NAMES = [*(f"fig{i}" for i in range(1, 8)), *(f"figA{i}" for i in range(1, 5)), *(f"x{i}" for i in range(1, 6))]


class Refused(Exception):
    """A request that cannot be met; the message says why, in one line."""


class Cell(NamedTuple):
    """A cell of a notebook."""

    kind: str
    source: str
    parameters: bool


def read(name: str) -> list[Cell]:
    """The cells of a figure's notebook; refuses names that are none."""
    presets()  # refuses an installation without any
    path = FOLDER / f"{name}.ipynb"
    if name not in NAMES or not path.exists():
        raise Refused(f"unknown notebook {name!r}; expected some of {' '.join(NAMES)}")
    return parse(path)


def parse(path: Path) -> list[Cell]:
    """The cells of a notebook, read as JSON: machines for training may lack nbformat."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        Cell(cell["cell_type"], "".join(cell["source"]), "parameters" in cell["metadata"].get("tags", []))
        for cell in cells
    ]


def title(cells: list[Cell]) -> str:
    """What a notebook asks: its first line."""
    return cells[0].source.splitlines()[0].lstrip("# ")


def defaults(cells: list[Cell]) -> dict:
    """Values in a notebook's parameters cell, a plain `name: type = value` a line; none without such a cell."""
    return {
        node.target.id: ast.literal_eval(node.value)
        for cell in cells
        if cell.parameters
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.AnnAssign)
    }


def presets() -> list[str]:
    found = sorted(file.stem for file in (FOLDER / "presets").glob("*.yaml"))
    if not found:
        raise Refused(f"there are no notebooks in {FOLDER}; install from a clone of the repository: pip install -e .")
    return found


def chosen(names: list[str], preset: str, given: list[list[str]] = ()) -> dict[str, dict]:
    """Parameters each notebook is to be run with: those of the preset and of the command line that differ from its own.

    Names that no notebook knows and values of another type are refused here, before any kernel starts.
    """
    if preset not in presets():
        raise Refused(f"unknown preset {preset!r}; expected one of {', '.join(presets())}")
    everywhere = {name: defaults(read(name)) for name in NAMES}
    here = {name: everywhere[name] if name in everywhere else defaults(read(name)) for name in names}
    given = {name: _load_yaml(f"-p {name}", value) for name, value in given}
    files = [(f"{name}.yaml", _load_preset(name), everywhere) for name in _with_base(preset)]
    wanted = {}
    for source, values, books in (*files, ("-p", given, here)):
        for parameter, value in values.items():
            if (source, parameter) == ("-p", "preset"):
                raise Refused("parameter 'preset' in -p: it only names a folder; use --preset")
            found = [book[parameter] for book in books.values() if parameter in book]
            if not found:
                known = sorted({name for book in books.values() for name in book})
                raise Refused(f"unknown parameter {parameter!r} in {source}; expected some of {', '.join(known)}")
            if expected := _unlike(value, found[0]):
                raise Refused(f"parameter {parameter!r} in {source}: expected {expected}, got {value!r}")
        wanted |= values
    wanted["preset"] = preset  # which names the folder of its figures
    return {
        name: {p: wanted[p] for p, value in book.items() if p in wanted and wanted[p] != value}
        for name, book in here.items()
    }


def _with_base(preset: str) -> list[str]:
    """A preset, after the one that it changes where its name says so: `paper-again` is `paper` with other values for some."""
    return [name for name in dict.fromkeys((preset.partition("-")[0], preset)) if name in presets()]


def _load_preset(name: str) -> dict:
    file = f"{name}.yaml"
    values = _load_yaml(file, (FOLDER / "presets" / file).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise Refused(f"{file}: expected a line `name: value` for each parameter, got {values!r}")
    return values


def _load_yaml(source: str, text: str):
    """A value written in YAML: plain values, no tags and no anchors (a few lines of which unpack to gigabytes)."""
    import yaml

    try:
        if any(getattr(event, "anchor", None) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise Refused(f"{source}: expected plain values, found an anchor")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Refused(f"{source} is no YAML of plain values: {' '.join(str(error).split())}") from error


def _unlike(value, default) -> str:
    """What was expected of a parameter's value, by the example of its default; nothing where it fits."""
    kind = type(default)
    if kind is dict and "dataset" in default:
        return _no_recipe(value)
    if kind is list and default and isinstance(value, list):
        if not value:
            return "a list that is not empty"
        numbers = all(type(element) in (int, float) for element in default)
        example = float(default[0]) if numbers and float in map(type, default) else default[0]
        wrong = [expected for element in value if (expected := _unlike(element, example))]
        return f"a list of values, each {wrong[0]}" if wrong else ""
    if kind is float:
        fits = type(value) in (int, float) and math.isfinite(value)
    elif kind is int:
        fits = type(value) is int and value >= min(default, 1)
    else:
        fits = default is None or type(value) is kind
    return "" if fits else f"{kind.__name__} like {default!r}"


def _no_recipe(value) -> str:
    """What is wrong with fields of a recipe."""
    from repro.recipe import Recipe

    try:
        Recipe(**value)
    except (TypeError, ValueError) as error:
        return f"the fields of a Recipe ({error})"
    return ""


@contextmanager
def environment(**values: str):
    """Environment variables for as long as the body runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def record(name: str, preset: str) -> dict:
    path = store.figures(preset) / f"{name}.json"
    return read_json(path) or {"panels": {}, "missing": {}, "verdicts": []}


def read_json(path: Path):
    """What a JSON file beside the figures says; None if there is none; refuses one that somebody has edited badly."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise Refused(f"{path} is no JSON any more ({error}); delete it and draw its figure again") from error


class Call(NamedTuple):
    """A call of `measure`; in place of a table that the store lacks, the `Missing` that says what it takes."""

    panel: str
    analysis: str
    table: object
    files: list[Path]
    options: dict


def replay(name: str, parameters: dict, compute: str = "nothing") -> list[Call]:
    """Run a notebook's code in this process and return its calls of `measure`; its figure is drawn, but neither judged
    nor written. `compute` is that of `measure`."""
    from repro import experiment, plots

    calls: list[Call] = []
    space: dict = {"__name__": name}
    whole = experiment.measure

    def recorded(analysis, recipes, *arguments, **options):
        arguments = list(recipes), *arguments  # which may be a generator
        panel = getattr(space.get("figure"), "_panel", None) or ""
        files = experiment.files(analysis, *arguments, **options)
        try:
            table = whole(analysis, *arguments, **options | {"compute": compute})
        except experiment.Missing as missing:
            calls.append(Call(panel, analysis, missing, files, options))
            raise
        calls.append(Call(panel, analysis, table, files, options))
        return table

    drawn = patch.multiple(plots.Figure, check=lambda *_: None, save=lambda _: None)
    with patch.object(experiment, "measure", recorded), drawn, redirect_stdout(StringIO()):
        for cell in read(name):
            if cell.kind == "code":
                try:
                    exec(compile(cell.source, f"{name}.ipynb", "exec"), space)
                except AssertionError as error:
                    first = cell.source.partition("\n")[0]
                    raise AssertionError(f"an assertion in the cell that begins {first!r} fails") from error
            if cell.parameters:
                space |= parameters
    return calls


# What may be thrown away ----------------------------------------------------------------------------------------------


@dataclass
class Referred:
    """What the notebooks ask of the store, with any preset.

    Attributes
    ----------
    files : set of str
        Names of tables and networks.
    networks : list of dict
        Fields of recipes. Everything made from such recipes counts: where a panel lacks a table, what it would ask for
        after that cannot be seen; and the interactive diagrams use their networks as they like.
    """

    files: set[str] = field(default_factory=set)
    networks: list[dict] = field(default_factory=list)

    def __contains__(self, entry: store.Entry) -> bool:
        recipe = entry.origin["recipe"]
        described = any(
            all(recipe.get(name) == value for name, value in network.items() if name in recipe)
            for network in self.networks
        )
        return described or entry.path.name in self.files


def referred() -> Referred:
    """Look through all notebooks with all presets; refuses where one of them fails, as the rest of it remains unseen."""
    from tqdm import tqdm

    from repro.experiment import Missing

    found = Referred()
    others = sorted(path for path in FOLDER.glob("*.ipynb") if path.stem not in NAMES)
    for path in others:
        found.networks += _networks(defaults(parse(path)))
    runs = [(name, preset) for preset in presets() for name in NAMES]
    for name, preset in tqdm(runs, desc="reading notebooks", leave=False):
        parameters = chosen([name], preset)[name]
        try:
            calls = replay(name, parameters)
        except Exception as error:
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise Refused(f"cannot tell what {name} with preset {preset} refers to: {what}") from error
        found.files |= {file.name for call in calls for file in call.files}
        if any(isinstance(call.table, Missing) for call in calls):
            found.networks += _networks(defaults(read(name)) | parameters)
    return found


def _networks(parameters: dict) -> list[dict]:
    """Those parameters that describe networks, as a stored recipe would have it; without fields of which the notebook
    lists values, such as `widths`."""
    from repro.recipe import Recipe

    varied = {name.removesuffix("s") for name, value in parameters.items() if isinstance(value, list)}
    found = []
    for network in parameters.values():
        if isinstance(network, dict) and "dataset" in network:
            recipe = json.loads(Recipe(**network).to_json())
            found.append({name: recipe[name] for name in network if name not in varied})
    return found
