"""Ablation the plain way: hook a layer, clamp, run the whole network again.

Twins of the library's analyses that share no code with them; the tests compare the two, the benchmarks time them.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

BATCH = 1000  # images run at once


@contextlib.contextmanager
def edited(model, edit):
    """Within, `edit(name, activation)` replaces the output of every module; a module's second call is named "relu_1"."""
    calls = {}

    def replace(name, output):
        calls[name] = calls.get(name, -1) + 1
        return edit(f"{name}_{calls[name]}" if calls[name] else name, output)

    def hook(name):
        return lambda module, inputs, output: replace(name, output)

    leaves = [(name, m) for name, m in model.named_modules() if name and not list(m.children())]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def logits(model, x, edit=None, batch=BATCH):
    """Logits (N, classes), in eval mode."""
    model.eval()
    parts = []
    for start in range(0, len(x), batch):
        with edited(model, edit or (lambda name, h: h)):
            parts.append(model(x[start : start + batch]))
    return torch.cat(parts)


def loss_and_accuracy(z, y):
    return F.cross_entropy(z.double(), y).item(), (z.argmax(1) == y).double().mean().item()


def ties(z):
    """Share of images whose two highest logits lie within 1e-4: rounding may decide for either."""
    first, second = z.topk(2, dim=1).values.T
    return (first - second < 1e-4).double().mean().item()


def activations(model, x, layers):
    """{layer: (N, C) or (N, C, H, W)}"""
    kept = {name: [] for name in layers}

    def keep(name, h):
        if name in kept:
            kept[name].append(h.clone())
        return h

    logits(model, x, keep)
    return {name: torch.cat(parts) for name, parts in kept.items()}


def constants(model, x, layers, value="zero"):
    """What units are clamped to, {layer: (C,) or (C, H, W)}."""
    if not isinstance(value, str):
        return value
    h = activations(model, x, layers)
    if value == "zero":
        return {name: torch.zeros(a.shape[1]) for name, a in h.items()}
    if value == "mean":
        return {name: a.double().transpose(0, 1).flatten(1).mean(1).float() for name, a in h.items()}
    return {name: a.double().mean(0).float() for name, a in h.items()}


def clamped(masks, constant):
    """An edit that sets the channels in masks[layer], a bool array (C,), to constant[layer]."""

    def edit(name, h):
        if name not in masks or not masks[name].any():
            return h
        h, mask = h.clone(), torch.as_tensor(masks[name])
        v = constant[name][mask]
        h[:, mask] = v.reshape(v.shape + (1,) * (h.ndim - 1 - v.ndim)).to(h.dtype)
        return h

    return edit


def mask(layers, chosen):
    """{layer: bool (C,)} of units (layer, k) among `layers`, {layer: C}."""
    masks = {name: np.zeros(units, bool) for name, units in layers.items()}
    for name, unit in chosen:
        masks[name][unit] = True
    return masks


def single_unit(model, x, y, layers, value="zero", x_fit=None, units=None):
    """Loss and accuracy with each unit of `layers`, {layer: C}, or of `units`, [(layer, k)], ablated alone."""
    constant = constants(model, x if x_fit is None else x_fit, layers, value)
    units = units or [(name, k) for name, n in layers.items() for k in range(n)]
    intact = loss_and_accuracy(logits(model, x), y)
    rows = []
    for name, k in units:
        z = logits(model, x, clamped(mask(layers, [(name, k)]), constant))
        loss, accuracy = loss_and_accuracy(z, y)
        rows.append((name, k, loss, accuracy, loss - intact[0], accuracy - intact[1], ties(z)))
    return pd.DataFrame(rows, columns=["layer", "unit", "loss", "accuracy", "delta_loss", "delta_accuracy", "ties"])


def cumulative(model, x, y, layers, sequences, counts, value="zero", x_fit=None):
    """Loss and accuracy with the first n units of each sequence ablated, for each n in `counts`."""
    constant = constants(model, x if x_fit is None else x_fit, layers, value)
    rows = []
    for order, sequence in enumerate(sequences):
        for n in counts:
            z = logits(model, x, clamped(mask(layers, sequence[:n]), constant))
            rows.append((order, n, *loss_and_accuracy(z, y), ties(z)))
    return pd.DataFrame(rows, columns=["order", "n_ablated", "loss", "accuracy", "ties"])
