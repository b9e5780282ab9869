"""Other ways to ablate, as they are written elsewhere: what the timings are compared with.

Each takes a sample of units and says how long all units would have taken: the cost of these loops is the same for
every unit. The plain hook loop itself is the tests' twin, `tests.plain`.
"""

import time

import torch
from captum.attr import LayerFeatureAblation
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def captum(model, x, y, layer, channels, units, batch=1000):
    """Changes of the loss by the ablation of `units` of one layer, and the seconds for all of its channels."""
    groups = torch.full((1, channels), len(units))  # what is no unit of the sample is ablated together, once
    groups[0, units] = torch.arange(len(units))
    shape = activation_shape(model, x, layer)
    groups = groups.reshape(1, channels, *[1] * (len(shape) - 2)).expand(1, *shape[1:])
    change = torch.zeros(len(units), dtype=torch.float64)
    start = time.perf_counter()
    for first in range(0, len(x), batch):
        images, labels = x[first : first + batch], y[first : first + batch]

        def loss(images, labels=labels):
            return F.cross_entropy(model(images), labels.to(images.device), reduction="sum").reshape(1)

        ablation = LayerFeatureAblation(loss, dict(model.named_modules())[layer])
        found = ablation.attribute(images, layer_baselines=0.0, layer_mask=groups)
        for i, unit in enumerate(units):
            change[i] -= found[:, unit].flatten()[0].double()
    seconds = time.perf_counter() - start
    return change / len(x), seconds * channels / (len(units) + 1)


def activation_shape(model, x, layer):
    """Shape of a layer's output for two images."""
    shapes = []
    handle = dict(model.named_modules())[layer].register_forward_hook(lambda *call: shapes.append(call[2].shape))
    model(x[:2])
    handle.remove()
    return shapes[0]


def one_image_at_a_time(model, x, y, layer, channels, units, images=100):
    """Seconds for all channels of a layer: a hook that zeroes, a DataLoader of batch size 1, a counter in Python."""
    start = time.perf_counter()
    for unit in units:

        def zero(module, inputs, output, unit=unit):
            output[:, unit] = 0
            return output

        handle = dict(model.named_modules())[layer].register_forward_hook(zero)
        correct = 0
        for image, label in DataLoader(TensorDataset(x[:images], y[:images]), batch_size=1):
            correct += int((model(image).argmax(1) == label).item())
        handle.remove()
    return (time.perf_counter() - start) * channels / len(units) * len(x) / images
