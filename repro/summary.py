"""What was measured of one network, on one page: a picture and a few numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from repro import plots, store
from repro.ablation import auc
from repro.claims.verdicts import minus

LAYOUTS = {1: "a", 2: "ab", 3: "abc", 4: "ab;cd"}
LISTED = 10  # units named on the page


def write(tables: dict[str, pd.DataFrame], folder: str | Path) -> Path:
    """Write a network's page into a folder: summary.png (and .svg, panel by panel) and summary.md.

    Parameters
    ----------
    tables : dict of str to DataFrame
        As `repro.experiment.measure_model` returns them.
    folder : path
        Made if it is not there.

    Returns
    -------
    Path of summary.md.

    Raises
    ------
    ValueError
        If there is no table.
    """
    if not tables:
        raise ValueError("tables: expected at least one table of measure_model, found none")
    folder = Path(folder)
    for stale in ("summary.png", "summary.svg", "summary.json", *(f"summary{letter}.svg" for letter in "abcd")):
        (folder / stale).unlink(missing_ok=True)  # an earlier run's, which may have had more panels
    picture = draw(tables, folder)
    first = next(iter(tables.values())).iloc[0]
    lines = [f"# Single directions of {first.model} on {first.dataset}", ""]
    lines += [f"![]({picture.name})", ""] if picture else []
    if found := numbers(tables):
        lines += ["| | |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in found.items())]
    raising = _units(tables).query("delta_loss > 0").nlargest(LISTED, "delta_loss") if "single_unit" in tables else ()
    if len(raising):
        lines += ["", f"The {len(raising)} units whose ablation raises the loss most:", "", *_listed(raising)]
    path = folder / "summary.md"
    store.write_whole(path, ("\n".join(lines) + "\n").encode())
    return path


def draw(tables: dict[str, pd.DataFrame], folder: str | Path) -> Path | None:
    """Draw the panels for which there are tables into summary.png; None if there are for none."""
    panels = []
    if "cumulative" in tables:
        panels.append(("Cumulative ablation", lambda ax: plots.curves(ax, tables["cumulative"])))
    if "noise" in tables:
        panels.append(("Noise on every unit", lambda ax: plots.noise(ax, tables["noise"])))
    if (both := _both(tables)) is not None:
        panels.append(("Importance of units", lambda ax: plots.importance(ax, both)))
    if "selectivity" in tables and not tables["selectivity"].dead.all():
        panels.append(("Selectivity by depth", lambda ax: plots.by_depth(ax, tables["selectivity"])))
    if not panels:
        return None
    figure = plots.Figure("summary", panels=LAYOUTS[len(panels)], folder=folder)
    for letter, (title, paint) in zip("abcd", panels, strict=False):
        with figure.panel(letter, title) as ax:
            paint(ax)
    return figure.save()


def numbers(tables: dict[str, pd.DataFrame]) -> dict[str, str]:
    """The few numbers that stand for each table: {what: value}."""
    found = {}
    if "cumulative" in tables:
        curves = tables["cumulative"]
        areas, normalised = auc(curves), auc(curves, normalize=True)
        found["training accuracy"] = f"{curves.query('n_ablated == 0').accuracy.iloc[0]:.1%}"
        found["AUC, mean ± SD over orders" if len(areas) > 1 else "AUC"] = _mean(areas)
        found["AUC ÷ unablated accuracy"] = _mean(normalised)
    if "history" in tables:
        history = tables["history"].iloc[0]
        found["training accuracy"] = f"{history.train_accuracy:.1%}"
        found["test accuracy"] = f"{history.test_accuracy:.1%}"
    if "noise" in tables:
        means = tables["noise"].groupby("scale").accuracy.mean()
        scale = means.index[abs(means.index - 1).argmin()]
        found[f"training accuracy under noise of {scale:.2g} SD"] = f"{means[scale]:.1%}"
    if "selectivity" in tables:
        units = tables["selectivity"]
        found["units, layers"] = f"{len(units):,}, {units.layer.nunique()}"
        found["dead units"] = f"{units.dead.mean():.1%}"
        if not units.dead.all():
            found["class selectivity, median"] = f"{units.selectivity.median():.3f}"
            found["mutual information, median"] = f"{units[~units.dead].mutual_information.median():.3f} bits"
    if (both := _both(tables)) is not None:
        for what, by in (
            ("Spearman ρ of selectivity and importance", "network"),
            ("the same within a layer, mean over layers", "layer"),
        ):
            found[what] = f"{plots.rank_correlations(both, 'selectivity', by=by).rho.mean():.2f}"
    return {what: minus(value) for what, value in found.items()}


def _mean(areas: pd.Series) -> str:
    """The mean over orders, and their SD where there are several."""
    return f"{areas.mean():.3f}" + (f" ± {areas.std():.3f}" if len(areas) > 1 else "")


def _units(tables) -> pd.DataFrame:
    """Importance and, where it was measured, selectivity of every unit."""
    units = tables["single_unit"]
    return units.merge(tables["selectivity"], how="left") if "selectivity" in tables else units


def _both(tables) -> pd.DataFrame | None:
    """Importance and selectivity of the units of which both were measured; None if there are none, or all are dead."""
    if not {"single_unit", "selectivity"} <= set(tables):
        return None
    units = tables["single_unit"].merge(tables["selectivity"])
    return None if units.dead.all() else units


def _listed(units: pd.DataFrame) -> list[str]:
    shown = ["layer", "unit", "delta_loss", "delta_accuracy", "selectivity", "preferred_class"]
    columns = [column for column in shown if column in units]
    rows = units[columns].itertuples(index=False)
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *cells]]
