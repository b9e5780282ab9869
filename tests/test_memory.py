"""Memory of a measurement on top of its data, in a process of its own: 60,000 images of MNIST's size, 2 × 2048 units."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource

import torch
from repro import ablation, models, noise, selectivity

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * {unit} / 2**30

x, y = torch.randn(60_000, 1, 28, 28), torch.arange(60_000) % 10
model = models.he_normal(models.mlp(784, [2048, 2048], 10))
with torch.no_grad():
    for name, bias in model.named_parameters():
        if name.endswith("bias") and not name.startswith("head"):
            bias.fill_({bias})  # how often units are active
{call}  # warm-up: what torch itself needs
before = peak()
images, labels = x, y
{again}
print(peak() - before)
"""
CALLS = {
    "single_unit": "ablation.single_unit(model, images, labels)",
    "cumulative": "ablation.cumulative(model, images, labels, orders=1, steps=2)",
    "noise": "noise.sweep(model, images, labels, [1.0], repeats=1)",
    "selectivity": "selectivity.table(model, images, labels)",
}


@pytest.mark.parametrize("name", CALLS)
def test_sixty_thousand_images_fit_into_two_gibibytes_on_top_of_the_data(name):
    call = CALLS[name]
    script = SCRIPT.format(
        unit=1 if sys.platform == "darwin" else 1024,
        bias=-4.0 if name == "single_unit" else 0.0,  # one by one, 4,096 units that are active half the time take long
        call=call.replace("images", "x[:512]").replace("labels", "y[:512]"),
        again=call,
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2
