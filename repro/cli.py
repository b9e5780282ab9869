"""The command line: every figure of the paper from one command.

repro figures                          all figures on the small preset, several notebooks at once
repro figures fig1 --preset paper      one figure at the paper's scale, from data/
repro figures fig1 --fresh             the same from scratch
repro measure MODULE:FUNCTION …        a network of your own
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import joblib
from tqdm import tqdm

from repro import __version__, execution, keeping, notebooks, store
from repro.checks import check_model, renamed
from repro.notebooks import NAMES, Refused, chosen, defaults, environment, read, replay

SHELL = {"analyses": "--analysis"} | {name: f"--{name}" for name in ("data", "layers", "outputs", "images")}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 something failed, 2 the request was wrong."""
    options = _parser().parse_args(arguments)
    # What `timeout` and batch systems send is taken for Ctrl-C; only a main thread may say so.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in ("REPRO_STORE", "REPRO_FIGURES", "REPRO_DATA"):  # the same folders for processes that work elsewhere
        if os.environ.get(name):
            os.environ[name] = os.path.abspath(os.environ[name])
    try:
        return options.run(options)
    except BrokenPipeError:  # `repro store ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Refused, store.Damaged, OSError) as error:
        print(f"repro: {error}", file=sys.stderr)
        return 2 if isinstance(error, Refused) else 1
    except KeyboardInterrupt:
        kept = {
            draw: "; what was finished is in the store, the same command goes on from there",
            measure_own: "; tables that were finished are in the folder of --out",
        }
        print(f"\nrepro: interrupted{kept.get(options.run, '')}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="repro", description="Reproduce every figure of Morcos et al. (2018).")
    parser.add_argument("--version", action="version", version=f"repro {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_figures(commands)

    listing = commands.add_parser("list", help="notebooks, what they ask, and their parameters")
    listing.set_defaults(run=list_notebooks)

    report = commands.add_parser("report", help="print the scorecard")
    report.add_argument("--preset", default="digits")
    report.set_defaults(run=print_report)

    _add_measure(commands)

    stored = commands.add_parser("store", help="look after the stored networks and tables")
    stored.add_argument("action", choices=("ls", "verify", "gc"), help="gc: what no notebook asks for, with any preset")
    stored.add_argument("--yes", action="store_true", help="gc: remove it, too")
    stored.set_defaults(run=look_after_store)

    export = commands.add_parser("export", help="write the tables behind a figure's panels as CSV")
    export.add_argument("name", choices=NAMES, metavar="NAME")
    export.add_argument("--preset", default="digits")
    export.add_argument("--out", type=Path, default=Path("."), help="folder to write to (default: this one)")
    export.set_defaults(run=write_tables)

    site = commands.add_parser(
        "site", help="write one page with the interactive diagrams, the figures and the scorecard"
    )
    site.add_argument("--preset", default="digits", help="whose figures and scorecard it shows")
    site.set_defaults(run=write_site)
    return parser


def _add_figures(commands) -> None:
    figures = commands.add_parser("figures", help="run the notebooks and draw their figures")
    figures.add_argument("names", nargs="*", metavar="NAME", help=f"notebooks, by default all: {' '.join(NAMES)}")
    figures.add_argument(
        "--preset", default="digits", help="digits (default): small, no download; paper: the paper's scale"
    )
    figures.add_argument(
        "--fresh",
        action="store_true",
        help="train and measure everything anew, or go on with such a run",
    )
    figures.add_argument(
        "--jobs", type=int, help="processes (default: one per core; on a GPU one, which shares it out)"
    )
    outcome = figures.add_mutually_exclusive_group()
    outcome.add_argument("--in-place", action="store_true", help="keep the outputs in the notebooks themselves")
    outcome.add_argument(
        "--tables-only", action="store_true", help="train and measure what is missing, draw nothing: needs no Jupyter"
    )
    _add_device(figures)
    figures.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="train and measure on a Dask cluster")
    figures.add_argument("--dry-run", action="store_true", help="only say what is missing, and about how long it takes")
    figures.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="another value for a parameter of the notebooks, as YAML writes it",
    )  # fmt: skip
    figures.set_defaults(run=draw)


def _add_measure(commands) -> None:
    own = commands.add_parser("measure", help="measure a network of your own")
    own.add_argument("model", metavar="MODULE:FUNCTION", help="a function that returns the network, an nn.Module")
    own.add_argument(
        "--data", required=True,
        help="folder:PATH, digits, mnist, fashion_mnist, cifar10 or imagenet, standardised by the training images; "
        "or MODULE:FUNCTION, which returns a repro.data.Dataset of images prepared as the network needs them",
    )  # fmt: skip
    own.add_argument(
        "--analysis", type=names, default="single-unit,cumulative,noise,selectivity",
        help="by commas (default: single-unit,cumulative,noise,selectivity)",
    )  # fmt: skip
    own.add_argument("--out", type=Path, required=True, help="folder for the tables and the summary")
    own.add_argument("--layers", type=names, help="unit layers, by commas (default: all)")
    own.add_argument(
        "--outputs", type=integers, metavar="I,J,…",
        help="the network's output for each class (default: one per class, in order)",
    )  # fmt: skip
    own.add_argument("--images", type=int, help="measure at most so many images of each split")
    _add_device(own)
    own.set_defaults(run=measure_own)


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default=os.environ.get("REPRO_DEVICE", "auto"))


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def integers(text: str) -> list[int]:
    return [int(name) for name in text.split(",")]


# repro figures --------------------------------------------------------------------------------------------------------


def draw(options) -> int:
    """Run notebooks as processes side by side, then write the scorecard and say what came out."""
    names = list(dict.fromkeys(options.names)) or NAMES
    if not (options.dry_run or options.tables_only):
        execution.prepare()
    jobs = _processes(options)
    if options.fresh or options.tables_only:
        options.parameters.append(["compute", "missing"])  # a preset may say otherwise
    parameters = chosen(names, options.preset, options.parameters)
    if options.in_place and any(parameters.values()):
        raise Refused("--in-place: notebooks keep the outputs of their own parameters; leave out --preset and -p")
    # A fresh run fills an empty store beside the other: interrupted, it goes on where it was, and the old results stay
    # until the new ones are complete.
    final = store.root()
    root = final / "fresh" if options.fresh else final
    surroundings = {"REPRO_DEVICE": options.device, "REPRO_STORE": str(root)}
    if options.scheduler:
        surroundings["REPRO_SCHEDULER"] = options.scheduler
    if options.dry_run:
        with environment(**surroundings):
            return _say_what_is_missing(names, parameters)
    with store.lock("fresh", wait=False) if options.fresh else nullcontext(True) as mine:
        if not mine:
            raise Refused("another --fresh is at work on this store; wait for it, or give this one its own REPRO_STORE")
        with environment(**surroundings):
            if options.tables_only:
                results = _make_tables(names, parameters, jobs)
            else:
                results = execution.run(names, parameters, options.preset, jobs)
            failed = [name for name, result in results.items() if result["error"]]
            made = _asked(names, parameters) if options.fresh and not failed else set()
        if options.in_place and not failed:
            execution.keep_outputs([results[name]["output"] for name in names])
        if options.fresh and not failed:
            keeping.merge(made, root, final)
    if not options.tables_only:
        write_scorecard(options.preset)
        _print_results(results, options.preset)
    _print_failures({name: results[name] for name in failed})
    return 1 if failed else 0


def _processes(options) -> int:
    """How many processes work side by side. On a GPU the default is one: it trains MLPs together, and has all the memory."""
    gpu = not (options.scheduler or os.environ.get("REPRO_SCHEDULER")) and _device(options).type == "cuda"
    jobs = (1 if gpu else joblib.cpu_count()) if options.jobs is None else options.jobs
    if jobs < 1:
        raise Refused(f"--jobs: expected a number from 1, got {jobs}")
    return jobs


def _device(options):
    """The device that --device, or REPRO_DEVICE, asks for."""
    from repro.training import device

    try:
        with environment(REPRO_DEVICE=options.device), renamed({"REPRO_DEVICE": "--device"}):
            return device()
    except ValueError as error:
        raise Refused(error) from error


def _check_folder(path: Path) -> None:
    """Refuse an --out that is no folder and cannot become one, before anything is computed that could not be written."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Refused(f"--out: expected a folder that can be made, got {str(path)!r}")


def _asked(names: list[str], parameters: dict[str, dict]) -> set[Path]:
    """The files of the store that these notebooks read, as far as they are there."""
    return set().union(*(_there(_calls(name, parameters[name])) for name in names))


def _there(calls: list) -> set[Path]:
    return {file for call in calls for file in call.files if file.exists()}


def _make_tables(names: list[str], parameters: dict[str, dict], jobs: int) -> dict[str, dict]:
    """Run the code of notebooks in this process, one after another; what they ask of the store is there afterwards."""
    results = {}
    with environment(REPRO_JOBS=str(jobs)):
        for name in names:
            try:
                calls = _calls(name, parameters[name], compute="missing")
                print(f"{name}: {len(_there(calls))} files in the store")
                results[name] = {"error": ""}
            except Exception as error:  # as where each notebook has a process, the others still run
                results[name] = {"error": f"{type(error).__name__}: {error}"}
    return results


def _print_results(results: dict[str, dict], preset: str) -> None:
    print(f"\n{'notebook':9} {'panels':9} {'seconds':>7}  verdicts")
    for name, result in results.items():
        if result["error"]:  # what stands in the folder is an earlier run's
            print(f"{name:9} {'–':9} {result['seconds']:7.1f}  failed")
            continue
        record = notebooks.record(name, preset)
        drawn = "".join(letter for letter in record["panels"] if letter not in record["missing"])
        verdicts = ", ".join(f"{v['claim']} {v['verdict']}" for v in record["verdicts"])
        left_out = f"  (not in data/: {''.join(record['missing'])})" if record["missing"] else ""
        print(f"{name:9} {drawn or '–':9} {result['seconds']:7.1f}  {verdicts}{left_out}")
    print(f"\nfigures and scorecard: {store.figures(preset)}")


def _print_failures(results: dict[str, dict]) -> None:
    for name, result in results.items():
        output = result.get("output")  # papermill's, unless the process was killed before
        drawn = f"\n  what it had drawn: {output}" if output and output.exists() else ""
        print(f"\n{name} failed: {result['error']}{drawn}", file=sys.stderr)


def write_scorecard(preset: str) -> None:
    """Collect the verdicts that stand beside the figures into scorecard.md and scorecard.json."""
    from repro.claims import scorecard
    from repro.claims.verdicts import BEFOREHAND

    verdicts = [verdict for name in NAMES for verdict in notebooks.record(name, preset)["verdicts"]]
    folder = store.figures(preset)
    content = json.dumps(verdicts, indent=1, ensure_ascii=False) + "\n"
    store.write_whole(folder / "scorecard.json", content.encode())
    title = f"# Scorecard, preset {preset}\n\nIntervals are 95 % bootstraps. {BEFOREHAND}\n\n"
    store.write_whole(folder / "scorecard.md", (title + scorecard(verdicts) + "\n").encode())


def _say_what_is_missing(names: list[str], parameters: dict[str, dict]) -> int:
    from repro import training
    from repro.experiment import Missing

    networks, tables = {}, set()
    for name in tqdm(names, desc="reading notebooks", leave=False):
        calls = [call for call in _calls(name, parameters[name]) if isinstance(call.table, Missing)]
        new = dict.fromkeys(recipe for call in calls for recipe in call.table.networks if recipe not in networks)
        files = {file for call in calls for file in call.files if file.suffix == ".parquet" and not file.exists()}
        tqdm.write(f"{name:6} {len(new):4} networks to train, {len(files - tables):4} tables to measure")
        networks |= new
        tables |= files
    seconds, known = 0.0, {}
    for recipe in networks:  # networks that differ in seed and corruption alone take equally long
        like = replace(recipe, seed=0, corruption=0.0)
        try:
            if like not in known:
                known[like] = training.estimate(like)
        except (ValueError, FloatingPointError) as error:  # its data set is not here; or it diverges
            raise Refused(
                f"{len(networks)} networks are missing, how long they take cannot be told: {error}"
            ) from error
        seconds += known[like]
    print(
        f"in all {len(networks)} networks and at least {len(tables)} tables; "
        f"training takes about {seconds / 60:.1f} core-minutes"
    )
    return 0


def _calls(name: str, parameters: dict, compute: str = "nothing") -> list:
    """What a notebook asks of `measure`; parameters that fit by type, but not in value, are refused."""
    try:
        return replay(name, parameters, compute)
    except (TypeError, ValueError, AssertionError) as error:
        raise Refused(f"{name} cannot be run with these parameters: {error}") from error


def write_tables(options) -> int:
    """repro export: the tables behind each panel as CSV."""
    import pandas as pd

    from repro.experiment import Missing

    _check_folder(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    calls = _calls(options.name, chosen([options.name], options.preset)[options.name])
    tables: dict[Path, dict] = {}
    missing = False
    for panel, analysis, table, files, chosen_options in calls:
        if isinstance(table, Missing):
            missing = True
            print(f"{options.name}{panel} {analysis}: {table}", file=sys.stderr)
        else:
            own = {name: value for name, value in chosen_options.items() if name not in ("split", "compute")}
            what = [f"{name}-{value}" for name, value in own.items() if isinstance(value, str | bool)]
            path = options.out / f"{'-'.join([options.name + panel, analysis, *what])}.csv"
            # A panel may ask twice, for its picture and for its claim.
            tables.setdefault(path, {})[tuple(files)] = table
    for path, parts in tables.items():
        table = pd.concat(parts.values())
        store.write_whole(path, table.to_csv(index=False).encode())
        print(f"{path}: {len(table)} rows")
    return int(missing)


# repro measure --------------------------------------------------------------------------------------------------------


def measure_own(options) -> int:
    """repro measure: tables and a page of summary about a network that a function returns."""
    from torch import nn

    from repro import summary
    from repro.analyses import ANALYSES, each_table
    from repro.data import Dataset

    device = _device(options)
    _check_folder(options.out)
    model = _made("model", options.model, nn.Module)
    kind, colon, _ = options.data.partition(":")
    try:
        tables = {}
        with renamed(SHELL):
            for name, table in each_table(
                check_model(model).to(device),
                _made("--data", options.data, Dataset) if colon and kind != "folder" else options.data,
                [name.replace("-", "_") for name in options.analysis],
                layers=options.layers,
                outputs=options.outputs,
                images=options.images,
            ):
                tables[name] = table
                path = options.out / f"{name.replace('_', '-')}.parquet"
                store.write_whole(path, table.to_parquet(index=False))
                store.write_whole(path.with_suffix(".csv"), table.to_csv(index=False).encode())
                tqdm.write(f"{path} and .csv: {len(table)} rows")
    except ValueError as error:
        raise Refused(error) from error
    print(summary.write(tables, options.out))
    there = {path.stem.replace("-", "_") for path in options.out.glob("*.parquet")} & ANALYSES.keys()
    if others := sorted(there - tables.keys()):
        print(f"{', '.join(others)}: of an earlier run, and not in the summary")
    return 0


def _made(argument: str, name: str, kind: type):
    """What the function MODULE:FUNCTION returns, of a kind; modules in the current folder are found, too."""
    module, _, function = name.partition(":")
    if not function:
        raise Refused(
            f"{argument}: expected MODULE:FUNCTION, where the function returns a {kind.__name__}; got {name!r}"
        )
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
        made = found if isinstance(found, kind) else found()
    except Exception as error:  # it is the user's code
        raise Refused(f"{argument}: {name!r} gives no {kind.__name__}: {type(error).__name__}: {error}") from error
    if not isinstance(made, kind):
        raise Refused(f"{argument}: {name!r} gives a {type(made).__name__}, expected a {kind.__name__}")
    return made


# The other commands ---------------------------------------------------------------------------------------------------


def list_notebooks(options) -> int:
    """repro list: every notebook with its first line and its parameters."""
    for name in NAMES:
        cells = read(name)
        print(f"{name}: {notebooks.title(cells)}")
        print(f"    parameters: {', '.join(defaults(cells))}")
    return 0


def print_report(options) -> int:
    """repro report: the scorecard of a preset."""
    chosen([], options.preset)  # refuses a preset that there is not
    path = store.figures(options.preset) / "scorecard.md"
    if not path.exists():
        raise Refused(f"no scorecard for preset {options.preset!r} yet; run: repro figures --preset {options.preset}")
    print(path.read_text(encoding="utf-8"))
    return 0


def write_site(options) -> int:
    """repro site: figures/site/index.html, which opens from disk."""
    chosen([], options.preset)  # refuses a preset that there is not
    from repro import site

    try:
        path = site.write(options.preset)
    except ValueError as error:
        raise Refused(error) from error
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def look_after_store(options) -> int:
    """repro store ls | verify | gc: what each file is; whether all are whole; which ones nothing refers to any more."""
    if os.environ.get("REPRO_STORE") and not store.root().exists():
        raise Refused(f"REPRO_STORE: there is no folder {store.root()}")
    referred = notebooks.referred() if options.action == "gc" else None  # before anything is read: it may refuse
    sound, damaged = keeping.read_all()
    if options.action == "ls":
        for entry in sound:
            print(keeping.described(entry))
    elif options.action == "gc":
        keeping.remove([entry for entry in sound if entry not in referred], options.yes)
    else:
        print(f"{len(sound)} files whole, {damaged} damaged in {store.root()}")
        keeping.report_orphans(sound)
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
