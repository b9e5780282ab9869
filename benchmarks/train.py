"""Training side by side with the loops that are usual elsewhere."""

import contextlib
import functools
import struct
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from repro import data, models, training
from repro.notebooks import environment
from repro.training import Group, Recipe, Run, fastest, one_thread


@contextlib.contextmanager
def made_mnist(n):
    """A folder with n random images in the files of MNIST, as the place where datasets lie."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for name, count in {"train": n, "t10k": 1000}.items():
            images, labels = rng.integers(256, size=(count, 28, 28)), rng.integers(10, size=count)
            head = struct.pack(">IIII", 2051, count, 28, 28)
            (raw / f"{name}-images-idx3-ubyte").write_bytes(head + images.astype(np.uint8).tobytes())
            head = struct.pack(">II", 2049, count)
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())
        with environment(REPRO_DATA=folder):
            yield folder


def ours(recipe, device="cpu"):
    """Seconds for one epoch of the library's loop, after one to warm up."""
    run = Run(recipe, torch.device(device))
    run.advance()
    start = time.perf_counter()
    run.advance()
    return time.perf_counter() - start


def data_loader(folder, batch_size):
    """Seconds for one epoch of the loop of torchvision's examples, with the same network and optimizer."""
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.3,))])
    dataset = torchvision.datasets.MNIST(folder, transform=prepare)
    model, optimizer = _network()
    start = time.perf_counter()
    for images, labels in DataLoader(dataset, batch_size=batch_size, shuffle=True):
        _step(model, optimizer, images, labels)
    return time.perf_counter() - start


def bare(n, batch_size):
    """Seconds for as many steps on one and the same random batch."""
    model, optimizer = _network()
    images, labels = torch.randn(batch_size, 1, 28, 28), torch.randint(10, (batch_size,))
    _step(model, optimizer, images, labels)
    start = time.perf_counter()
    for _ in range(n // batch_size):
        _step(model, optimizer, images, labels)
    return time.perf_counter() - start


def _network() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = models.mlp(784, [512, 512], 10).train()
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def _step(model, optimizer, images, labels):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def grouped(device, members):
    """Seconds of an epoch for MLPs trained as one program, and one after another (four of them, scaled)."""
    alike = Recipe("mnist", "mlp", width=512, lr=0.05, batch_size=256, epochs=3, precision="bfloat16")
    recipes = [replace(alike, seed=seed) for seed in range(members)]
    group = Group(recipes, torch.device(device))
    group.advance()
    _wait(device)
    start = time.perf_counter()
    group.advance()
    _wait(device)
    together = time.perf_counter() - start
    return together, sum(ours(recipe, device) for recipe in recipes[:4]) / 4 * members


def convnet_share(device, batch_size, steps=20):
    """The library's training of the 11-layer ConvNet in bfloat16: its share of a bfloat16 matrix product's rate, and images a
    second."""
    images = torch.randn(steps * batch_size, 3, 32, 32), torch.randint(10, (steps * batch_size,))
    made = data.Dataset("cifar10", *images, *images, tuple("abcdefghij"))
    recipe = Recipe("cifar10", "convnet", lr=0.01, batch_size=batch_size, epochs=100, precision="bfloat16")
    torch._dynamo.reset()  # else a second batch size is compiled for any, which is slower
    with mock.patch.object(data, "load", lambda name: made), mock.patch.object(training, "COMPILED", 0):
        run = Run(recipe, torch.device(device))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(run.model(run.x[:batch_size]), run.y[:batch_size]).backward()
    a = torch.randn([8192 if device == "cuda" else 256] * 2, device=device, dtype=torch.bfloat16)
    compiled = functools.partial(fastest, suppress_errors=False)  # or its time would be that of no compiler
    with mock.patch.object(training, "fastest", compiled):
        taken, product = _each(run.advance, device, 5) / steps, _each(lambda: a @ a, device, 200)
    return counter.get_total_flops() / taken / (2 * len(a) ** 3 / product), batch_size / taken


def _each(function, device, times):
    """Seconds a call, the median of three rounds, after one to warm up."""
    rounds = []
    for calls in (5, times, times, times):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        _wait(device)
        rounds.append((time.perf_counter() - start) / calls)
    return np.median(rounds[1:])


def _wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def on_gpu(device="cuda", members=64, n=20_000, batch_sizes=(128, 512, 2048)):
    """Lines of a table of what is only worth timing on a GPU, as they are known."""
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, a trial of the code"
    yield f"| on a GPU ({name}) | | | must |"
    yield "|---|--:|--:|--:|"
    with made_mnist(n):
        together, apart = grouped(device, members)
    yield f"| {members} MLPs 2 × 512, bfloat16, as one program, one epoch | {together:.2f} s | | |"
    yield f"| one after another | {apart:.2f} s | **{apart / together:.0f}×** | 20× |"
    for size in batch_sizes:
        share, images = convnet_share(device, size)
        work = f"11-layer ConvNet, bfloat16, batches of {size}, share of a matrix product's rate"
        yield f"| {work} | {images:,.0f} images/s | **{share:.0%}** | {'30 %' if size >= 512 else ''} |"


def markdown(quick=False):
    """A table of what was timed."""
    n, batch_size = (1000 if quick else 20_000), 128
    with made_mnist(n) as folder, one_thread():
        recipe = Recipe("mnist", "mlp", width=512, lr=0.05, batch_size=batch_size, epochs=3)
        own, theirs, least = ours(recipe), data_loader(folder, batch_size), bare(n, batch_size)
    rows = [
        "| one epoch, MLP 2 × 512, float32, one thread | images/s | repro is | must |",
        "|---|--:|--:|--:|",
        f"| repro | {n / own:,.0f} | | |",
        f"| `DataLoader` over torchvision's MNIST | {n / theirs:,.0f} | **{theirs / own:.1f}×** as fast | 3× |",
        f"| bare forward and backward on one random batch | {n / least:,.0f} | **{least / own:.2f}×** as fast | 0.8× |",
    ]
    text = "\n".join(rows)
    if torch.cuda.is_available():
        return "\n".join([text, "", *on_gpu()])
    return (
        f"{text}\n\nNot timed on a GPU: none here. `python -m benchmarks.train` does that, with torch and little else."
    )


if __name__ == "__main__":  # on a machine that has a GPU and little else
    for line in on_gpu():
        print(line, flush=True)
