"""The paper's three networks."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.models.feature_extraction import get_graph_node_names

from repro import models

DIGITS_STRIDES = (1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


# Shapes and sizes -------------------------------------------------------------------------------------------


def test_the_mlp_of_the_mnist_experiments():
    network = models.mlp(784, [512, 512], 10)
    assert parameters(network) == 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10 == 669_706
    assert network(torch.randn(3, 1, 28, 28)).shape == (3, 10)  # it flattens images itself
    assert network(torch.randn(3, 784)).shape == (3, 10)


def test_numbers_may_be_numpys():
    network = models.mlp(np.int64(4), np.array([3, 2]), np.int32(2), dropout=np.float32(0.5))
    assert parameters(network) == 4 * 3 + 3 + 3 * 2 + 2 + 2 * 2 + 2
    assert models.convnet(np.array([2, 3]), np.array([1, 2]), classes=np.int64(5))[0].out_channels == 2
    assert models.resnet50(np.int64(2), width=np.float32(1 / 16)).fc.out_features == 2


def test_the_convnet_of_the_cifar10_experiments():
    network = models.convnet()
    assert [c.out_channels for c in convolutions(network)] == [
        64,
        64,
        128,
        128,
        128,
        256,
        256,
        256,
        512,
        512,
        512,
    ]
    assert [c.stride[0] for c in convolutions(network)] == [1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1]
    assert {c.kernel_size for c in convolutions(network)} == {(3, 3)}
    assert parameters(network) == 7_790_794
    assert parameters(models.convnet(batch_norm=False)) == 7_790_794 - 2816  # a bias in place of scale and shift
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_batch_norm_comes_before_the_relu():
    kinds = [type(m) for m in models.convnet([4, 4], [1, 2])]
    assert kinds[:6] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    kinds = [type(m) for m in models.convnet([4, 4], [1, 2], batch_norm=False)]
    assert kinds[:4] == [nn.Conv2d, nn.ReLU] * 2


def test_dropout_follows_the_unit_layers():
    names = [name for name, _ in models.mlp(4, [3, 3], 2, dropout=0.1).named_children()]
    assert names == ["flatten", "linear1", "relu1", "dropout1", "linear2", "relu2", "dropout2", "head"]
    assert not any(isinstance(m, nn.Dropout) for m in models.mlp(4, [3, 3], 2).modules())


def test_resnet50_is_torchvisions():
    with torch.device("meta"):
        ours, theirs = models.resnet50().state_dict(), torchvision_resnet50().state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[name].shape == theirs[name].shape for name in theirs)
    assert (
        sum(t.numel() for name, t in ours.items() if not name.rpartition(".")[2].startswith(("running", "num")))
        == 25_557_032
    )


def test_a_narrow_resnet50_has_the_same_names_and_fewer_channels():
    narrow = models.resnet50(10, width=1 / 16, in_channels=1, small_images=True)
    with torch.device("meta"):
        whole = models.resnet50()
    assert list(narrow.state_dict()) == list(whole.state_dict())
    assert narrow.conv1.weight.shape == (4, 1, 3, 3)
    assert narrow.layer4[2].conv3.weight.shape == (128, 32, 1, 1)
    assert narrow(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_the_stem_for_small_images_keeps_their_resolution():
    small = models.resnet50(10, width=1 / 16, small_images=True).eval()
    large = models.resnet50(10, width=1 / 16).eval()
    sizes = []
    for network in (small, large):
        network.layer1.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
        network(torch.randn(1, 3, 32, 32))
    assert sizes == [32, 8]


# Initialization ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.mlp(784, [300, 300], 10),
        lambda: models.convnet(batch_norm=False),
        lambda: models.resnet50(10, width=1 / 4),
    ],
    ids=["mlp", "convnet", "resnet50"],
)
def test_weights_are_he_normal_and_biases_zero(make):
    network = make()
    weighted = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for m in weighted:
        fan_in = m.weight[0].numel()
        gain = 1 if m is weighted[-1] else 2  # no ReLU follows the head
        scores = m.weight.detach().flatten() / math.sqrt(gain / fan_in)
        n = len(scores)
        assert abs(scores.mean()) < 5 / math.sqrt(n)
        assert abs(scores.var() - 1) < 5 * math.sqrt(2 / n)
        assert abs(scores.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)  # normal, not uniform (1.8)
        assert m.bias is None or not m.bias.any()


def test_a_deep_convnet_without_batch_norm_keeps_its_signal():
    network = models.convnet([64] * 11, [1] * 11, batch_norm=False)
    with torch.no_grad():
        h = network[:-3](torch.randn(4, 3, 8, 8))
    assert 0.05 < (h - h.mean(0)).std() < 5  # between images; 1e-5 with PyTorch's own initialization


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make"),
    [("convnet", models.convnet), ("resnet50", lambda: models.resnet50(10, width=1 / 32))],
    ids=["convnet", "resnet50"],
)
def test_the_ablated_layers_are_torchvisions_node_names(name, make):
    names = get_graph_node_names(make())[1]
    assert set(models.ABLATED_LAYERS[name]) <= set(names)
    # The last three: nothing but pooling and the head comes after them.
    rest = names[names.index(models.ABLATED_LAYERS[name][-1]) + 1 :]
    assert rest in (["pool", "flatten", "head"], ["avgpool", "flatten", "fc"])


def test_the_unit_layers_of_the_small_networks_are_numbered():
    assert get_graph_node_names(models.mlp(4, [3, 3], 2))[1][1:] == [
        "flatten",
        "linear1",
        "relu1",
        "linear2",
        "relu2",
        "head",
    ]
    names = get_graph_node_names(models.convnet())[1]
    assert [name for name in names if name.startswith("relu")] == [f"relu{i}" for i in range(1, 12)]


# Networks by name -------------------------------------------------------------------------------------------


def test_networks_by_name():
    mlp = models.build("mlp", (1, 8, 8), 10)
    assert [m.out_features for m in mlp if isinstance(m, nn.Linear)] == [128, 128, 10]
    mlp = models.build("mlp", (1, 8, 8), 10, width=16)
    assert [m.out_features for m in mlp if isinstance(m, nn.Linear)] == [16, 16, 10]
    mlp = models.build("mlp", (3, 4, 4), 5, width=(7, 6, 5), dropout=0.5)
    assert [m.in_features for m in mlp if isinstance(m, nn.Linear)] == [48, 7, 6, 5]
    assert sum(isinstance(m, nn.Dropout) for m in mlp) == 3
    convnet = models.build("convnet", (1, 8, 8), 10, width=1 / 16, strides=DIGITS_STRIDES, batch_norm=False)
    assert [c.out_channels for c in convolutions(convnet)] == [4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32]
    assert [c.stride[0] for c in convolutions(convnet)] == list(DIGITS_STRIDES)
    assert convnet[:-3](torch.randn(1, 1, 8, 8)).shape == (1, 32, 2, 2)
    assert isinstance(models.build("resnet50", (3, 32, 32), 10, width=1 / 32).maxpool, nn.Identity)
    assert isinstance(models.build("resnet50", (3, 96, 96), 10, width=1 / 32).maxpool, nn.MaxPool2d)


def test_the_seed_alone_determines_the_weights():
    before = torch.get_rng_state()
    first, same, other = (models.build("mlp", (4,), 2, width=8, seed=seed).linear1.weight for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_state_of_a_gpu_is_left_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    models.build("mlp", (4,), 2, width=8, seed=1)
    assert not seeded


def test_the_default_device_does_not_change_the_weights():
    with torch.device("meta"):
        network = models.build("mlp", (4,), 2, width=8, seed=1)
    assert torch.equal(network.linear1.weight, models.build("mlp", (4,), 2, width=8, seed=1).linear1.weight)


def test_pytorchs_own_initialization():
    network = models.build("mlp", (1, 28, 28), 10, width=256, init="torch")
    bound = 1 / math.sqrt(784)  # uniform
    assert network.linear1.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert network.linear1.bias.any()


# Bad inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("inputs", lambda: models.mlp(0, [4], 2)),
        ("inputs", lambda: models.mlp(2.5, [4], 2)),
        ("widths", lambda: models.mlp(4, [], 2)),
        ("widths", lambda: models.mlp(4, [4, -1], 2)),
        ("widths", lambda: models.mlp(4, 16, 2)),
        ("widths", lambda: models.mlp(4, "16", 2)),
        ("classes", lambda: models.mlp(4, [4], 0)),
        ("classes", lambda: models.mlp(4, [4], True)),
        ("dropout", lambda: models.mlp(4, [4], 2, dropout=1)),
        ("dropout", lambda: models.mlp(4, [4], 2, dropout=-0.1)),
        ("dropout", lambda: models.mlp(4, [4], 2, dropout=float("nan"))),
        ("channels", lambda: models.convnet([], [])),
        ("channels", lambda: models.convnet([4, 0], [1, 1])),
        ("strides", lambda: models.convnet([4, 4], [1])),
        ("strides", lambda: models.convnet([4, 4])),  # the paper's eleven
        ("strides", lambda: models.convnet([4, 4], [1, 0])),
        ("strides", lambda: models.convnet([4, 4], 1)),
        ("classes", lambda: models.convnet(classes=None)),
        ("in_channels", lambda: models.convnet(in_channels=0)),
        ("classes", lambda: models.resnet50(0)),
        ("width", lambda: models.resnet50(width=0)),
        ("width", lambda: models.resnet50(width=1.5)),
        ("width", lambda: models.resnet50(width=float("nan"))),
        ("in_channels", lambda: models.resnet50(in_channels=-3)),
        ("model", lambda: models.build("vgg", (1, 8, 8), 10)),
        ("init", lambda: models.build("mlp", (1, 8, 8), 10, init="zero")),
        ("width", lambda: models.build("mlp", (1, 8, 8), 10, width=(2**20, 2**20))),
        ("width", lambda: models.build("convnet", (1, 8, 8), 10, width=5000)),
        ("strides", lambda: models.build("convnet", (1, 8, 8), 10, strides=(1, 2))),
        ("strides", lambda: models.build("convnet", (1, 8, 8), 10, strides=())),
        ("strides", lambda: models.build("mlp", (1, 8, 8), 10, strides=DIGITS_STRIDES)),
        ("strides", lambda: models.build("resnet50", (1, 8, 8), 10, strides=DIGITS_STRIDES)),
        ("batch_norm", lambda: models.build("mlp", (1, 8, 8), 10, batch_norm=False)),
        ("batch_norm", lambda: models.build("resnet50", (1, 8, 8), 10, batch_norm=False)),
        ("dropout", lambda: models.build("convnet", (1, 8, 8), 10, dropout=0.5)),
        ("dropout", lambda: models.build("resnet50", (1, 8, 8), 10, dropout=0.5)),
    ],
)
def test_bad_inputs_name_the_argument(argument, make):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        make()


@pytest.mark.parametrize("width", [0, -0.5, math.nan, math.inf, "0.5", True, (), b"8"])
@pytest.mark.parametrize("model", models.ABLATED_LAYERS)
def test_a_bad_width_is_refused(model, width):
    with pytest.raises(ValueError, match=r"^width: expected .*, got "):
        models.build(model, (1, 8, 8), 10, width=width)


@pytest.mark.parametrize(
    ("model", "width"), [("mlp", 128.7), ("mlp", (8, 2.5)), ("convnet", (8, 8)), ("resnet50", 1.5)]
)
def test_the_width_of_another_model_is_refused(model, width):
    with pytest.raises(ValueError, match=r"^width: expected .*, got "):
        models.build(model, (1, 8, 8), 10, width=width)
