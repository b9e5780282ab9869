"""Notebooks executed by papermill, several processes side by side."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import joblib
from tqdm import tqdm

from repro import notebooks, store

FORK = sys.platform == "linux"


def run(names: list[str], parameters: dict[str, dict], preset: str, jobs: int) -> dict[str, dict]:
    """Run notebooks, `jobs` at once; {name: seconds, error, output}."""
    prepare()
    at_once = min(jobs, len(names))
    folder = store.root() / "work" / "notebooks" / preset
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, joblib.cpu_count() // at_once))
    progress = folder / f"{os.getpid()}.progress"
    progress.write_text("")
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "REPRO_JOBS": str(max(1, jobs // at_once)),
        "REPRO_PROGRESS": str(progress),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    waiting, running, results, stillborn = list(names), {}, {}, set()
    every = 0.2 if sys.stderr.isatty() else 20.0  # seconds between two looks at the progress; a log needs few
    bar, shown = tqdm(total=len(names), unit="step", desc="figures", dynamic_ncols=True), time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                output = folder / f"{name}.ipynb"
                output.unlink(missing_ok=True)  # what an earlier run left would be taken for this one's
                running[name] = _start(name, output, parameters[name], environment), time.monotonic(), output
            for name, (process, start, output) in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[name]
                if process.exitcode and name not in stillborn and _never_began(output):
                    stillborn.add(name)
                    waiting.insert(0, name)
                    continue
                results[name] = {
                    "seconds": time.monotonic() - start,
                    "error": _cause(output, process.exitcode) if process.exitcode else "",
                    "output": output,
                }
            if time.monotonic() - shown > every:
                _show_progress(bar, progress, len(names), len(results), running)
                shown = time.monotonic()
            time.sleep(0.05)
    finally:
        for process, *_ in running.values():
            process.terminate()
        bar.close()
        progress.unlink()
    return {name: results[name] for name in names}


def prepare() -> None:
    """Begin to import what notebooks need, in the process that theirs are forked from, while this one does something else."""
    if FORK:
        multiprocessing.set_forkserver_preload(["papermill", "repro.kernel"])
        forkserver.ensure_running()


def _start(name: str, output: Path, parameters: dict, environment: dict) -> BaseProcess:
    """Run a notebook in a process of its own."""
    context = multiprocessing.get_context("forkserver" if FORK else "spawn")
    source = notebooks.FOLDER / f"{name}.ipynb"
    output.with_suffix(".log").write_text("")  # of an earlier run; a process may die before it writes its own
    process = context.Process(target=_execute, args=(source, output, parameters, environment))
    process.start()
    return process


def _execute(source: Path, output: Path, parameters: dict, environment: dict) -> None:
    os.environ.clear()  # what the first process of all was started with
    os.environ.update(environment)
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    # A file and not a pipe: nobody reads along, and a full pipe stops the kernel.
    with open(output.with_suffix(".log"), "w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    import papermill

    how = {"cwd": str(source.parent), "kernel_name": "python3", "progress_bar": False}
    if FORK:
        from repro.kernel import ForkingManager

        how["kernel_manager_class"] = ForkingManager
    papermill.execute_notebook(str(source), str(output), parameters, **how)


def _end_with_the_command() -> None:
    """End this process, and with it its kernel, when the command is killed: nobody waits for what it makes."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _never_began(output: Path) -> bool:
    """Whether the kernel died before it ran anything, as it does when another program takes the port that it was given."""
    return "Kernel died before replying" in output.with_suffix(".log").read_text(encoding="utf-8", errors="replace")


def _show_progress(bar, path: Path, total: int, finished: int, running: dict) -> None:
    """Steps are notebooks and tables: what the notebooks said they have before them, and what is done."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    bar.total = total + sum(int(n) for what, n in lines if what == "planned")
    bar.n = finished + sum(int(n) for what, n in lines if what == "done")
    bar.set_postfix_str(" ".join(running), refresh=False)
    bar.refresh()


def _cause(output: Path, code: int) -> str:
    """The cell and the error that a notebook failed with, from what papermill left of it and its exit code."""
    import nbformat

    with contextlib.suppress(OSError, ValueError):  # not written at all, or half of it
        for cell in nbformat.read(output, as_version=4).cells:
            for out in cell.get("outputs", []):
                if out.output_type == "error":
                    what = out.evalue.strip().partition("\n")[0]
                    return f"in the cell that begins {cell.source.partition(chr(10))[0]!r}: {out.ename}: {what}"
    lines = output.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"its process ended with {code}; was it killed, or out of memory?"


def keep_outputs(executed: list[Path]) -> None:
    """Put executed notebooks in the place of their sources, without what changes from run to run."""
    import nbformat

    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        for part in (notebook, *notebook.cells):
            for changing in ("papermill", "execution", "widgets"):
                part.metadata.pop(changing, None)
        text = nbformat.writes(notebook)
        store.write_whole(notebooks.FOLDER / path.name, (text.rstrip("\n") + "\n").encode())
