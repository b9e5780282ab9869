"""The same network gives the same table on any number of threads, but for rounding."""

import copy

import numpy as np
import pytest
import torch

from repro import ablation, noise, selectivity
from tests import networks

LOSS = 1e-5  # relative: sums in another order
IMAGES = 1  # that may change sides where two logits are equal but for rounding

KINDS = {name: (model, x, y) for name, model, x, y in networks.every() if name in ("mlp", "convnet with batch norm")}
ANALYSES = {
    "single_unit": lambda model, x, y: ablation.single_unit(model, x, y),
    "cumulative": lambda model, x, y: ablation.cumulative(model, x, y, orders=2, steps=5),
    "noise": lambda model, x, y: noise.sweep(model, x, y, scales=[0, 0.5, 1.0], repeats=2),
    "selectivity": lambda model, x, y: selectivity.table(model, x, y),
}


def on_threads(number, analysis, *arguments):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        return analysis(*arguments)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("kind", KINDS)
def test_tables_agree_on_any_number_of_threads(kind, analysis):
    model, x, y = KINDS[kind]
    x, y = torch.cat([x] * 4), torch.cat([y] * 4)  # enough for several blocks
    one, *others = (on_threads(n, ANALYSES[analysis], model, x, y) for n in (1, 2, 3))
    for other in others:
        assert other.columns.equals(one.columns) and len(other) == len(one)
        for column in one:
            left, right = one[column], other[column]
            if "accuracy" in column:
                assert (left - right).abs().max() * len(x) <= IMAGES + 1e-6
            elif left.dtype.kind == "f":
                np.testing.assert_allclose(right, left, rtol=LOSS, atol=LOSS)
            else:
                assert left.equals(right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("analysis", ["single_unit", "cumulative", "selectivity"])
@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_a_gpu_agree_with_those_of_the_cpu(kind, analysis):
    model, x, y = KINDS[kind]
    cpu = ANALYSES[analysis](model, x, y)
    gpu = ANALYSES[analysis](copy.deepcopy(model).cuda(), x.cuda(), y.cuda())
    for column in cpu.select_dtypes("number"):
        if "accuracy" in column:
            assert (cpu[column] - gpu[column]).abs().max() * len(x) <= IMAGES + 1e-6
        elif column in ("loss", "delta_loss", "selectivity"):
            np.testing.assert_allclose(gpu[column], cpu[column], rtol=LOSS, atol=LOSS)
