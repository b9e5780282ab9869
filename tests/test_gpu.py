"""Without a GPU: what is measured and trained on a pretended one is what comes out on the CPU, to the last bit. With one: what
is trained there, compiled, is what the CPU trains, but for rounding."""

import functools
import inspect
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from repro import checkpoints, data, experiment, models, noise, training, units
from repro.analyses import ANALYSES
from repro.evaluation import PRODUCTS, evaluating, full_precision
from repro.training import Group, Recipe, Run, fastest
from tests import networks
from tests.pretended import GPU, gpu

pytestmark = pytest.mark.filterwarnings("ignore:for .*meta parameter")

NETWORKS = {
    "mlp": lambda: models.mlp(192, [9, 8], 4),
    "convnet": lambda: models.convnet([4] * 11, classes=4),
    "residual": lambda: networks.Residual(classes=4),
    "functional": lambda: networks.Functional(classes=4),
}
SHORT = {"orders": 2, "steps": 4, "repeats": 2, "scales": [0.0, 1.0]}


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_measurements(network, name):
    _same_on_gpu(NETWORKS[network](), name)


@pytest.mark.parametrize("value", ["mean", "mean_per_position", "resampled"])
@pytest.mark.parametrize("name", ["single_unit", "cumulative"])
def test_values(name, value):
    _same_on_gpu(NETWORKS["convnet"](), name, value=value)


def test_resnet():
    _same_on_gpu(models.resnet50(4, 0.0625, small_images=True), "cumulative", layers=models.ABLATED_LAYERS["resnet50"])


def _same_on_gpu(model, name, **options):
    kind = ANALYSES[name]
    x, y = torch.randn(24, 3, 8, 8), torch.arange(24) % 4
    arguments = [x, y] * (1 + kind.both_splits)
    known = inspect.signature(kind.function).parameters
    options |= {option: value for option, value in SHORT.items() if option in known}
    expected = kind.function(model, *arguments, **options)
    with gpu():
        found = kind.function(model.to(GPU), *(t.to(GPU) for t in arguments), **options)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_draws_do_not_depend_on_the_memory_of_a_gpu():
    model = models.convnet([8, 8], [1, 1], 3)
    x, y = torch.randn(300, 3, 8, 8), torch.arange(300) % 3
    found, blocks = [], []
    for free in (2**20, 2**30):
        with gpu(free):
            found.append(noise.sweep(model.to(GPU), x.to(GPU), y.to(GPU), [1.0], repeats=2))
            blocks.append(list(units.Cut(model, x.to(GPU)).blocks(300)))
    assert found[0].equals(found[1]) and blocks[0] != blocks[1]


SMALL = {"dataset": "digits", "n_train": 200, "epochs": 2}
CONVNET = SMALL | {"model": "convnet", "width": 0.06}
RECIPES = {
    "mlp": Recipe(**SMALL, model="mlp", width=16, dropout=0.2),
    "sgd": Recipe(**CONVNET),
    "adam": Recipe(**CONVNET, optimizer="adam"),
    "alpha": Recipe(**CONVNET, alpha=0.5),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_training(recipe):
    expected = _trained(Run(recipe)).network()
    with gpu():
        run = Run(recipe, GPU)
        run.advance()
        resumed = Run(recipe, GPU)
        resumed.resume(run.state())
        found = [_trained(run).network(), _trained(resumed).network()]
    for network in found:
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), expected.parameters(), strict=True))


def test_a_machine_that_cannot_compile_trains_all_the_same():
    def no_compiler(*_):
        raise RuntimeError("no Triton here")

    model, x = models.convnet([4] * 11, classes=4).eval(), torch.randn(2, 3, 8, 8)
    with fastest():
        assert torch.equal(torch.compile(model, backend=no_compiler)(x), model(x))


def test_training_together():
    recipes = [Recipe(**SMALL, model="mlp", width=16, seed=seed, corruption=seed / 2) for seed in range(3)]
    expected = _trained(Group(recipes)).networks()
    with gpu():
        found = _trained(Group(recipes, GPU)).networks()
    for network, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_experiment(monkeypatch, tmp_path):
    """Recipes to tables: MLPs as a group, with snapshots, a ConvNet alone and resumed, and the device in every row."""
    mlps = [Recipe(**SMALL, model="mlp", width=16, seed=seed, corruption=seed / 2) for seed in range(3)]
    calls = [
        lambda: experiment.measure("cumulative", mlps, epochs=[1, 2], orders=2, steps=4, images=50),
        lambda: experiment.measure("selectivity", [Recipe(**CONVNET)], split="test"),
        lambda: experiment.measure("history", [Recipe(**CONVNET)]),
    ]
    expected = [call() for call in calls]
    monkeypatch.setenv("REPRO_STORE", str(tmp_path / "gpu"))
    # A device with its number: without one torch asks the driver which is current.
    for module in (training, checkpoints, experiment):
        monkeypatch.setattr(module, "device", lambda: GPU)
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", 0)
    with gpu(), full_precision():
        found = [call() for call in calls]
    for table, other in zip(found, expected, strict=True):
        device = next(name for name in table if name.endswith("_device"))
        assert set(table[device]) == {"Pretended"}
        pd.testing.assert_frame_equal(table.drop(columns=device), other.drop(columns=device), check_exact=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["sgd", "adam", "alpha"])
def test_training_on_a_gpu(kind, precision, monkeypatch):
    """Training moves a logit by about 5e-3; rounding by 5e-5, that of bfloat16 by up to 2e-3."""
    monkeypatch.setattr(training, "COMPILED", 0)
    monkeypatch.setattr(training, "fastest", functools.partial(fastest, suppress_errors=False))
    torch._dynamo.reset()
    counters.clear()
    lr = 1e-3 if kind == "adam" else 1e-2
    recipe, there = replace(RECIPES[kind], precision=precision, lr=lr), torch.device("cuda")
    run, resumed = Run(recipe, there), Run(recipe, there)
    run.advance()
    resumed.resume(run.state())
    x = data.load("digits").x_test
    expected = _trained(Run(recipe, torch.device("cpu"))).network()(x)
    for found in (run, resumed):
        logits = _trained(found).network()(x)
        torch.testing.assert_close(logits, expected, atol=3e-4 if precision == "float32" else 3e-3, rtol=0)
    assert (counters["stats"]["unique_graphs"] > 0) == (not recipe.alpha)


def _trained(run):
    while not run.done:
        run.advance()
    return run


def test_the_pretended_gpu_is_strict():
    with gpu():
        there, here = torch.ones(3).to(GPU), torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there.add_(1) is there and there.tolist() == [2, 2, 2]
        assert (there * 2.0)[1:].cpu().tolist() == [4, 4]
        kernel, image = torch.full((1, 1, 1, 1), 1 + 2**-12), torch.ones(1, 1, 1, 1)
        assert torch.conv2d(image.to(GPU), kernel.to(GPU)).item() == 1  # shortened
        assert torch.conv2d(image, kernel).item() > 1


@pytest.mark.parametrize("benchmark", [True, False])
def test_the_tuning_of_convolutions_is_given_back(benchmark, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    with pytest.raises(ZeroDivisionError), evaluating(nn.Linear(2, 2)):
        assert not torch.backends.cudnn.benchmark
        raise ZeroDivisionError
    assert torch.backends.cudnn.benchmark == benchmark


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_precision_is_given_back(asked):
    torch.set_float32_matmul_precision(asked)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    before = [kind.fp32_precision for kind in PRODUCTS]
    try:
        with pytest.raises(ZeroDivisionError), full_precision():
            assert {kind.fp32_precision for kind in PRODUCTS} == {"ieee"}
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
            raise ZeroDivisionError
        assert [kind.fp32_precision for kind in PRODUCTS] == before
        assert torch.get_float32_matmul_precision() == asked and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_precisions_that_the_older_switch_cannot_tell_are_given_back():
    matmul = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [kind.fp32_precision for kind in matmul]
    try:
        matmul[0].fp32_precision, matmul[1].fp32_precision = "tf32", "bf16"
        with full_precision():
            assert [kind.fp32_precision for kind in matmul] == ["ieee", "ieee"]
        assert [kind.fp32_precision for kind in matmul] == ["tf32", "bf16"]
    finally:
        torch.set_float32_matmul_precision("highest")
        for kind, precision in zip(matmul, before, strict=True):
            kind.fp32_precision = precision
