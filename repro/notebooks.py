"""The figure notebooks: which there are, the parameters they take, and what they would read from the store."""

from __future__ import annotations

import ast
import json
import os
import tempfile
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from repro import store

FOLDER = store.HERE / "notebooks"
NAMES = [*(f"fig{i}" for i in range(1, 8)), *(f"figA{i}" for i in range(1, 5))]


class Refused(Exception):
    """A request that cannot be met; the message says why, in one line."""


def read(name: str):
    """A figure's notebook; refuses names that are none."""
    import nbformat

    path = FOLDER / f"{name}.ipynb"
    if name not in NAMES or not path.exists():
        raise Refused(f"unknown notebook {name!r}; expected some of {' '.join(NAMES)}")
    return nbformat.read(path, as_version=4)


def defaults(notebook) -> dict:
    """Values in a notebook's parameters cell, a plain `name: type = value` a line."""
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    return {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.AnnAssign)
    }


def chosen(names: list[str], preset: str, given: list[list[str]] = ()) -> dict[str, dict]:
    """Parameters each notebook is to be run with: those of the preset and of the command line that differ from its own.

    Names that no notebook knows and values of another type are refused here, before any kernel starts.
    """
    import yaml

    path = FOLDER / "presets" / f"{preset}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise Refused(f"unknown preset {preset!r}; expected one of {known}")
    everywhere = {name: defaults(read(name)) for name in NAMES}
    here = {name: everywhere[name] if name in everywhere else defaults(read(name)) for name in names}
    from_preset = yaml.safe_load(path.read_text())
    from_user = {name: yaml.safe_load(value) for name, value in given}
    for source, values, books in ((path.name, from_preset, everywhere), ("-p", from_user, here)):
        for parameter, value in values.items():
            found = [book[parameter] for book in books.values() if parameter in book]
            if not found:
                known = sorted({name for book in books.values() for name in book})
                raise Refused(f"unknown parameter {parameter!r} in {source}; expected some of {', '.join(known)}")
            if not _same_type(value, found[0]):
                kind = type(found[0]).__name__
                raise Refused(f"parameter {parameter!r} in {source}: expected {kind} like {found[0]!r}, got {value!r}")
    wanted = from_preset | from_user
    return {
        name: {p: wanted[p] for p, value in book.items() if p in wanted and wanted[p] != value}
        for name, book in here.items()
    }


def _same_type(value, default) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return default is None or type(value) is type(default)


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
    return json.loads(path.read_text()) if path.exists() else {"panels": {}, "missing": {}, "verdicts": []}


def replay(name: str, parameters: dict) -> list[tuple[str, str, object]]:
    """Run a notebook's code in this process without computing anything.

    Returns
    -------
    list of (panel, analysis, table)
        One a call of `measure`; in place of a table that the store lacks, the `Missing` that says what it takes.
    """
    from repro import experiment

    calls: list[tuple[str, str, object]] = []
    space: dict = {"__name__": name}
    whole = experiment.measure

    def recorded(analysis, *arguments, **options):
        panel = getattr(space.get("figure"), "_panel", None) or ""
        try:
            table = whole(analysis, *arguments, **options | {"compute": "nothing"})
        except experiment.Missing as missing:
            calls.append((panel, analysis, missing))
            raise
        calls.append((panel, analysis, table))
        return table

    experiment.measure = recorded
    try:
        with tempfile.TemporaryDirectory() as folder, environment(REPRO_FIGURES=folder), redirect_stdout(StringIO()):
            for cell in read(name).cells:
                if cell.cell_type == "code":
                    exec(compile(cell.source, f"{name}.ipynb", "exec"), space)
                if "parameters" in cell.metadata.get("tags", []):
                    space |= parameters
    finally:
        experiment.measure = whole
    return calls
