"""The cut at unit layers: its names, its activations, and the rest of the network run from a layer onwards."""

import warnings

import pytest
import torch
from torch import nn
from torchvision.models import densenet121, resnet18, vgg11
from torchvision.models.feature_extraction import get_graph_node_names

from repro import evaluation, models, units, values
from tests import networks, plain

EVERY = {name: rest for name, *rest in networks.every()}


@pytest.fixture(params=EVERY)
def network(request):
    return EVERY[request.param]


def test_names_and_sizes_of_the_papers_networks():
    x = torch.randn(2, 3, 32, 32)
    assert units.unit_layers(models.mlp(3072, [7, 5], 10), x) == [("relu1", 7), ("relu2", 5)]
    assert units.unit_layers(models.convnet(), x) == [(f"relu{i + 1}", n) for i, n in enumerate(models.CHANNELS)]
    found = dict(units.unit_layers(models.resnet50(10, width=0.125), torch.randn(2, 3, 64, 64)))
    assert len(found) == 49
    assert [found[name] for name in models.ABLATED_LAYERS["resnet50"]] == [256, 256, 256]


@pytest.mark.parametrize("model", [resnet18(), vgg11(), densenet121()], ids=["resnet18", "vgg11", "densenet121"])
def test_names_are_those_of_torchvisions_feature_extraction(model):
    names = [name for name, _ in units.unit_layers(model, torch.randn(2, 3, 64, 64))]
    assert set(names) <= set(get_graph_node_names(model.eval())[1])
    assert len(names) == len(set(names)) > 5
    if "layer1.0.relu_1" in get_graph_node_names(model)[1]:
        assert "layer1.0.relu_1" in names


def test_activations_are_those_that_hooks_see():
    model, x, _ = EVERY["convnet with batch norm"]
    cut = units.Cut(model, x)
    with evaluation.evaluating(model):
        seen = [h for _, h in values.activations(cut, x)]
    expected = plain.activations(model, x, cut.layers)
    for name in cut.layers:
        torch.testing.assert_close(torch.cat([h[name] for h in seen]), expected[name])


def test_the_rest_of_the_network_gives_the_same_logits_again_and_again(network):
    model, x, _ = network
    cut = units.Cut(model, x)
    with evaluation.evaluating(model):
        truth = model(x)
        torch.testing.assert_close(cut.run(x), truth)
        for layer in cut.layers:
            tail = cut.start(x, [layer])
            for _ in range(2):  # the second run must find nothing changed by the first
                torch.testing.assert_close(tail(), truth)
                torch.testing.assert_close(tail(lambda name, h: h.clone()), truth)


def without_last_unit(layer, h):
    h = h.clone()
    h[:, -1] = 0
    return h


def test_the_rest_with_an_ablated_unit_equals_the_whole_network_with_a_hook():
    for name in ("resnet", "convnet with batch norm", "mlp"):
        model, x, _ = EVERY[name]
        cut = units.Cut(model, x)
        for layer, n in cut.layers.items():
            masks = plain.mask(cut.layers, [(layer, n - 1)])
            zero = plain.constants(model, x, cut.layers)
            with evaluation.evaluating(model):
                found = cut.start(x, [layer])(without_last_unit)
                torch.testing.assert_close(found, plain.logits(model, x, plain.clamped(masks, zero)))


def test_a_model_that_cannot_be_traced_is_hooked_with_one_warning():
    traced, hooked = networks.randomized(networks.OneReLU()), networks.Untraceable()
    hooked.load_state_dict(traced.state_dict())
    x, _ = networks.images(shape=(3, 2, 2))
    with pytest.warns(UserWarning, match="cannot be traced") as seen:
        cut = units.Cut(hooked.eval(), x)
    assert len(seen) == 1
    other = units.Cut(traced, x)
    assert cut.layers == other.layers == {"relu": 9, "relu_1": 9}
    with evaluation.evaluating(hooked), evaluation.evaluating(traced):
        for layer in cut.layers:
            one, two = (c.start(x, [layer])(lambda name, h: 0.5 * h) for c in (cut, other))
            torch.testing.assert_close(one, two)


def test_the_papers_networks_are_traced():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, x, _ in EVERY.values():
            units.Cut(model, x)


def test_a_model_is_handed_back_as_it_came():
    model, x, y = EVERY["convnet with batch norm"]
    model.train()
    model.norm3.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    units.unit_layers(model, x)
    from repro import ablation

    ablation.cumulative(model, x, y, orders=1, steps=2)
    assert model.training and not model.norm3.training and model.norm4.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_layers_by_hand():
    model, x, _ = EVERY["mlp"]
    assert units.Cut(model, x, ["linear2"]).layers == {"linear2": 9}
    assert list(units.Cut(model, x, ["relu2", "relu1"]).layers) == ["relu1", "relu2"]  # in forward order
    with pytest.raises(ValueError, match="layers: the model has no layer 'relu7'.*relu1"):
        units.Cut(model, x, ["relu7"])
    with pytest.raises(ValueError, match="layers: expected a list"):
        units.Cut(model, x, "relu1")
    with pytest.raises(ValueError, match="layers: expected a list"):
        units.Cut(model, x, [])


def test_layers_of_another_shape_are_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.act, self.head = nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.act(self.embed(x)).mean(1))  # (N, T, C)

    with pytest.raises(ValueError, match=r"model: found no unit layer.*layers=\[\.\.\.\]"):
        units.Cut(Tokens(), torch.randn(3, 5, 4))
    with pytest.raises(ValueError, match=r"layers: 'act' gives \(N, 5, 6\)"):
        units.Cut(Tokens(), torch.randn(3, 5, 4), ["act"])


def test_models_that_are_none():
    with pytest.raises(ValueError, match=r"model: expected an nn\.Module"):
        units.unit_layers(lambda x: x, torch.randn(2, 3))
    with pytest.raises(ValueError, match="model: expected a classifier"):
        units.unit_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize(
    "name", ["mlp", "deep mlp", "convnet with batch norm", "convnet without", "pooled before", "pooled after"]
)
def test_plain_networks_are_chains(name):
    """So that their ablation is the fast one: results alone would not tell."""
    model, x, _ = EVERY[name]
    cut = units.Cut(model, x)
    with evaluation.evaluating(model):
        zero = values.clamp_values(cut, "zero", x)
        assert [link.layer for link in cut.chain(next(iter(cut.layers)), zero)] == list(cut.layers)
        for layer in cut.layers:
            assert cut.chain(layer, {layer: zero[layer]})[0].layer == layer


def test_the_source_of_a_layer_is_on_its_branch_not_on_the_shortcut():
    x = torch.randn(2, 3, 32, 32)
    model = models.resnet50(10, width=0.125)
    cut = units.Cut(model, x)
    assert cut.program.source("layer1.0.relu_2") is model.layer1[0].conv3
    assert cut.program.source("layer1.0.relu") is model.layer1[0].conv1
    assert cut.program.source("layer4.2.relu_2") is model.layer4[2].conv3
    for turned in (networks.Residual(), networks.ShortcutFirst()):
        assert units.Cut(turned, x).program.source("above") is turned.left
    with pytest.warns(UserWarning, match="hooks"):
        hooked = units.Cut(networks.Untraceable(), torch.randn(2, 3, 2, 2))
    assert isinstance(hooked.program.source("relu"), nn.Linear)
    with pytest.raises(ValueError, match="layers: found no"):
        units.Cut(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(12, 3)), torch.randn(2, 3, 2, 2)).program.source("1")
