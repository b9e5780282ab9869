"""Kill it, fill its disk, turn its clock: afterwards the work is finished, and every result is the same bit for bit.

Moments are counted in calls of functions, so that a seed names the same moment on every machine.
"""

import json
import multiprocessing
import random
import signal

import pytest

from repro import store
from tests.faults import work

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.faults.work"])
PATIENCE = 300  # seconds


def start(folder, **options):
    folder.mkdir(exist_ok=True)
    process = server.Process(target=work.work, args=(folder,), kwargs=options)
    process.start()
    return process


def ended(process):
    process.join(PATIENCE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def contents(folder):
    """Everything in the store and among the figures but the circumstances of its making; all of it is whole."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_STORE", str(folder / "data"))
        for path in store.paths():
            origin = store.read_entry(path).origin
            if path.suffix == ".parquet":
                columns = store.read_table(path, origin).to_dict("list")
                found[f"{path.parent.name}/{path.name}"] = (
                    json.dumps(origin),
                    {name: list(map(repr, column)) for name, column in columns.items()},
                )
            else:
                tensors = store.read_tensors(path, origin)
                numbers = {name: (str(t.dtype), t.shape, t.numpy().tobytes()) for name, t in tensors.items()}
                found[f"{path.parent.name}/{path.name}"] = json.dumps(origin), numbers
    figures = folder.glob("figures/digits/[!.]*")
    return found | {path.name: path.read_bytes() for path in figures}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(what the work makes when nothing disturbs it, how many calls each step takes)."""
    folder, counted = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("counted")
    assert ended(start(folder)) == 0
    assert ended(start(counted, counting=True)) == 0
    counts = json.loads((counted / "counts").read_text())
    expected = contents(folder)
    kinds = [name.rpartition(".")[2] for name in expected]
    assert kinds.count("safetensors") == 9 and kinds.count("parquet") == 12 and kinds.count("png") == 1
    assert not list(folder.glob("data/work/*.safetensors")) and not list(folder.rglob(".*"))
    return expected, counts


def finish_and_compare(folder, expected):
    contents(folder)  # what is there is whole, though not yet all
    assert ended(start(folder)) == 0
    found = contents(folder)
    assert found.keys() == expected.keys()
    different = [name for name in expected if found[name] != expected[name]]
    assert not different


# Kills --------------------------------------------------------------------------------------------------------

MOMENTS = {1: 20, 2: 15, 4: 15}  # kills with so many processes on one store: 50 in all


@pytest.mark.parametrize(("processes", "seed"), [(n, seed) for n, kills in MOMENTS.items() for seed in range(kills)])
def test_killed_at_any_moment(processes, seed, tmp_path, undisturbed):
    expected, counts = undisturbed
    rng = random.Random(f"{processes} {seed}")
    step = rng.choice(list(work.STEPS))
    moment = rng.randrange(counts[step])
    victim = start(tmp_path, doomed=step, moment=moment)
    others = [start(tmp_path) for _ in range(processes - 1)]
    assert ended(victim) == -signal.SIGKILL
    assert [ended(process) for process in others] == [0] * len(others)  # they take over what it had begun
    finish_and_compare(tmp_path, expected)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_make_what_one_makes(processes, tmp_path, undisturbed):
    together = [start(tmp_path) for _ in range(processes)]
    assert [ended(process) for process in together] == [0] * processes
    assert contents(tmp_path) == undisturbed[0]


# A full disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_disk_that_fills_up(seed, tmp_path, undisturbed):
    budget = random.Random(seed).randrange(100_000)
    assert ended(start(tmp_path, before=[(work.fill_up, budget)])) == 1
    assert "No space left on device; free space or set REPRO_STORE" in (tmp_path / "said").read_text()
    assert not list(tmp_path.glob("*/*/.*"))  # nothing half-written
    finish_and_compare(tmp_path, undisturbed[0])


@pytest.mark.parametrize("size", [3000, 6000, 20_000])
def test_files_that_cannot_grow(size, tmp_path, undisturbed):
    assert ended(start(tmp_path, before=[(work.limit_files, size)])) == 1
    assert not list(tmp_path.glob("*/*/.*"))
    finish_and_compare(tmp_path, undisturbed[0])


# A clock that jumps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_clock_that_jumps(seed, tmp_path, undisturbed):
    expected, counts = undisturbed
    step = list(work.STEPS)[seed]
    victim = start(tmp_path, before=[(work.turn_the_clock, seed)], doomed=step, moment=counts[step] // 2)
    assert ended(victim) == -signal.SIGKILL
    assert ended(start(tmp_path, before=[(work.turn_the_clock, seed + 10)])) == 0
    assert contents(tmp_path) == expected
