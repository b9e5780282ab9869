"""What a recipe begins with, and the loop that trains its network."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from repro import data, experiment, selectivity, store, training
from repro.recipe import STREAMS, build, training_set
from repro.training import Recipe, Run, train

SMALL = dict(dataset="digits", n_train=128, batch_size=32, epochs=4)
MLP = Recipe(**SMALL, width=8)
CONVNET = Recipe(**SMALL, model="convnet", width=1 / 16, lr=0.01)
VARIANTS = {
    "sgd": MLP,
    "sgd without momentum": dataclasses.replace(MLP, momentum=0),
    "adam": dataclasses.replace(MLP, optimizer="adam", lr=1e-3),
    "dropout": dataclasses.replace(MLP, dropout=0.3),
    "schedule": dataclasses.replace(MLP, schedule="onecycle", weight_decay=1e-2),
    "penalty": dataclasses.replace(MLP, alpha=-0.5),
    "convnet sgd": CONVNET,
    "convnet adam": dataclasses.replace(CONVNET, optimizer="adam", lr=1e-3),
    "convnet penalty": dataclasses.replace(CONVNET, alpha=0.5),
    "convnet bfloat16": dataclasses.replace(CONVNET, batch_norm=False, precision="bfloat16"),
    "resnet50": Recipe(**SMALL | {"n_train": 32}, model="resnet50", width=1 / 32, lr=0.01),
}
variants = pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS)


def advanced(recipe, epochs=None):
    """A run after so many epochs, by default after the last."""
    run = Run(recipe)
    for _ in range(recipe.epochs if epochs is None else epochs):
        run.advance()
    return run


def same(left, right):
    """Whether two collections of named tensors agree bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Together or alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lrs", ["one", "several"])
@pytest.mark.parametrize("change", [{}, dict(optimizer="adam", lr=1e-3), dict(schedule="onecycle", weight_decay=1e-2)])
@pytest.mark.parametrize(
    "where", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_a_member_of_a_group_is_what_it_would_be_alone(change, lrs, where):
    base = dataclasses.replace(MLP, **SMALL | {"n_train": 160, "batch_size": 16, "epochs": 1}, **change)  # ten steps
    members = [dataclasses.replace(base, seed=i, corruption=i / 4) for i in range(5)]
    if lrs == "several":
        members = [dataclasses.replace(member, lr=base.lr / (1 + i)) for i, member in enumerate(members)]
    group = training.Group(members, torch.device(where))
    group.advance()
    x = data.load("digits").x_test
    for recipe, together in zip(members, group.networks(), strict=True):
        alone = Run(recipe, torch.device(where))
        alone.advance()
        torch.testing.assert_close(together(x), alone.network()(x), atol=1e-4, rtol=0)
    assert group.done and not together.training


def test_only_mlps_of_one_shape_train_together():
    seeds = [dataclasses.replace(MLP, seed=i, corruption=i / 4, lr=0.1 * (i + 1)) for i in range(3)]
    others = [dataclasses.replace(MLP, epochs=5), VARIANTS["dropout"], VARIANTS["penalty"]]
    others += [dataclasses.replace(CONVNET, seed=1), CONVNET]
    assert training.together([*seeds, *others]) == [seeds, *([other] for other in others)]


# The same recipe is the same network ------------------------------------------------------------------------


@variants
def test_a_recipe_trains_to_the_same_bits(recipe):
    assert same(train(recipe).state_dict(), train(recipe).state_dict())


@variants
def test_a_resumed_run_ends_with_the_same_bits(recipe, tmp_path):
    origin = {"recipe": {}}
    through = Run(recipe)
    while not through.done:
        store.write_tensors(tmp_path / f"{through.epoch}.safetensors", through.state(), origin)
        through.advance()
    for epoch in range(recipe.epochs):
        run = Run(recipe)
        run.resume(store.read_tensors(tmp_path / f"{epoch}.safetensors", origin))
        assert run.epoch == epoch and not run.done
        while not run.done:
            run.advance()
        assert same(run.state(), through.state()), f"resumed after epoch {epoch}"
    finished = Run(recipe)
    finished.resume(through.state())
    assert finished.done


def test_results_do_not_depend_on_the_thread_count():
    recipe = dataclasses.replace(CONVNET, epochs=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = train(recipe).state_dict()
        assert torch.get_num_threads() == 2  # handed back as it was
        torch.set_num_threads(1)
        assert same(two, train(recipe).state_dict())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_trains_inside_inference_mode_and_on_what_was_loaded_there(tmp_path, monkeypatch):
    expected = train(MLP).state_dict()
    data._load.cache_clear()
    with torch.inference_mode():
        assert same(train(MLP).state_dict(), expected)
        monkeypatch.setenv("REPRO_STORE", str(tmp_path))
        experiment.measure("history", [MLP])
        stored = experiment.network(MLP)
        assert training.estimate(MLP) > 0
    assert same(stored.state_dict(), expected) and not any(weight.is_inference() for weight in stored.parameters())
    assert same(train(MLP).state_dict(), expected)


def test_another_default_dtype_is_named():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="torch.set_default_dtype: expected torch.float32"):
            train(MLP)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dropout", [0, 0.3])
def test_training_leaves_the_global_random_state_alone(dropout):
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    train(dataclasses.replace(MLP, dropout=dropout))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)


def test_training_does_not_depend_on_the_global_random_state():
    recipe = dataclasses.replace(MLP, dropout=0.3)
    first = train(recipe).state_dict()
    torch.manual_seed(12345)
    assert same(train(recipe).state_dict(), first)


# Streams ----------------------------------------------------------------------------------------------------


def batches(recipe):
    """The images of every step of training, in order."""
    run = Run(recipe)
    seen, forward = [], run.forward
    run.forward = lambda x: (seen.append(x.clone()), forward(x))[1]
    while not run.done:
        run.advance()
    return torch.cat(seen)


def test_the_streams_of_a_seed_differ_from_each_other_and_from_seed_to_seed():
    streams = [dataclasses.replace(MLP, seed=s).stream(name) for s in range(3) for name in STREAMS]
    assert len(set(streams)) == 3 * 4


@pytest.mark.parametrize("change", [{"corruption": 1.0}, {"dropout": 0.5}, {"lr": 1e-4}, {"optimizer": "adam"}])
def test_other_fields_change_neither_initialization_nor_order(change):
    other = dataclasses.replace(MLP, **change)
    assert same(build(other).state_dict(), build(MLP).state_dict())
    assert torch.equal(batches(other), batches(MLP))


def test_a_seed_changes_initialization_order_and_labels():
    recipe = dataclasses.replace(MLP, corruption=1.0)
    other = dataclasses.replace(recipe, seed=1)
    assert not torch.equal(build(other)[1].weight, build(recipe)[1].weight)
    assert not torch.equal(batches(other), batches(recipe))
    assert not torch.equal(training_set(other)[1], training_set(recipe)[1])


def test_every_epoch_has_an_order_of_its_own_and_shows_each_image_once():
    recipe = dataclasses.replace(MLP, epochs=2)
    first, second = batches(recipe).flatten(1).chunk(2)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)
    assert len(first.unique(dim=0)) == 128


def test_a_last_incomplete_batch_is_left_out():
    run = Run(dataclasses.replace(MLP, n_train=100))
    assert run.steps == 3 and run.batch_size == 32
    run = Run(dataclasses.replace(MLP, n_train=20))  # a batch larger than the data set is the data set
    assert run.steps == 1 and run.batch_size == 20


@pytest.mark.parametrize("field, of_one", [("batch_size", {"batch_size": 1}), ("n_train", {"n_train": 1})])
def test_a_batch_of_one_image_is_refused_where_batch_norm_would_see_nothing_in_it(field, of_one):
    few = {"n_train": 8, "epochs": 1}
    for model in ({"model": "convnet", "width": 0.1}, {"model": "resnet50", "width": 0.05}):
        with pytest.raises(ValueError, match=f"^{field}: expected at least 2"):
            train(Recipe("digits", **model, **few | of_one))
    for model in ({"width": 8}, {"model": "convnet", "width": 0.1, "batch_norm": False}):
        train(Recipe("digits", **model, **few | of_one))


def test_the_training_set_has_shuffled_labels_and_untouched_images():
    recipe = dataclasses.replace(MLP, n_train=1000, corruption=0.6)
    x, y = training_set(recipe)
    clean = data.load("digits").subset(1000)
    assert torch.equal(x, clean.x_train)
    assert torch.equal(y.bincount(), clean.y_train.bincount())
    assert (y != clean.y_train).double().mean().item() == pytest.approx(0.9 * 0.6, abs=0.04)


# Learning ---------------------------------------------------------------------------------------------------


def test_a_network_memorizes_shuffled_digits():
    recipe = Recipe("digits", n_train=400, width=128, corruption=1.0, epochs=80)
    network, digits = train(recipe), data.load("digits")
    x, y = training_set(recipe)
    assert (network(x).argmax(1) == y).all()
    assert (network(digits.x_test).argmax(1) == digits.y_test).double().mean() < 0.25


def test_a_network_generalizes_from_true_labels():
    network, digits = train(Recipe("digits", width=32, epochs=10)), data.load("digits")
    assert (network(digits.x_test).argmax(1) == digits.y_test).double().mean() > 0.93


def test_without_epochs_a_network_stays_as_it_began():
    recipe = dataclasses.replace(MLP, epochs=0)
    begun = {name: t.half().float() for name, t in build(recipe).state_dict().items()}
    assert same(train(recipe).state_dict(), begun)


def test_the_penalty_is_the_selectivity_of_the_units_it_sees():
    run = advanced(dataclasses.replace(MLP, alpha=-0.5), 1)
    model, images = run.network(), data.load("digits")
    with training.activations(model) as hidden:
        model(images.x_test)
    table = selectivity.table(model, images.x_test, images.y_test)
    expected = table.selectivity.fillna(0).groupby(table.layer).mean().mean()
    assert training.mean_selectivity(hidden, images.y_test).item() == pytest.approx(expected, abs=0.01)  # the constant
    some = images.y_test > 6  # classes that a batch lacks do not count
    table = selectivity.table(model, images.x_test[some], images.y_test[some])
    expected = table.selectivity.fillna(0).groupby(table.layer).mean().mean()
    found = training.mean_selectivity([h[some] for h in hidden], images.y_test[some])
    assert found.item() == pytest.approx(expected, abs=0.01)
    assert not any(module._forward_hooks for module in [*run.model.modules(), *model.modules()])


def test_batches_of_one_class_have_no_selectivity():
    hidden = [torch.rand(4, 3, dtype=torch.bfloat16), torch.rand(4, 2, 5, 5, dtype=torch.bfloat16)]
    found = training.mean_selectivity(hidden, torch.full((4,), 7))
    assert found.item() == 0 and found.dtype == torch.float32
    train(Recipe("digits", n_train=64, width=4, epochs=1, batch_size=2, alpha=-1.0, lr=0.01))


def test_the_penalty_moves_selectivity_its_way():
    images, means = data.load("digits"), []
    for alpha in (-1, 0, 1):
        model = train(Recipe("digits", width=32, epochs=8, alpha=alpha))
        means.append(selectivity.table(model, images.x_test, images.y_test).selectivity.mean())
    assert means[0] < means[1] - 0.05 and means[2] > means[1] + 0.05


def test_training_ends_early_when_asked_to():
    recipe = Recipe("digits", n_train=100, width=64, epochs=200, stop_when_memorized=True)
    run = Run(recipe)
    while not run.done:
        assert run.accuracy < 1
        run.advance()
    assert run.accuracy == 1 and run.epoch < 200


def test_bfloat16_trains_to_another_network_measured_in_float32():
    recipe = dataclasses.replace(MLP, precision="bfloat16")
    network = train(recipe)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in network.parameters())
    assert not same(network.state_dict(), train(MLP).state_dict())


def test_divergence_is_an_error_that_names_the_recipe():
    with pytest.raises(FloatingPointError, match=r"diverged in epoch \d.*lr=1e\+30"):
        train(dataclasses.replace(MLP, lr=1e30))
    with pytest.raises(FloatingPointError, match="beyond half precision.*lr=100000.0"):
        train(Recipe("digits", n_train=200, width=8, epochs=4, optimizer="adam", lr=1e5))


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1] * 8),
        ("linear", [15 / 16, 13 / 16, 11 / 16, 9 / 16, 7 / 16, 5 / 16, 3 / 16, 1 / 16]),
        ("cosine", [0.990393, 0.915735, 0.777785, 0.597545, 0.402455, 0.222215, 0.084265, 0.009607]),
        # Up to 1 after a fifth of the steps, then down to 0.
        ("onecycle", [0.3125, 0.9375, 0.859375, 0.703125, 0.546875, 0.390625, 0.234375, 0.078125]),
    ],
)
def test_the_learning_rate_of_every_step(schedule, factors):
    run = Run(dataclasses.replace(MLP, epochs=2, schedule=schedule, lr=0.5))  # two epochs of four steps
    rates, step = [], run.optimizer.step
    run.optimizer.step = lambda: (rates.append(run.optimizer.param_groups[0]["lr"]), step())
    while not run.done:
        run.advance()
    assert rates == pytest.approx([0.5 * factor for factor in factors], abs=1e-6)


def test_optimizers_get_what_the_recipe_says():
    sgd = Run(dataclasses.replace(MLP, momentum=0.8, weight_decay=0.01)).optimizer
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.8 and sgd.param_groups[0]["weight_decay"] == 0.01
    adam = Run(dataclasses.replace(MLP, optimizer="adam", momentum=0.8)).optimizer
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["betas"] == (0.8, 0.999)


# What training hands out ------------------------------------------------------------------------------------


def test_a_trained_network_is_in_eval_mode_and_rounded_to_half_precision():
    network = train(CONVNET)
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(p, p.half().float()) and not p.requires_grad for p in network.parameters())
    assert not torch.equal(network.norm1.running_var, network.norm1.running_var.half().float())


def test_looking_at_a_network_does_not_change_its_training():
    looked, through = Run(MLP), advanced(MLP)
    while not looked.done:
        looked.advance()
        looked.network()[1].weight.fill_(7)
    assert same(looked.state(), through.state())


def test_training_takes_no_heed_of_torchs_switches():
    recipe = Recipe("digits", width=256, epochs=2)
    expected = train(recipe)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # products of bfloat16 where the CPU has such
    try:
        with torch.no_grad():
            found = train(recipe)
    finally:
        torch.set_float32_matmul_precision(before)
    assert same(found.state_dict(), expected.state_dict())


def test_what_is_not_trained_takes_no_time():
    assert training.estimate(Recipe("digits", n_train=128, width=4, epochs=0, lr=1e30)) == 0
    with pytest.raises(ValueError, match="n_train"):
        training.estimate(Recipe("digits", n_train=10_000))


def test_a_time_estimate_grows_with_epochs_and_images(monkeypatch):
    """Told by a clock that goes on by a second whenever it is asked: a slice of 96 images takes one."""
    ticks = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(ticks)))
    assert training.estimate(MLP) == pytest.approx(128 / 96 * 4)
    assert training.estimate(dataclasses.replace(MLP, epochs=8)) == pytest.approx(128 / 96 * 8)
    assert training.estimate(dataclasses.replace(MLP, n_train=512)) == pytest.approx(512 / 96 * 4)
    assert training.estimate(dataclasses.replace(MLP, n_train=None, batch_size=1000)) > 0  # one incomplete batch


@pytest.mark.parametrize("name", ["gpu", "", "CPU"])
def test_an_unknown_device_is_refused(name, monkeypatch):
    monkeypatch.setenv("REPRO_DEVICE", name)
    with pytest.raises(ValueError, match="^REPRO_DEVICE: expected auto, cpu or cuda"):
        training.device()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("REPRO_DEVICE", "cuda")
    with pytest.raises(ValueError, match="^REPRO_DEVICE: asks for cuda, but torch finds no GPU"):
        training.device()
