"""What a training does; where it is done changes its last digits and its speed, nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from igkd import training
from igkd.device import Compute, pick_compute
from igkd.errors import TrainingError
from igkd.experiments import Planned
from igkd.images import split_rows
from igkd.models import MobileNetV2, load_weights
from igkd.records import unpack_predictions
from igkd.runs import ARMS, RECIPES, Architecture, Method, Subset
from igkd.signals import Signals
from igkd.study import Study
from igkd.training import confusion, evaluate, measures, train
from small import ALL, COMPUTE, RECIPE, refusal, small_images, small_run, small_signals, store_in

IMAGES = small_images()
ADAM = replace(RECIPE, optimizer="adam", lr=1e-3, one_cycle=False, weight_decay=0.0)
MUON = replace(RECIPE, optimizer="muon", scales=((0.25, 0.2), (0.5, 0.6)))
ONE_STEP = replace(RECIPE, num_epochs=1, batch_size=40)
TEACHER = Architecture(0, normalize=True)
HALF = Subset(fraction=0.5)


def trained(run, folder, signals=None, images=IMAGES, log=lambda line: None):
    if signals is None:
        signals = small_signals(images) if run.signals else Signals()
    return train(run, images, store_in(folder), COMPUTE, signals, log=log)


def inputs(run, folder, images=IMAGES):
    """What the network is given at each step of a training."""
    given = []

    def keep(module, arguments):
        if isinstance(module, MobileNetV2) and module.training:
            given.append(arguments[0].clone())

    with nn.modules.module.register_module_forward_pre_hook(keep):
        trained(run, folder, images=images)
    return given


@pytest.mark.parametrize("network", [Architecture(17), TEACHER], ids=["student", "teacher, with dropout"])
def test_the_same_run_gives_the_same_outcome_bit_for_bit(network, tmp_path):
    """Whatever the global generator holds, and however many threads the process has."""
    run, outcomes = small_run(IMAGES, Method() if network is TEACHER else ALL, ADAM, architecture=network), []
    for threads in (torch.get_num_threads() + 2, torch.get_num_threads()):
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        outcomes.append(trained(run, tmp_path / str(threads)).outcome)
        assert torch.get_num_threads() == threads
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("ingredient", ["overlay_prob", "alpha", "gamma"])
def test_arms_of_one_seed_share_initial_weights_order_and_crops(ingredient, tmp_path):
    # With an ingredient too weak to matter, whatever else differed would show.
    def history(method, seed=0):
        epochs = trained(small_run(IMAGES, method, seed=seed), tmp_path).outcome["history"]
        return [means["cross_entropy"] for means in epochs]

    plain = history(Method())
    assert history(Method(**{ingredient: 1e-12})) == pytest.approx(plain, rel=1e-4)
    assert history(Method(**{ingredient: 0.5})) != plain
    assert history(Method(), seed=1) != pytest.approx(plain, rel=1e-2)


LONG = {
    "adam": small_run(IMAGES, ALL, replace(ADAM, num_epochs=3)),
    "dropout, sgd in one cycle": small_run(IMAGES, recipe=replace(RECIPE, num_epochs=3), architecture=TEACHER),
    "muon, small images first": small_run(IMAGES, ALL, replace(MUON, num_epochs=3), architecture=Architecture(15)),
}


@pytest.mark.parametrize("run", LONG.values(), ids=LONG)
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    whole = trained(run, tmp_path / "whole")
    for last in (1, 2):

        def stop(line):
            if line.startswith(f"epoch {last + 1}/"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(run, tmp_path / "parts", log=stop)
    lines = []
    parts = trained(run, tmp_path / "parts", log=lines.append)
    assert len(lines) == 2  # that it goes on, and one epoch
    assert parts.outcome == whole.outcome


def test_a_training_whose_checkpoint_cannot_be_used_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    run, path = small_run(IMAGES), store_in(tmp_path).checkpoint_path(small_run(IMAGES).key)
    outcome = trained(run, tmp_path).outcome
    whole = torch.load(path, weights_only=True)
    no_schedule = {name: part for name, part in whole.items() if name != "1"}  # missed after weights are put back
    for damaged in (no_schedule, whole | {"teacher": "another"}, None):
        torch.save(damaged, path) if damaged else path.write_bytes(path.read_bytes()[:1000])
        lines = []
        assert trained(run, tmp_path, log=lines.append).outcome == outcome
        assert len(lines) == 1 + run.recipe.num_epochs  # one says why


@pytest.mark.parametrize("name", ARMS)
def test_terms_recombine_to_the_loss(name, tmp_path):
    method = ARMS[name]
    (means,) = trained(small_run(IMAGES, method, replace(RECIPE, num_epochs=1)), tmp_path).outcome["history"]
    assert ("distillation" in means) == ("KD" in name) and ("attention" in means) == ("AT" in name)
    expected = method.alpha * means.get("distillation", 0) + method.gamma * means.get("attention", 0)
    assert means["loss"] == pytest.approx((1 - method.alpha) * means["cross_entropy"] + expected, rel=1e-5)


def test_gradient_norms_are_of_the_weighted_terms(tmp_path):
    def norms(**changes):
        run = small_run(IMAGES, replace(ALL, **changes), ONE_STEP)
        means = trained(run, tmp_path).outcome["history"][0]
        return {name: means[f"gradient_norms.{name}"] for name in ("cross_entropy", "distillation", "attention")}

    before, after = norms(alpha=0.3, gamma=5.0), norms(alpha=0.6, gamma=10.0)
    assert all(norm > 0 for norm in before.values())
    ratios = {name: after[name] / before[name] for name in before}
    assert ratios == pytest.approx({"cross_entropy": 0.4 / 0.7, "distillation": 2, "attention": 2}, rel=1e-4)


def test_signals_are_read_by_data_set_index(tmp_path):
    # A teacher that is sure of each label makes distillation the cross-entropy; what belongs to images that this
    # run does not see is not a number.
    unseen = torch.ones(40, dtype=torch.bool)
    unseen[split_rows(IMAGES.train_labels, HALF)[0]] = False
    sure = 50 * nn.functional.one_hot(torch.from_numpy(IMAGES.train_labels)).float()
    signals = replace(small_signals(IMAGES), logits=sure)
    for tensor in (signals.logits, signals.attention, signals.maps):
        tensor[unseen] = math.nan
    run = small_run(IMAGES, replace(ALL, temperature=1.0), subset=HALF)
    for means in trained(run, tmp_path, signals).outcome["history"]:
        assert means["distillation"] == pytest.approx(means["cross_entropy"], rel=1e-5)


def test_the_map_of_an_image_is_moved_with_it(tmp_path):
    # Grey images that are their own maps: laid over themselves they stay what they are, if moved alike.
    grey = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    grey[:, 6:10, 6:10] = 255  # in every crop, as black is in the border or here
    grey[:, 7, 7] = 0
    images = replace(IMAGES, train_images=np.repeat(grey[..., None], 3, axis=3))
    signals = Signals(maps=torch.from_numpy(grey).half())
    plain = trained(small_run(images, subset=HALF), tmp_path, images=images)
    all_overlaid = small_run(images, Method(overlay_prob=1.0, max_exponent=1.0), subset=HALF)
    assert trained(all_overlaid, tmp_path, signals, images).outcome == plain.outcome


@pytest.mark.parametrize(
    "ingredient, moves", [(Method(overlay_prob=0.5), True), (Method(gamma=5.0), True), (Method(alpha=0.5), False)]
)
def test_signals_as_released_are_not_moved_with_the_image(ingredient, moves, tmp_path):
    def history(variant, recipe, flip):
        images, run = replace(IMAGES, flip=flip), small_run(IMAGES, ingredient, recipe)
        run = replace(run, signals=replace(run.signals, variant=variant))
        return trained(run, tmp_path, images=images).outcome["history"]

    # The same signals under both names: where images are neither cropped nor mirrored there is no difference.
    for recipe, flip in ((replace(RECIPE, padding=0), False), (RECIPE, True)):
        assert (history("permuted", recipe, flip) != history("released", recipe, flip)) == (moves and flip)


def test_images_are_scaled_down_in_the_shares_of_the_steps_that_the_recipe_gives(tmp_path):
    whole, scaled = (inputs(small_run(IMAGES, ALL, each), tmp_path) for each in (replace(MUON, scales=()), MUON))
    assert [x.shape[2:] for x in whole] == [(16, 16)] * 10
    assert [x.shape[2:] for x in scaled] == [(4, 4)] * 2 + [(8, 8)] * 4 + [(16, 16)] * 4
    for small, large in zip(scaled, whole):  # means of squares of the same crops
        n = 16 // small.shape[2]
        squares = [large[:, :, row::n, column::n] for row in range(n) for column in range(n)]
        torch.testing.assert_close(small, sum(squares) / n**2)


def test_a_square_is_cut_out_of_every_image_after_the_overlay(tmp_path):
    images = replace(IMAGES, train_images=IMAGES.train_images | 1)  # nothing is black
    recipes, areas = [replace(RECIPE, padding=0, cutout=side) for side in (0, 4)], []
    whole, cut = (inputs(small_run(images, Method(overlay_prob=0.5), each), tmp_path, images) for each in recipes)
    for before, after in zip(torch.cat(whole), torch.cat(cut), strict=True):
        gone = (before != after).any(0)
        assert not after[:, gone].any() and gone.sum() == gone.any(1).sum() * gone.any(0).sum()
        areas.append(int(gone.sum()))
    assert 4 <= min(areas) <= max(areas) == 16  # a quarter is left in a corner


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_on_a_gpu_a_training_is_that_of_the_processor(optimizer, tmp_path):
    run = small_run(IMAGES, ALL, replace(MUON, num_epochs=4, optimizer=optimizer))
    losses = []
    for name in ("cpu", "cuda", "cuda:0"):
        assert pick_compute(name).device == name
        compute = Compute(name, bfloat16=False)
        outcome = train(run, IMAGES, store_in(tmp_path / name), compute, small_signals(IMAGES)).outcome
        losses.append([epoch["loss"] for epoch in outcome["history"]])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[2] == pytest.approx(losses[0], rel=0.02)


def test_a_device_that_is_not_there_is_refused():
    for name in ("cpu:foo", "cpu:0", f"cuda:{torch.cuda.device_count()}", "cuda:-1", "gpu"):
        refusal(pick_compute, name)


def test_after_few_steps_a_network_in_evaluation_mode_is_as_good_as_in_training_mode(tmp_path):
    images = small_images(n_train=90, n_test=90, num_classes=3)
    run = small_run(images, recipe=RECIPES["laptop"], architecture=Architecture(5))
    outcome = trained(run, tmp_path, images=images).outcome
    last = outcome["history"][-1]
    assert last["train_accuracy"] > 0.9  # chance is 0.33
    for measure in ("train_accuracy", "accuracy"):
        assert outcome[measure] == pytest.approx(last["train_accuracy"], abs=0.1)


def test_the_record_says_what_the_weights_do_on_the_held_out_images(tmp_path):
    run = small_run(IMAGES, subset=Subset(validation=0.2), split="validation")
    outcome, rows = trained(run, tmp_path).outcome, split_rows(IMAGES.train_labels, run.subset)[1]
    images, labels = IMAGES.train_images[rows], IMAGES.train_labels[rows]
    scored = evaluate(load_weights(store_in(tmp_path).weights_path(run.key), 4), images, labels, COMPUTE)
    assert scored == {name: outcome[name] for name in scored}
    assert (outcome["n_test"], outcome["n_train"]) == (8, 32)
    assert (unpack_predictions(outcome["predictions"]) == labels).mean() == outcome["accuracy"]


def test_measures_worked_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    answers = np.array([0, 0, 0, 1, 1, 2, 2, 3])  # class 3 does not occur
    scores = measures(confusion(labels, answers, 4))
    assert scores["accuracy"] == 5 / 8 and scores["n_test"] == 8
    np.testing.assert_equal(scores["per_class_accuracy"], [0.75, 0.5, 0.5, np.nan])
    assert scores["balanced_accuracy"] == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    # by chance they agree on (4 * 3 + 2 * 2 + 2 * 2 + 0 * 1) / 64 = 20 / 64
    assert scores["kappa"] == pytest.approx((40 - 20) / (64 - 20))


def test_a_run_that_fails_leaves_the_others_alone_and_is_not_trained_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    said, lines = [], []
    study = Study("demo", device="cpu", root=tmp_path, log=said.append, jobs=1)
    study.images, study.compute = IMAGES, COMPUTE
    blocked, good, other = (small_run(IMAGES, seed=seed) for seed in range(3))
    bad = [
        small_run(IMAGES, recipe=replace(RECIPE, lr=1e30, one_cycle=False)),  # an infinite loss
        small_run(IMAGES, recipe=replace(ONE_STEP, lr=1e38, one_cycle=False)),  # infinite weights after the last step
        small_run(small_images(seed=1)),  # other images
        small_run(IMAGES, subset=Subset(1e-6)),  # no image of any class
        small_run(IMAGES, recipe=replace(RECIPE, padding=10**7)),  # more memory than there is
    ]
    obstacle = study.store.weights_path(blocked.key)
    obstacle.mkdir(parents=True)  # a folder where the weights should go
    items = [Planned("arms", {"arm": "Student", "seed": run.seed}, run) for run in (blocked, good, *bad, other)]
    with pytest.raises(TrainingError):
        study.ensure(items)
    assert all(any(run.key in line for line in said) for run in (blocked, *bad))
    assert study.store.keys() == {path.stem for path in obstacle.parent.iterdir()} - {blocked.key}
    assert study.store.keys() == {good.key, other.key}
    obstacle.rmdir()
    study.train(blocked, lines.append)
    assert len(lines) == 1  # that it goes on: no epoch is trained again
