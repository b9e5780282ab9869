"""What is no classifier with units is refused with a reason, and a model is afterwards as it was before."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from repro import ablation, evaluation, graph, models, noise, selectivity, units
from tests import networks


class Tokens(nn.Module):
    """A layer that sees the parts of an image one by one, not as channels of that image."""

    def __init__(self, positions_last=False):
        super().__init__()
        self.stem, self.relu, self.head, self.last = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), positions_last

    def forward(self, x):  # (N, 3, 2, 2)
        n = x.shape[0]
        h = self.relu(self.stem(x.reshape(-1, 4)))
        return self.head(h.T.reshape(6, n, -1).mean(2).T if self.last else h.reshape(n, -1, 6).mean(1))


class ChannelsLast(nn.Module):
    """As ConvNeXt and Swin have it."""

    def __init__(self, traced, features):
        super().__init__()
        self.stem, self.relu, self.head = nn.Linear(3, features), nn.ReLU(), nn.Linear(features, 4)
        self.traced = traced

    def forward(self, x):
        h = self.relu(self.stem(x.permute(0, 2, 3, 1)))
        if not self.traced and float(h.sum()) < -1:
            return h
        return self.head(h.mean((1, 2)))


class Changed(nn.Module):
    """An MLP, something else being done to what it gives or has."""

    def __init__(self, change):
        super().__init__()
        self.mlp, self.change = models.mlp(12, [6, 5], 4), change

    def forward(self, x):
        return self.change(self.mlp, x)


@pytest.fixture
def images():
    return networks.images(20, (3, 2, 2), 4)


@pytest.mark.parametrize("positions_last", [False, True])
def test_parts_of_images_have_no_units(positions_last, images):
    with pytest.raises(ValueError, match="model: found no unit layer"):
        ablation.single_unit(Tokens(positions_last), *images)
    with pytest.raises(ValueError, match="layers: the model has no layer 'relu'"):
        ablation.single_unit(Tokens(positions_last), *images, layers=["relu"])


@pytest.mark.filterwarnings("ignore:the model is measured through hooks")
@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("features", [6, 2])  # also as many as rows
def test_rows_of_an_image_are_no_units(features, traced, images):
    model, gives = ChannelsLast(traced, features), rf"'relu' gives \(N, 2, 2, {features}\), channels last"
    with pytest.raises(ValueError, match=rf"model: found no unit layer.*{gives}"):
        units.unit_layers(model, images[0])
    with pytest.raises(ValueError, match=f"layers: {gives}"):
        ablation.cumulative(model, *images, layers=["relu"])


@pytest.mark.parametrize(
    "change",
    [
        lambda mlp, x: mlp(x).reshape(-1, 2),
        lambda mlp, x: mlp(x).mean(0, keepdim=True),
        lambda mlp, x: mlp(x).argsort(1),
    ],
)
def test_logits_belong_to_images(change, images):
    with pytest.raises(ValueError, match=r"model: expected a classifier with logits \(N, classes\)"):
        ablation.single_unit(Changed(change), *images)


def test_networks_without_weights_or_code_of_their_own_are_refused(images):
    with pytest.raises(ValueError, match="model: expected weights, got a lazy layer"):
        units.unit_layers(nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 4)), images[0])
    with pytest.raises(ValueError, match="model: expected the network itself"):
        units.unit_layers(torch.compile(models.mlp(12, [6, 5], 4), backend="eager"), images[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda mlp, x: F.dropout(mlp(x)),
        lambda mlp, x: F.batch_norm(mlp(x), None, None, training=True),
        lambda mlp, x: mlp(x) - mlp(x).mean(),
    ],
)
def test_logits_that_depend_on_chance_or_on_other_images_are_refused(change, images):
    with pytest.raises(ValueError, match="model: expected logits that depend on each image alone"):
        ablation.single_unit(Changed(change), *images)


def test_what_torch_exports_is_refused(images):
    exported = torch.export.export(models.mlp(12, [6, 5], 4).eval(), (images[0],)).module()
    with pytest.raises(ValueError, match="model: expected the network itself, which has an eval mode"):
        ablation.single_unit(exported, *images)


@pytest.mark.filterwarnings("ignore:the model is measured through hooks")
def test_a_layer_that_some_images_do_not_reach_has_no_activations(images):
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.relu, self.two, self.late = nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            h = self.relu(self.one(x.flatten(1)))
            return self.head(self.late(self.two(h)) if len(x) < 4 else h)

    model = Early()
    for measure in (
        selectivity.table,
        lambda *of: noise.sweep(*of, [0.5]),
        lambda *of: ablation.cumulative(*of, value="mean"),
    ):
        with pytest.raises(ValueError, match="layers: 'late' does not run on all images; leave it out"):
            measure(model, *images)


class Writing(nn.Module):
    """Keeps accounts of what it sees."""

    def __init__(self, traced):
        super().__init__()
        self.mlp, self.seen, self.log, self.traced, self.calls = models.mlp(12, [6, 5], 4), {}, [], traced, 0
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.calls += 1
        z = self.mlp(x) + 0 * self.average
        self.average = 0.9 * self.average + z.mean(0)
        self.seen["logits"] = z
        self.log.append(z)
        return z if self.traced or float(z.sum()) > -1e9 else x


@pytest.mark.filterwarnings("ignore:the model is measured through hooks")
@pytest.mark.parametrize("traced", [True, False])
def test_a_model_is_afterwards_as_it_was_before(traced, images):
    model = Writing(traced)
    before, buffers, attributes = copy.deepcopy(model.state_dict()), dict(model.named_buffers()), dict(vars(model))
    for measure in (ablation.single_unit, ablation.cumulative, selectivity.table):
        measure(model, *images)
    assert vars(model).keys() == attributes.keys() and all(
        vars(model)[name] is value for name, value in attributes.items()
    )
    assert model.seen == {} and model.log == [] and model.calls == 0 and model.training
    assert all(tensor is buffers[name] for name, tensor in model.named_buffers())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def _clamped(mlp, x):
    mlp.head.weight.data.clamp_(min=0)
    return mlp(x)


def _normed(mlp, x):
    mlp.head.weight.data = torch.renorm(mlp.head.weight.data, 2, 0, 0.5)
    return mlp(x)


def _counted(mlp, x):
    mlp.seen += len(x)
    return mlp(x)


@pytest.mark.filterwarnings("ignore:the model is measured through hooks")
@pytest.mark.parametrize("change", [_clamped, _normed, _counted])
def test_weights_and_loose_tensors_are_afterwards_as_they_were(change, images):
    model = Changed(change)
    model.mlp.seen = torch.zeros(())
    before = copy.deepcopy(model.state_dict())
    ablation.single_unit(model, *images)
    assert model.mlp.seen == 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_nothing_that_only_looks_like_overwriting_keeps_a_network_from_being_traced():
    """In eval mode a dropout in place, as at the end of an EfficientNet, hands on what it is given."""
    model = torchvision.models.mobilenet_v3_small(num_classes=4)
    with evaluation.evaluating(model):
        found = graph.program(model, torch.randn(2, 3, 32, 32))
    assert isinstance(found, graph.Graph)
