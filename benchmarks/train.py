"""Training side by side with the loops that are usual elsewhere."""

import contextlib
import os
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from repro import models
from repro.training import Recipe, Run, one_thread


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
        before = os.environ.get("REPRO_DATA")
        os.environ["REPRO_DATA"] = folder
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["REPRO_DATA"]
            else:
                os.environ["REPRO_DATA"] = before


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
    return "\n".join(rows)
