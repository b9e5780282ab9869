"""Dependencies, their pins, and who may import whom: what would otherwise drift apart unnoticed."""

import ast
import fnmatch
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import repro
from repro import notebooks

ROOT = Path(repro.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.txt").read_text()
PINS = [Requirement(line.rstrip(" \\")) for line in LOCK.splitlines() if re.match(r"[a-z0-9]", line)]
CORE = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
EXTRAS = {
    extra: [Requirement(text) for text in texts] for extra, texts in PROJECT["project"]["optional-dependencies"].items()
}
DIRECT = CORE + [requirement for extra in EXTRAS.values() for requirement in extra]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())

# Versions known to work together; a later release of the same beginning will do.
KNOWN_TO_WORK = """
    torch 2.15.0, torchvision 0.29.2, numpy 2.4, pandas 3.1, pyarrow 26, scikit-learn 1.9, scipy 1.17, safetensors 0.8,
    joblib 1.6, tqdm 4.70, seaborn 0.13.2, matplotlib 3.11, statsmodels 0.15, papermill 2.7.0, jupyterlab 4.6,
    anywidget 0.11, ipywidgets 8.1, dask 2026.8, distributed 2026.8, captum 0.9, pytest 9.2, nbval 0.11.0,
    hypothesis 6.170, playwright 1.65, ruff 0.17
"""


def pins(name, **environment):
    """The pins of a package; of an environment (markers' values), the one that holds there."""
    found = [pin for pin in PINS if pin.name == canonicalize_name(name)]
    if environment:
        found = [pin for pin in found if pin.marker is None or pin.marker.evaluate(environment)]
    return found


def version(pin):
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


# Pins -------------------------------------------------------------------------------------------------------


def test_the_lock_was_read():
    assert len(PINS) > 100
    assert "uv pip compile pyproject.toml --all-extras" in LOCK.splitlines()[1]  # how to make it


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_within_its_bounds(requirement):
    assert pins(requirement.name)
    for pin in pins(requirement.name):
        assert version(pin) in requirement.specifier


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_every_direct_dependency_has_one_pin_on_every_platform(python, platform):
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": platform}
    for requirement in DIRECT:
        assert len(pins(requirement.name, **environment)) == 1, requirement.name


def test_the_pins_are_those_known_to_work_together():
    here = {"python_version": "3.11", "python_full_version": "3.11.9"}
    for name, prefix in (entry.split() for entry in KNOWN_TO_WORK.split(",")):
        (pin,) = pins(name, **here)
        assert (version(pin) + ".").startswith(prefix + "."), name


def test_every_pin_is_exact_and_hashed():
    _, *blocks = re.split(r"\n(?=[a-z0-9])", LOCK)
    assert len(blocks) == len(PINS)
    for block in blocks:
        assert re.match(r"[a-z0-9.-]+==[^ ]+ ", block) and block.count("--hash=sha256:") >= 1, block[:80]


def test_what_exists_on_linux_alone_is_marked():
    for pin in PINS:
        if pin.name.startswith("nvidia-") or pin.name == "triton":
            for platform in ("darwin", "win32"):
                assert pin.marker and not pin.marker.evaluate({"sys_platform": platform, "platform_system": platform})


@pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="another environment than the one that make sets up")
def test_what_is_installed_is_what_is_pinned():
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate():
            assert importlib.metadata.version(pin.name) == version(pin)


@pytest.mark.parametrize("file", ["requirements.txt", "pyproject.toml", "environment.yml", "postBuild", "Makefile"])
def test_no_index_is_named(file):
    path = ROOT / file
    text = path.read_text().replace("--no-emit-index-url", "")
    assert not re.search(r"index-url|--index|find-links|trusted-host|/simple|://|file:", text)


# The conda environment --------------------------------------------------------------------------------------


def test_the_conda_environment_installs_the_same_pins():
    assert ENVIRONMENT["name"] == "repro" and ENVIRONMENT["channels"] == ["conda-forge"]
    *conda, pip = ENVIRONMENT["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]}  # conda resolves it beside environment.yml
    assert {re.match(r"[a-z]+", name)[0] for name in conda} == {"python", "pip", "git", "make"}
    (python,) = (name.partition("=")[2] for name in conda if name.startswith("python"))
    assert f"{python}.9" in SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"--python-version {python}" in LOCK.splitlines()[1]


def test_the_package_itself_is_installed_beside_the_pins():
    install = "pip install --no-deps --no-build-isolation -e ."
    assert install in (ROOT / "environment.yml").read_text()
    assert install in (ROOT / "postBuild").read_text()
    for text in PROJECT["build-system"]["requires"]:  # without isolation, the pins have to bring it along
        requirement = Requirement(text)
        (pin,) = pins(requirement.name)
        assert version(pin) in requirement.specifier


# The package ------------------------------------------------------------------------------------------------


def test_every_file_of_the_package_is_shipped():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    for path in (ROOT / "repro").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path
        if path.suffix == ".py":
            assert (path.parent / "__init__.py").exists()


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == repro.__version__
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Morcos", "Barrett", "Rabinowitz", "Botvinick"]
    assert "1803.06959" in paper["url"] and paper["year"] == 2018


# Who imports whom -------------------------------------------------------------------------------------------

# Lowest first: a module imports lower ones only.
ORDER = [
    "checks",
    "evaluation",
    "data",
    "models",
    "work",
    "graph",
    "units",
    "values",
    "ablation",
    "noise",
    "selectivity",
    "beyond",
    "analyses",
    "recipe",
    "training",
    "store",
    "checkpoints",
    "experiment",
]
ORDER += ["claims", "plots", "summary", "widgets", "notebooks", "kernel", "execution", "keeping", "site", "cli"]
CORE_MODULES = ORDER[: ORDER.index("experiment") + 1]
# Distribution of what is imported under another name, or comes with a dependency of ours.
DISTRIBUTION = {
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "PIL": "torchvision",
    "IPython": "ipywidgets",
    "ipykernel": "jupyterlab",
    "jupyter_client": "nbclient",
    "traitlets": "ipywidgets",
}
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "repro").rglob("*.py"))}
SOURCES_IDS = [str(path.relative_to(ROOT)) for path in SOURCES]
each_source = pytest.mark.parametrize("path", SOURCES, ids=SOURCES_IDS)


def module(path):
    """Which of ORDER a file belongs to; None: repro/__init__.py."""
    name = path.relative_to(ROOT / "repro").parts[0].removesuffix(".py")
    return None if name == "__init__" else name


def imports(path, whole=True):
    """Full names of what a file imports: anywhere in it, or when it is imported itself."""
    tree = SOURCES[path]
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@each_source
def test_modules_import_lower_ones_only(path):
    own = module(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("repro.")} - {own, "__version__"}
    assert own is None or own in ORDER, "a new module needs its place in ORDER"
    lower = set() if own is None else set(ORDER[: ORDER.index(own)])
    assert used <= lower


def distributions(names):
    """The distributions that modules of these names belong to, less the standard library and this package."""
    tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"repro"}
    return {DISTRIBUTION.get(top, top) for top in tops}


@each_source
def test_every_import_is_a_declared_dependency(path):
    core, cluster, everything = (
        {canonicalize_name(r.name) for r in group} for group in (CORE, EXTRAS["cluster"], DIRECT)
    )
    if module(path) in CORE_MODULES:  # which works without any extra, but for spreading work over a cluster
        assert distributions(imports(path, whole=False)) <= core
        assert distributions(imports(path)) <= core | cluster
    assert distributions(imports(path)) <= everything


@each_source
def test_nothing_is_unpickled(path):
    names = {name.split(".")[0] for name in imports(path)} | set(imports(path))
    assert not names & {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib.load", "torch.load", "numpy.load"}
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Attribute):
            assert not node.attr.endswith("pickle")
            if node.attr in ("load", "save") and isinstance(node.value, ast.Name):
                assert node.value.id not in ("torch", "joblib", "np", "numpy"), f"{path}:{node.lineno}"


def test_the_core_imports_without_what_figures_need():
    blocked = {
        re.sub("^pyyaml$", "yaml", r.name) for extra in ("figures", "cluster", "test", "bench") for r in EXTRAS[extra]
    }
    blocked = blocked - {"scipy"} | {"IPython", "ipykernel", "jupyter", "jupyter_client", "notebook"}
    program = f"""
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Block())
for name in {[*CORE_MODULES, "claims", "cli"]}:
    importlib.import_module(f"repro.{{name}}")
assert not {blocked} & set(sys.modules)
try:
    import matplotlib
except ImportError:
    print("blocked and imported")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "blocked and imported\n", done.stderr


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_notebooks_show_the_verdicts_that_stand_beside_the_figures(name):
    """`make notebooks` keeps the outputs committed with a notebook and figures/digits together; nbval compares them."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    checking = [cell for cell in cells if any("text/markdown" in o.get("data", {}) for o in cell.get("outputs", []))]
    assert all("nbval-check-output" in cell["metadata"]["tags"] for cell in checking)
    shown = [output["data"] for cell in cells for output in cell.get("outputs", []) if "data" in output]
    texts = ["".join(data["text/markdown"]) for data in shown if "text/markdown" in data]
    verdicts = json.loads((ROOT / "figures" / "digits" / f"{name}.json").read_text(encoding="utf-8"))["verdicts"]
    heads = [f"**{v['claim']}, {v['subject']}: {v['verdict']}.** {v['statement']}" for v in verdicts]
    assert [text.splitlines()[0] for text in texts] == heads
    assert all(f"- rule: {v['rule']}" in text for text, v in zip(texts, verdicts, strict=True))
    assert any("image/png" in data for data in shown) and not any("widget-view" in str(list(data)) for data in shown)


# What the README says came out ------------------------------------------------------------------------------


def rows(head):
    """Rows of the README's table whose first column is called `head`, a dictionary each, without marks of footnotes."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} | claim |"))
    names, _, *rest = [[cell.strip(" ¹²³⁴") for cell in line.split("|")[1:-1]] for line in lines[start:]]
    return [dict(zip(names, row, strict=True)) for row in itertools.takewhile(bool, rest)]


def verdicts(preset, letter):
    """Verdicts of a preset's scorecard on claims that begin with a letter, and the panel and subject of each."""
    cards = json.loads((ROOT / "figures" / preset / "scorecard.json").read_text(encoding="utf-8"))
    return [card for card in cards if card["claim"].startswith(letter)]


def test_the_table_of_panels_says_what_the_scorecards_say():
    table, paper, digits = rows("panel"), verdicts("paper", "C"), verdicts("digits", "C")
    assert [row["claim"] for row in table] == [card["claim"] for card in paper]
    assert [row["verdict"] for row in table] == [card["verdict"] for card in paper]
    assert [row["verdict on digits"] for row in table] == [card["verdict"] for card in digits]
    again = {(card["claim"], card["subject"]): card["verdict"] for card in verdicts("paper-again", "C")}
    assert again and [row["other networks"] for row in table] == [
        again.pop((card["claim"], card["subject"]), "–") for card in paper
    ]
    assert not again


def test_the_table_of_later_work_says_what_the_scorecards_say():
    columns = {"MLP, digits": "mlp on digits", "ConvNet, digits": "convnet on digits", "MLP, MNIST": "mlp on mnist"}
    columns["ConvNet, cifar10-jpeg"] = "convnet on cifar10-jpeg"
    cards = {(v["claim"], v["subject"]): v["verdict"] for v in verdicts("paper", "X") + verdicts("digits", "X")}
    told = {(row["claim"], columns[name]): row[name] for row in rows("figure") for name in columns if row[name]}
    assert told == cards
