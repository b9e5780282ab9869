"""The paper's three networks as plain modules (section 2.1 and appendix A.4).

Every weight before a ReLU is drawn He-normal, biases start at zero. Unit layers (the outputs of the ReLUs) are named by
their position in the network, as torchvision's feature extraction names them: see `repro.units`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import nn

from repro.checks import is_integer, is_number, renamed

SMALL = 64  # pixels: a ResNet-50 of smaller images has no stride in its first layers
MOST, MOST_WEIGHTS = 2**20, 2**32  # units of a layer, weights of a network: beyond, a number was mistyped
CHANNELS = (64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1)
INITS = ("he", "torch", "pretrained")

# "The last three layers" whose feature maps the paper's cumulative curves ablate; every unit of an MLP.
ABLATED_LAYERS = {
    "mlp": None,
    "convnet": ["relu9", "relu10", "relu11"],
    "resnet50": ["layer4.0.relu_2", "layer4.1.relu_2", "layer4.2.relu_2"],
}


def mlp(inputs: int, widths: Sequence[int], classes: int, dropout: float = 0.0) -> nn.Sequential:
    """A multilayer perceptron with ReLU after every layer but the output.

    Parameters
    ----------
    inputs : int
        Numbers in one image; images of any shape are flattened.
    widths : sequence of int
        Units of each hidden layer.
    classes : int
        Outputs.
    dropout : float
        Probability of dropping a hidden unit in training, in [0, 1); ablation acts before dropout.

    Returns
    -------
    nn.Sequential
        Its unit layers are "relu1", "relu2", …

    Raises
    ------
    ValueError
        Names the argument and what was expected.
    """
    sizes = _positive("inputs", [inputs]) + _positive("widths", widths)
    _positive("classes", [classes])
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a number in [0, 1), got {dropout!r}")
    if sum(fan_in * fan_out for fan_in, fan_out in pairwise(sizes)) > MOST_WEIGHTS:
        raise ValueError(f"widths: expected at most {MOST_WEIGHTS} weights in all, got {widths!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        layers[f"linear{i}"] = nn.Linear(fan_in, fan_out)
        layers[f"relu{i}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
    layers["head"] = nn.Linear(sizes[-1], classes)
    return he_normal(nn.Sequential(layers))


def convnet(
    channels: Sequence[int] = CHANNELS,
    strides: Sequence[int] = STRIDES,
    classes: int = 10,
    in_channels: int = 3,
    batch_norm: bool = True,
) -> nn.Sequential:
    """The 11-layer 3×3 ConvNet of the CIFAR-10 experiments; batch norm, where used, comes before the ReLU.

    The paper does not state what follows the last layer: here global average pooling and a linear layer.

    Parameters
    ----------
    channels, strides : sequences of int, equally long
        Feature maps and stride of each convolution.
    classes, in_channels : int
        Outputs; channels of the images.
    batch_norm : bool
        Without it the convolutions have a bias.

    Returns
    -------
    nn.Sequential
        Its unit layers are "relu1", "relu2", …

    Raises
    ------
    ValueError
        Names the argument and what was expected.
    """
    channels, strides = _positive("channels", channels), _positive("strides", strides)
    if len(channels) != len(strides):
        raise ValueError(f"strides: expected {len(channels)} numbers, one per layer, got {len(strides)}")
    sizes = _positive("in_channels", [in_channels]) + channels
    _check_switch("batch_norm", batch_norm)
    if sum(9 * fan_in * fan_out for fan_in, fan_out in pairwise(sizes)) > MOST_WEIGHTS:
        raise ValueError(f"channels: expected at most {MOST_WEIGHTS} weights in all, got {channels!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, stride in enumerate(strides, start=1):
        layers[f"conv{i}"] = nn.Conv2d(sizes[i - 1], sizes[i], 3, stride, padding=1, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{i}"] = nn.BatchNorm2d(sizes[i])
        layers[f"relu{i}"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels[-1], *_positive("classes", [classes]))
    return he_normal(nn.Sequential(layers))


def resnet50(classes: int = 1000, width: float = 1.0, in_channels: int = 3, small_images: bool = False) -> nn.Module:
    """torchvision's ResNet-50, optionally narrower and with a stem for small images.

    Parameters
    ----------
    classes, in_channels : int
        Outputs; channels of the images.
    width : float
        Factor on every channel count, in (0, 1]; 1 is the ordinary network.
    small_images : bool
        A 3×3 convolution of stride 1 without max pooling in place of the 7×7 stem, for images below about 64 pixels.

    Returns
    -------
    nn.Module
        A torchvision ResNet; its last three unit layers are "layer4.0.relu_2" to "layer4.2.relu_2".

    Raises
    ------
    ValueError
        Names the argument and what was expected.
    """
    from torchvision.models import resnet

    if not is_number(width) or not 0 < width <= 1:
        raise ValueError(f"width: expected a factor in (0, 1], got {width!r}")
    _check_switch("small_images", small_images)
    _positive("classes", [classes])
    _positive("in_channels", [in_channels])
    # torchvision fixes the channel counts of its stem and stages; replacing what the constructor asks for through
    # `inplanes` and `_make_layer` keeps its code, its names and (at width 1) its published weights.
    network = resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], num_classes=classes)
    if width != 1 or in_channels != 3 or small_images:
        planes = [max(1, round(width * n)) for n in (64, 128, 256, 512)]
        network.inplanes = planes[0]
        stem = dict(kernel_size=3, padding=1) if small_images else dict(kernel_size=7, stride=2, padding=3)
        network.conv1 = nn.Conv2d(in_channels, planes[0], bias=False, **stem)
        network.bn1 = nn.BatchNorm2d(planes[0])
        if small_images:
            network.maxpool = nn.Identity()
        for i, (n, blocks) in enumerate(zip(planes, (3, 4, 6, 3), strict=True), start=1):
            stage = network._make_layer(resnet.Bottleneck, n, blocks, stride=1 if i == 1 else 2)
            setattr(network, f"layer{i}", stage)
        network.fc = nn.Linear(4 * planes[3], classes)
    return he_normal(network)


def he_normal(module: nn.Module) -> nn.Module:
    """Draw every convolution and linear weight from N(0, 2 / fan_in), the head's from N(0, 1 / fan_in); zero biases."""
    weighted = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for m in weighted:
        gain = "linear" if m is weighted[-1] else "relu"  # no ReLU follows the head
        nn.init.kaiming_normal_(m.weight, nonlinearity=gain)
        if m.bias is not None:
            nn.init.zeros_(m.bias)
    return module


def _published() -> dict[str, torch.Tensor]:
    """torchvision's weights of a ResNet-50 trained on ImageNet; downloaded once."""
    from torchvision.models import ResNet50_Weights

    try:
        return ResNet50_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True, weights_only=True)
    except OSError as error:
        url = ResNet50_Weights.IMAGENET1K_V1.url
        place = f"{torch.hub.get_dir()}/checkpoints"
        raise ValueError(f"init: cannot download the published weights ({error}); put {url} into {place}") from error


def _positive(argument: str, numbers) -> list[int]:
    right = isinstance(numbers, Iterable) and not isinstance(numbers, str) and getattr(numbers, "ndim", 1) == 1
    found = list(numbers) if right else []
    if not found or not all(is_integer(n) and 0 < n <= MOST for n in found):
        raise ValueError(f"{argument}: expected positive integers up to {MOST}, got {numbers!r}")
    return [int(n) for n in found]


def _check_switch(argument: str, value) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{argument}: expected True or False, got {value!r}")


def check_width(model: str, width) -> float | tuple[int, ...] | None:
    """The width of a network by name: of an MLP a number of units, or one per layer; else a factor on the channel counts."""
    if width is None:
        return None
    if model == "mlp" and isinstance(width, list | tuple):
        return tuple(_positive("width", width))
    mlp = model == "mlp"
    fits, low, what = (is_integer, 1, "an integer") if mlp else (is_number, 1e-3, "a factor on the channel counts")
    most = 1 if model == "resnet50" else MOST
    if not fits(width) or not low <= width <= most:
        raise ValueError(f"width: expected {what} from {low} to {most}, got {width!r}")
    return int(width) if mlp else float(width)


def check_options(model: str, strides, batch_norm, dropout) -> None:
    """Refuse options that a model would ignore, so that no recipe claims an effect that it does not have."""
    if model != "mlp" and dropout != 0:
        raise ValueError(f"dropout: expected 0, as a {model} has no dropout, got {dropout!r}")
    if model != "convnet" and strides is not None:
        raise ValueError(f"strides: expected None, as the {model} has its own, got {strides!r}")
    if model != "convnet" and batch_norm is not True:
        raise ValueError(f"batch_norm: expected True, as the {model} has no choice, got {batch_norm!r}")


def build(
    model: str,
    image: Sequence[int],
    classes: int,
    width: float | Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    batch_norm: bool = True,
    dropout: float = 0.0,
    init: str = "he",
    seed: int = 0,
) -> nn.Module:
    """Make a network by name for images of shape (C, H, W), as recipes describe it.

    Parameters
    ----------
    model : {"mlp", "convnet", "resnet50"}
    image : (C, H, W)
    classes : int
    width : number or sequence
        mlp: units of each of two hidden layers (default 128), or one number per layer; otherwise the factor on the
        channel counts (default 1).
    strides : sequence of int
        convnet only; the paper's by default.
    batch_norm : bool
        convnet only.
    dropout : float
        mlp only.
    init : {"he", "torch", "pretrained"}
        He-normal; PyTorch's own default initialization; the weights that torchvision publishes, for a resnet50 of full
        width on ImageNet.
    seed : int
        Determines the initial weights; the global random state is left alone, a GPU's too.

    Raises
    ------
    ValueError
        Names the argument and what was expected; what is another model's shall keep its default.
    """
    if model not in tuple(ABLATED_LAYERS):
        raise ValueError(f"model: unknown network {model!r}; expected {', '.join(ABLATED_LAYERS)}")
    width = check_width(model, width)
    check_options(model, strides, batch_norm, dropout)
    if init not in INITS:
        raise ValueError(f"init: expected one of {', '.join(INITS)}, got {init!r}")
    if init == "pretrained" and (model, classes, width or 1, image[-1] < SMALL) != ("resnet50", 1000, 1, False):
        raise ValueError("init: published weights are for a resnet50 of full width with ImageNet's 1,000 classes")
    # torch.manual_seed would seed GPUs too: so all is drawn on the CPU, whatever torch's default device is.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int(seed))
        with renamed({"widths": "width", "channels": "width"}):
            if model == "mlp":
                widths = width if isinstance(width, tuple) else [width or 128] * 2
                network = mlp(int(torch.Size(image).numel()), widths, classes, dropout)
            elif model == "convnet":
                channels = [max(1, round((width or 1) * n)) for n in CHANNELS]
                network = convnet(channels, STRIDES if strides is None else strides, classes, image[0], batch_norm)
            else:
                network = resnet50(classes, width or 1, image[0], small_images=image[-1] < SMALL)
        if init == "torch":
            for m in network.modules():
                if hasattr(m, "reset_parameters"):
                    m.reset_parameters()
        elif init == "pretrained":
            network.load_state_dict(_published())
    return network
