"""Networks that users have and the paper has not, against the plain way; each of these once gave a wrong number."""

import warnings
from collections import OrderedDict
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro import ablation, beyond, data, evaluation, models, noise, selectivity, units, values, work
from repro.analyses import measure_model
from tests import networks, plain


class Sum(nn.Module):
    """A residual branch that is added in place; `traced` or, because it asks for a number, through hooks."""

    def __init__(self, traced):
        super().__init__()
        self.traced = traced
        self.one, self.act, self.two, self.act2 = nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        h = self.act(self.one(x.flatten(1)))
        if not self.traced and float(h.sum()) < -1:
            return self.head(h)
        out = self.act2(self.two(h))
        out += h
        return self.head(out)


class Scaled(nn.Module):
    """With parameters that stand in the graph by themselves: a scalar and one per channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.relu2, self.head = nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ReLU(), nn.Linear(6, 4)
        self.gain, self.scale = nn.Parameter(torch.full((1,), 0.7)), nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x):
        h = self.relu(self.stem(x)) * self.scale
        return self.head((self.relu2(h - 0.1) * self.gain).mean((2, 3)))


class Changing(nn.Module):
    """Standardises its input in place, and keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.mlp = models.mlp(12, [6, 5], 4)

    def forward(self, x):
        self.seen = x.sub_(0.5).div_(2)
        return self.mlp(self.seen)


class Squeezed(nn.Module):
    """A wide map, multiplied by what four units make of its means."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.relu, self.up = nn.Conv2d(3, 64, 1), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        h = self.stem(x)
        gate = torch.sigmoid(self.up(self.relu(self.down(h.mean((2, 3))))))
        return self.head((h * gate[..., None, None]).mean((2, 3)))


def flattened():
    """Feature maps of one pixel that become a vector before they become units."""
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 7, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(7, 4))


def ending_in_a_convolution():
    """The classes are maps of one number each."""
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 2), nn.Flatten())


def normed_after_flatten():
    """A batch norm over numbers, not channels, and one that follows a dropout."""
    flat = [nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Flatten(), nn.BatchNorm1d(20), nn.ReLU()]
    return nn.Sequential(*flat, nn.Linear(20, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))


def hooked():
    model = models.mlp(12, [6, 5], 4)
    model.get_submodule("linear2").register_forward_hook(lambda module, inputs, output: 0.5 * output)
    return model


class Halving(nn.Linear):
    """A linear layer with a forward of its own, and its weights parametrized."""

    def forward(self, x):
        return super().forward(0.5 * x)


def parametrized():
    layers = [nn.Linear(12, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(Halving(6, 6)), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(6, 4))


class Recurrent(nn.Module):
    """As many recurrent layers as images tell the shapes."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.rnn, self.head = nn.Linear(12, 6), nn.ReLU(), nn.LSTM(6, 5, 2), nn.Linear(5, 4)

    def forward(self, x):
        start = torch.zeros(2, x.size(0), 5)
        h = self.relu(self.stem(x.flatten(1))).repeat(3, 1, 1)
        return self.head(self.rnn(h, (start, start))[0][-1])


class Averaged(nn.Module):
    """Feature maps of which positions are averaged away, one way or another, ahead of the head."""

    def __init__(self, how="both"):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1), nn.Linear(5, 4)
        self.relu, self.relu2, self.how = nn.ReLU(), nn.ReLU(), AVERAGED[how]

    def forward(self, x):
        return self.head(self.how(self.relu2(self.two(self.relu(self.one(x))))).flatten(1))


AVERAGED = {
    "both": lambda h: h.mean((2, 3)),
    "kept": lambda h: torch.mean(h, dim=[-1, -2], keepdim=True),
    "in turn": lambda h: h.amax(-1).sum(2),
    "of channels": lambda h: h.mean((1, 2), keepdim=True).repeat(1, 1, 5, 1)[..., 0],
    "of all but images": lambda h: h.sum([1, -1])[:, :1].repeat(1, 5),
}


FLAT = {
    "start": lambda h: torch.flatten(h, start_dim=1),
    "size": lambda h: h.view(h.size(0), -1),
    "shape": lambda h: torch.reshape(h, (h.shape[0], -1)),
    "len": lambda h: h.reshape(len(h), -1),
    "known": lambda h: h.view(-1, 24),
}


class Functions(nn.Module):
    """Dropout and the logarithm of probabilities as functions, as in torch's own example for MNIST."""

    def __init__(self, flat="start"):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 6, 1), nn.Linear(24, 5), nn.Linear(5, 4)
        self.relu, self.relu2, self.flat = nn.ReLU(), nn.ReLU(), FLAT[flat]

    def forward(self, x):
        h = self.flat(F.dropout2d(self.relu(self.one(x)), training=self.training))
        h = F.dropout(self.relu2(self.two(h)), 0.5, self.training)
        return F.log_softmax(self.head(h), dim=1)


def compare(model, x, y, layers=None):
    layers = layers or [name for name, _ in units.unit_layers(model, x) if "sigmoid" not in name]  # hooks see modules
    found = units.Cut(model, x, layers).layers
    for value in ("zero", "mean", "mean_per_position"):
        pairs = [
            (ablation.single_unit(model, x, y, layers, value), plain.single_unit(model, x.clone(), y, found, value)),
        ]
        curves = ablation.cumulative(model, x, y, layers, orders=2, steps=5, value=value)
        sequences = ablation.sequences(units.Cut(model, x, layers).units, 2, 0)
        counts = curves[curves.order == 0].n_ablated.tolist()
        pairs.append((curves, plain.cumulative(model, x.clone(), y, found, sequences, counts, value)))
        for ours, theirs in pairs:
            pd.testing.assert_series_equal(ours.loss, theirs.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        *(Scaled, flattened, ending_in_a_convolution, normed_after_flatten, hooked, lambda: Sum(True), Squeezed),
        *(parametrized, Recurrent, Functions, lambda: Functions("size"), lambda: Functions("len")),
        *(partial(Averaged, how) for how in AVERAGED),
    ],
    ids=[
        *("scaled", "flat", "convolution", "norm", "hook", "sum", "squeezed"),
        *("parametrized", "recurrent", "functions", "view", "len", *AVERAGED),
    ],
)
@pytest.mark.parametrize("n", [6, 7, 129, 130])  # as many images as channels; a last block of one, of two images
def test_equals_the_plain_way(build, n):
    model = networks.randomized(build())
    compare(model, *networks.images(n, (3, 2, 2), 4))


@pytest.mark.parametrize("flat", FLAT)
@pytest.mark.parametrize("layer", ["relu", "relu2"])
def test_functions_of_eval_mode_are_links_of_a_chain(layer, flat):
    cut = units.Cut(Functions(flat).eval(), torch.randn(3, 3, 2, 2))
    assert cut.chain(layer, {layer: torch.zeros(1, *cut.shapes[layer])})


@pytest.mark.parametrize("how", AVERAGED)
def test_positions_that_are_averaged_away_leave_a_chain(how):
    cut = units.Cut(Averaged(how).eval(), torch.randn(3, 3, 2, 2))
    links = cut.chain("relu", {"relu": torch.zeros(1, 5, 2, 2)})
    assert [link.layer for link in links] == (["relu", None] if "of" not in how else [])


CLAMPS = {
    "method": lambda h: h.clamp(min=0),
    "in place": lambda h: h.clamp_(0.0),
    "clip": lambda h: torch.clip(h, 0, None),
    "clamp_min": lambda h: torch.clamp_min(h, 0),
    "capped": lambda h: h.clamp(0, 6),
    "lifted": lambda h: h.clamp(min=0.1),
    "below": lambda h: h.clamp(max=0),
}


class Clamped(nn.Module):
    """A hidden layer with a clamp in place of its nonlinearity."""

    def __init__(self, how):
        super().__init__()
        self.one, self.two, self.how = nn.Linear(12, 6), nn.Linear(6, 4), CLAMPS[how]

    def forward(self, x):
        return self.two(self.how(self.one(x.flatten(1))))


@pytest.mark.parametrize("how", CLAMPS)
def test_a_clamp_at_zero_from_below_alone_is_a_relu(how):
    model, (x, y) = networks.randomized(Clamped(how)), networks.images(20, (3, 2, 2), 4)
    layer = {"in place": "clamp_", "clip": "clip", "clamp_min": "clamp_min"}.get(how, "clamp")
    if how in ("capped", "lifted", "below"):
        with pytest.raises(ValueError, match="found no unit layer"):
            units.unit_layers(model, x)
        return
    assert units.unit_layers(model, x) == [(layer, 6)]
    relu = nn.Sequential(nn.Flatten(), model.one, nn.ReLU(), model.two)
    found, expected = ablation.single_unit(model, x, y), ablation.single_unit(relu, x, y)
    assert found.drop(columns="layer").equals(expected.drop(columns="layer"))


def test_what_runs_in_parallel_keeps_its_layers():
    model = nn.Sequential(nn.DataParallel(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU())), nn.Flatten(), nn.Linear(24, 4))
    assert units.unit_layers(model, torch.randn(3, 3, 2, 2)) == [("0.module.1", 6)]
    x, y = networks.images(20, (3, 2, 2), 4)
    for network in (Functions(), networks.Functional(classes=4)):  # around all of it, it leaves no trace in the names
        found = ablation.single_unit(nn.DataParallel(network), x, y)
        assert len(found) and found.equals(ablation.single_unit(network, x, y))


def test_resampled_values_are_drawn_on_the_cpu():
    """Whatever torch's default device is; "meta" stands for a GPU."""
    model, (x, y) = models.mlp(12, [6], 4), networks.images(20, (3, 2, 2), 4)
    expected = ablation.single_unit(model, x, y, value="resampled")
    with torch.device("meta"):
        found = ablation.single_unit(model, x, y, value="resampled")
    assert found.equals(expected)


class Overwriting(nn.Module):
    """Two hidden layers with something in place between them."""

    def __init__(self, change):
        super().__init__()
        self.one, self.relu, self.two, self.relu2 = nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(inplace=True)
        self.head, self.change = nn.Linear(6, 4), change

    def forward(self, x):
        h = self.two(self.change(self.relu(self.one(x.flatten(1)))))
        self.relu2(h)
        return self.head(h)


def capped(h):
    torch.clamp_(h, max=0.3)
    return h


def capped_in_part(h):
    h[:, :3].clamp_(max=0.3)
    return h


def capped_into_itself(h):
    return torch.clamp(h, max=0.3, out=h)


def capped_as_asked(h):
    return h.clamp_(max=0.3) if float(h.sum()) > -1 else h


@pytest.mark.parametrize("change", [capped, capped_in_part, capped_into_itself, capped_as_asked])
def test_what_is_overwritten_is_seen_by_all_that_follows(change):
    """The first two images, which tell how a model is run, do not reach the cap; some models have to go through hooks."""
    n = 3 if change is capped_in_part else 6
    apart = networks.randomized(Overwriting(lambda h: torch.cat([h[:, :n].clamp(max=0.3), h[:, n:]], 1)))
    model = Overwriting(change)
    model.load_state_dict(apart.state_dict())
    x, y = networks.images(40, (3, 2, 2), 4)
    x[:2] /= 1000
    before = x.clone()
    analyses = (
        *(partial(ablation.single_unit, value=value) for value in ("zero", "mean")),
        *(ablation.cumulative, selectivity.table, partial(noise.sweep, scales=[0.0, 0.5], repeats=2)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model is measured through hooks")
        for analysis in analyses:
            expected = analysis(apart, x, y, layers=["relu", "relu2"])
            pd.testing.assert_frame_equal(
                analysis(model, x, y, layers=["relu", "relu2"]), expected, rtol=1e-5, atol=1e-6
            )
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def with_another_forward(place, forward):
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)
    )
    model[place].forward = partial(forward, model[place])
    return model


@pytest.mark.parametrize("place", [3, 4, 6])
def test_a_module_may_have_another_forward_than_its_class(place):
    def scaled(module, h):
        return 3 * type(module).forward(module, h) - h.mean(1, keepdim=True)

    compare(networks.randomized(with_another_forward(place, scaled)), *networks.images(30, (3, 2, 2), 4))


def test_hooks_on_all_modules_are_heeded():
    def halved(module, _, output):
        return 0.5 * output if isinstance(module, nn.Linear) else output

    handle = torch.nn.modules.module.register_module_forward_hook(halved)
    try:
        compare(networks.randomized(models.mlp(12, [6, 5], 4)), *networks.images(30, (3, 2, 2), 4))
    finally:
        handle.remove()


class Options(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = models.mlp(12, [6, 5], 4)

    def forward(self, x, mask=None, features=False, temperature=2.0):
        if mask is not None:
            x = x * mask
        h = self.mlp(x)
        return (h, x) if features else h / temperature


class Mixed(nn.Module):
    """Half precision in the middle."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(12), nn.Linear(12, 6).bfloat16(), nn.Linear(6, 6).bfloat16()
        self.relu, self.relu2, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x):
        h = self.relu(self.one(self.norm(x.flatten(1)).bfloat16()))
        return self.head(self.relu2(self.two(h)).float())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("build", [Options, Mixed])
def test_options_and_mixed_precision_are_traced(build):
    model, (x, y) = networks.randomized(build()), networks.images(30, (3, 2, 2), 4)
    compare(model, x, y)
    assert len(noise.sweep(model, x, y, [0.5], repeats=1)) == 1


@pytest.mark.filterwarnings("error")
def test_blocks_compiled_in_place_are_measured_as_they_are():
    model, (x, y) = networks.randomized(nn.Sequential(models.mlp(12, [6, 5], 4))), networks.images(30, (3, 2, 2), 4)
    expected = ablation.single_unit(model, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11 warns of parts of its own
        model[0].compile()
    compiled = model[0]._compiled_call_impl
    pd.testing.assert_frame_equal(ablation.single_unit(model, x, y), expected)
    assert model[0]._compiled_call_impl is compiled


@pytest.mark.filterwarnings("error")
def test_half_precision_may_begin_in_the_middle():
    """Its rounding alone, of one part in 256, is between a network and the same one in full."""

    class Halved(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.one, self.dtype = nn.Linear(12, 6), dtype
            self.rest = nn.Sequential(nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).to(dtype)

        def forward(self, x):
            return self.rest(self.one(x.flatten(1)).to(self.dtype))

    whole, halved = networks.randomized(Halved(torch.float32)), Halved(torch.bfloat16)
    halved.load_state_dict(whole.state_dict())
    x, y = networks.images(200, (3, 2, 2), 4)
    for measure in (
        partial(ablation.single_unit, value="mean"),
        partial(ablation.cumulative, value="mean", orders=2, steps=3),
        partial(noise.sweep, scales=[0.0, 0.5], repeats=1),
        partial(beyond.projections, orders=2, steps=3),
        beyond.weights,
    ):
        pairs = (
            measure(model, x, y).drop(columns=["accuracy", "delta_accuracy"], errors="ignore")
            for model in (whole, halved)
        )
        pd.testing.assert_frame_equal(*pairs, rtol=0.02, atol=0.01)


def test_autocast_around_a_measurement_changes_nothing():
    model, (x, y) = networks.randomized(models.mlp(12, [6, 5], 4)), networks.images(30, (3, 2, 2), 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ablation.cumulative(model, x, y, orders=2, steps=3)
    pd.testing.assert_frame_equal(found, ablation.cumulative(model, x, y, orders=2, steps=3))


@pytest.mark.parametrize("n", [5, 8, 9])  # as many images as positions, too
def test_positions_may_come_before_images(n):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.relu, self.head = nn.MultiheadAttention(4, 2), nn.ReLU(), nn.Linear(4, 4)
            self.stem = nn.Linear(4, 4)

        def forward(self, x):  # (N, 4, 8)
            tokens = x.permute(2, 0, 1)
            gate = self.relu(self.stem(x.mean(2)))
            mixed, _ = self.mix(tokens, tokens, tokens)
            return self.head((tokens + mixed * gate).mean(0))

    model = networks.randomized(Attention())
    x, y = torch.randn(n, 4, 8, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 4
    compare(model, x, y, ["relu"])


@pytest.mark.parametrize("layers", [["1", "2"], ["2", "5"], ["1", "5", "8"], ["5"]])
def test_pooling_layers_are_ablated_as_any_other(layers):
    compare(networks.randomized(networks.pooled(before=False)), *networks.images(), layers)


def test_a_prelu_of_one_slope_a_channel_is_no_part_of_a_chain():
    model = networks.randomized(nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.PReLU(6), nn.Linear(6, 4)))
    with torch.no_grad():
        model[2].weight.uniform_(-1, 1)
    x, y = networks.images(9, (3, 2, 2), 4)
    assert units.Cut(model, x).chain("2", {"2": torch.zeros(1, 6)})  # above it
    assert units.Cut(model, x, ["1", "2"]).chain("1", {"1": torch.zeros(1, 6)}) == []  # below it
    compare(model, x, y, ["1", "2"])


def test_in_double_precision_nothing_is_overwritten():
    """A layer may hand on its input itself, and that may be the caller's."""
    model = networks.randomized(models.mlp(12, [6, 5], 4, dropout=0.5)).double()
    x = networks.images(20, (3, 2, 2), 4)[0].double()
    before = x.clone()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Flatten | nn.Dropout | nn.ReLU)]
    with evaluation.evaluating(model):
        cut = units.Cut(model, x, layers)
        spread = values.standard_deviations(cut, x)
        means = values.clamp_values(cut, "mean", x)
    assert torch.equal(x, before) and len(layers) > 3
    for layer, h in plain.activations(model, x, layers).items():
        torch.testing.assert_close(spread[layer], h.std(0, correction=0, keepdim=True))
        torch.testing.assert_close(means[layer], h.mean(0, keepdim=True))


@pytest.mark.parametrize("room", [1, 300, 3000])
@pytest.mark.parametrize("build", [lambda: models.mlp(192, [9, 8], 5), lambda: networks.pooled(before=True)])
def test_however_little_room_there_is_the_units_are_the_same(build, room, monkeypatch):
    """Units that are silent on all images stand first, last and side by side; chunks end anywhere."""
    model, (x, y) = networks.randomized(build()), networks.images(129)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and len(module.bias) > 5:
                module.bias[[0, 3, 4, -1]] = -50.0
    expected = ablation.single_unit(model, x, y)
    monkeypatch.setattr(ablation, "budget", lambda *_, **__: room)
    monkeypatch.setattr(ablation, "SCORED", 5)
    pd.testing.assert_frame_equal(ablation.single_unit(model, x, y), expected, rtol=1e-5, atol=1e-6)
    assert (expected.delta_loss == 0).sum() >= 8


def test_resampled_values_are_those_of_their_images_in_every_block():
    """The last block has one image; a network that cannot be traced has the same blocks."""
    x, y = networks.images(129, (3, 2, 2), 4)
    traced = networks.randomized(networks.OneReLU())
    other = networks.Untraceable()
    other.load_state_dict(traced.state_dict())
    found = ablation.single_unit(traced, x, y, value="resampled")
    with pytest.warns(UserWarning, match="hooks"):
        hooked = ablation.single_unit(other, x, y, value="resampled")
    pd.testing.assert_frame_equal(found, hooked, rtol=1e-5, atol=1e-6)
    drawn = values.clamp_values(units.Cut(traced, x), "resampled", x)

    def edit(layer, h):
        return torch.cat([h[:, :8], drawn[layer][:, 8:]], 1) if layer == "relu_1" else h

    loss, _ = plain.loss_and_accuracy(plain.logits(traced, x, edit), y)
    assert found.loss.iloc[-1] == pytest.approx(loss, abs=1e-6)


def test_the_result_of_a_hook_is_not_overwritten_in_place():
    traced, hooks = Sum(True), Sum(False)
    hooks.load_state_dict(networks.randomized(traced).state_dict())
    x, y = networks.images(40, (3, 2, 2), 4)
    with pytest.warns(UserWarning, match="hooks"):
        compare(hooks, x, y)
    with pytest.warns(UserWarning, match="hooks"):
        pd.testing.assert_frame_equal(selectivity.table(hooks, x, y), selectivity.table(traced, x, y))
    with pytest.warns(UserWarning, match="hooks"):
        ours, theirs = (noise.sweep(model, x, y, [1.0], repeats=2) for model in (hooks, traced))
    pd.testing.assert_frame_equal(ours, theirs)


def test_images_stay_as_they_are_whatever_the_model_does_to_them():
    model = networks.randomized(Changing())
    x, y = networks.images(20, (3, 2, 2), 4)
    before = x.clone()
    model(x.clone())
    seen = model.seen
    ours = ablation.single_unit(model, x, y)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert type(model.seen) is type(seen)  # nothing of the tracing is left in the model
    other = models.mlp(12, [6, 5], 4)
    other.load_state_dict(model.mlp.state_dict())
    theirs = ablation.single_unit(other, (x - 0.5) / 2, y)
    pd.testing.assert_frame_equal(ours.drop(columns="layer"), theirs.drop(columns="layer"))


@pytest.mark.parametrize("traced", [True, False])
def test_modules_with_a_number_in_their_name_keep_it(traced):
    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            names = ("fc_1", "relu_1", "fc_2", "relu_2")
            kinds = (nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
            self.net = nn.Sequential(OrderedDict(zip(names, kinds, strict=True)))
            self.relu, self.relu_1, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(6, 4)

        def forward(self, x):
            h = self.net(x.flatten(1))
            if not traced and float(h.sum()) < -1:
                return h
            return self.head(self.relu_1(self.relu(self.relu(h) - 0.1) - 0.1))

    model = networks.randomized(Numbered())
    x, y = networks.images(30, (3, 2, 2), 4)
    names = [name for name, _ in (units.unit_layers(model, x) if traced else _warned(units.unit_layers, model, x))]
    assert names == ["net.relu_1", "net.relu_2", "relu", "relu_2", "relu_1"]
    if traced:
        compare(model, x, y, ["net.relu_1"])
        compare(model, x, y, ["net.relu_2"])


def test_a_network_that_cannot_be_traced_is_warned_of_once():
    x, y = networks.images(40, (3, 2, 2), 4)
    dataset = data.Dataset("mine", x, y, x, y, tuple("abcd"))
    for call in (lambda model: measure_model(model, dataset), lambda model: beyond.ranked(model, x, y, x, y)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(networks.randomized(networks.Untraceable()))
        assert len([w for w in caught if "hooks" in str(w.message)]) == 1


def test_a_caller_without_a_name_is_warned_too():
    x, _ = networks.images(5, (3, 2, 2), 4)
    space = {"layers": units.unit_layers, "model": networks.randomized(networks.Untraceable()), "x": x}
    with pytest.warns(UserWarning, match="hooks"):
        exec("found = layers(model, x)", space)  # as job runners do it
    assert space["found"]


def _warned(function, *arguments):
    with pytest.warns(UserWarning, match="hooks"):
        return function(*arguments)


def test_a_batch_norm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU())
    with pytest.raises(ValueError, match="model: a batch norm without running statistics"):
        units.unit_layers(nn.Sequential(model, nn.Linear(6, 4)), networks.images(9, (3, 2, 2), 4)[0])


def test_blocks_are_as_small_as_the_widest_activation_asks():
    """Memory is bounded by what lies on the way, also where the named layers themselves are small."""
    x = torch.randn(2, 3, 32, 32)
    cut = units.Cut(Squeezed(), x, ["relu"])
    largest = max(block.stop - block.start for block in cut.blocks(10_000))
    assert largest * 64 * 32 * 32 * 4 <= work.budget(cut.device)
    with evaluation.evaluating(cut.program.model):
        assert cut.start(x, ["relu"]).largest == 64 * 32 * 32


def test_small_losses_are_exact():
    logits = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0)) * 3
    logits[:, 0] += 70
    y = torch.zeros(2000, dtype=torch.long)
    truth = torch.nn.functional.cross_entropy(logits.double(), y).item()
    loss = evaluation.scores(logits, y)[0].item() / 2000
    assert 0 <= truth < 1e-7 and abs(loss - torch.nn.functional.cross_entropy(logits, y).item()) < 1e-12
