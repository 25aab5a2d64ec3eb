import io
import math
import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score
from torch import nn

from igkd import training
from igkd.engine import Study
from igkd.errors import InputError, TrainingError
from igkd.experiments import Planned
from igkd.images import Subset, train_indices, validation_indices
from igkd.methods import ARMS, Method
from igkd.models import Architecture, load_weights, state_digest
from igkd.runs import WEIGHTS, Record, Store, stream, unpack_predictions
from igkd.signals import Signals
from igkd.training import evaluate, predict, train
from small import ALL, COMPUTE, RECIPE, small_images, small_run, small_signals, small_teacher

IMAGES = small_images()
ADAM = replace(RECIPE, optimizer="adam", lr=1e-3, one_cycle=False, weight_decay=0.0)


def store(folder):
    return Store(folder / "records", folder / "build", folder / "weights")


def trained(run, folder, signals=None, images=IMAGES, log=lambda line: None):
    if signals is None and run.signals is not None:
        signals = small_signals(images)
    return train(run, images, store(folder), COMPUTE, *([] if signals is None else [signals]), log=log)


@pytest.mark.parametrize(
    "run",
    [
        small_run(IMAGES),
        small_run(IMAGES, ALL, ADAM),
        small_run(IMAGES, architecture=Architecture(0, 0.25, normalize=True), recipe=replace(RECIPE, num_epochs=1)),
    ],
    ids=["student", "all ingredients", "dropout"],
)
def test_the_same_run_gives_the_same_outcome_bit_for_bit(run, tmp_path):
    torch.manual_seed(0)
    first = trained(run, tmp_path / "first")
    torch.manual_seed(1)  # nothing may depend on the global generator
    second = trained(run, tmp_path / "second")
    assert first.outcome == second.outcome
    for name in ("first", "second"):
        weights = load_weights(store(tmp_path / name).weights_path(run.key), 4)
        assert state_digest(weights) == first.outcome["weights"]


def test_another_seed_gives_another_outcome(tmp_path):
    outcomes = [trained(small_run(IMAGES, seed=seed), tmp_path).outcome for seed in (0, 1)]
    assert outcomes[0]["weights"] != outcomes[1]["weights"]
    assert outcomes[0]["history"] != outcomes[1]["history"]


@pytest.mark.parametrize(
    "ingredient", [Method(overlay_prob=1e-12), Method(alpha=1e-30), Method(gamma=1e-30)], ids=["IG", "KD", "AT"]
)
def test_arms_of_one_seed_share_initial_weights_order_and_crops(ingredient, tmp_path):
    # With an ingredient too weak to matter, whatever else differed would show.
    def history(*description, seed=0):
        epochs = trained(small_run(IMAGES, *description, seed=seed), tmp_path).outcome["history"]
        return [means["cross_entropy"] for means in epochs]

    plain = history()
    assert history(ingredient) == pytest.approx(plain, rel=1e-4)
    assert history(seed=1) != pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize(
    "ingredient", [Method(overlay_prob=0.5), Method(alpha=0.5), Method(gamma=5.0)], ids=["IG", "KD", "AT"]
)
def test_each_ingredient_changes_the_student(ingredient, tmp_path):
    plain = trained(small_run(IMAGES), tmp_path)
    assert trained(small_run(IMAGES, ingredient), tmp_path).outcome["weights"] != plain.outcome["weights"]


@pytest.mark.parametrize("name", ARMS)
def test_terms_recombine_to_the_loss(name, tmp_path):
    method = ARMS[name]
    run = small_run(IMAGES, method, replace(RECIPE, num_epochs=1))
    (means,) = trained(run, tmp_path).outcome["history"]
    assert ("distillation" in means) == ("KD" in name) and ("attention" in means) == ("AT" in name)
    expected = (
        (1 - method.alpha) * means["cross_entropy"]
        + method.alpha * means.get("distillation", 0)
        + method.gamma * means.get("attention", 0)
    )
    assert means["loss"] == pytest.approx(expected, rel=1e-5)


HALF = Subset(fraction=0.5)


def test_gradient_norms_are_of_the_weighted_terms(tmp_path):
    one_step = replace(RECIPE, num_epochs=1, batch_size=40)

    def norms(folder, **changes):
        run = small_run(IMAGES, replace(ALL, **changes), one_step)
        return trained(run, tmp_path / folder).outcome["history"][0]["gradient_norms"]

    before = norms("a", alpha=0.3, gamma=5.0)
    after = norms("b", alpha=0.6, gamma=10.0)
    assert all(norm > 0 for norm in before.values())
    ratios = {name: after[name] / before[name] for name in before}
    assert ratios == pytest.approx({"cross_entropy": 0.4 / 0.7, "distillation": 2, "attention": 2}, rel=1e-4)
    plain = small_run(IMAGES, recipe=one_step)
    assert "gradient_norms" not in trained(plain, tmp_path / "c").outcome["history"][0]


def test_signals_are_read_by_data_set_index(tmp_path):
    # A teacher that is sure of each label makes distillation the cross-entropy; what belongs to images that this
    # run does not see is not a number.
    unseen = torch.ones(40, dtype=torch.bool)
    unseen[train_indices(IMAGES.train_labels, HALF)] = False
    signals = replace(
        small_signals(IMAGES), logits=50 * nn.functional.one_hot(torch.from_numpy(IMAGES.train_labels)).float()
    )
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
    overlaid = trained(all_overlaid, tmp_path, signals, images)
    assert overlaid.outcome == plain.outcome


@pytest.mark.parametrize(
    "ingredient, moves", [(Method(overlay_prob=0.5), True), (Method(gamma=5.0), True), (Method(alpha=0.5), False)]
)
def test_signals_as_released_are_not_moved_with_the_image(ingredient, moves, tmp_path):
    def outcome(variant, recipe, flip):
        images = replace(IMAGES, flip=flip)
        run = small_run(images, ingredient, recipe)
        run = replace(run, signals=replace(run.signals, variant=variant))
        return trained(run, tmp_path / f"{variant} {flip}", images=images).outcome["history"]

    # The same signals under both names: where images are neither cropped nor mirrored there is no difference.
    variants = ("described", "permuted", "released")
    still = [outcome(variant, replace(RECIPE, padding=0), False) for variant in variants]
    assert still[0] == still[1] and still[0][0]["loss"] == pytest.approx(still[2][0]["loss"], rel=1e-4)
    described, permuted, released = (outcome(variant, RECIPE, True) for variant in variants)
    assert described == permuted
    assert (described != released) == moves


def changed_by_one_step(optimizer, folder):
    """What one step adds to each pointwise convolution, as matrices."""
    recipe = replace(
        RECIPE, num_epochs=1, batch_size=40, optimizer=optimizer, lr=0.01, one_cycle=False, weight_decay=0.0
    )
    run = small_run(IMAGES, recipe=recipe, architecture=Architecture(15))
    trained(run, folder)
    after = load_weights(store(folder).weights_path(run.key), 4).state_dict()
    before = run.architecture.build(4, None, stream(run.seed, WEIGHTS)).state_dict()
    return [(after[name] - weight).flatten(1) for name, weight in before.items() if weight.shape[2:] == (1, 1)]


def test_a_step_with_orthogonalised_gradients_is_as_large_in_the_first_direction_as_in_the_tenth(tmp_path):
    plain, orthogonal = (changed_by_one_step(name, tmp_path / name) for name in ("sgd", "orthogonal_sgd"))
    assert len(orthogonal) == len(plain) == 5
    for one, other in zip(plain, orthogonal, strict=True):
        values, evened = torch.linalg.svdvals(one), torch.linalg.svdvals(other)
        assert evened[9] > 0.5 * evened[0] and evened[9] / evened[0] > 2 * values[9] / values[0]


def test_residual_branches_start_at_0_if_the_recipe_says_so(tmp_path):
    def scales(zero_init_residual):
        recipe = replace(RECIPE, num_epochs=1, lr=1e-9, zero_init_residual=zero_init_residual)
        run = small_run(IMAGES, recipe=recipe, architecture=Architecture(15))
        trained(run, tmp_path / str(zero_init_residual))
        model = load_weights(store(tmp_path / str(zero_init_residual)).weights_path(run.key), 4)
        return [block.conv[-1].weight.abs().max().item() for block in model.features[1:] if block.use_res_connect]

    assert len(scales(True)) == 1 and scales(True) == pytest.approx([0], abs=1e-6)
    assert scales(False) == pytest.approx([1], abs=1e-6)


class Stop(Exception):
    """Ends a training from outside."""


@pytest.mark.parametrize(
    "run, signals",
    [
        (small_run(IMAGES, ALL, replace(ADAM, num_epochs=3)), small_signals(IMAGES)),
        (small_run(IMAGES, recipe=replace(RECIPE, num_epochs=3), architecture=Architecture(0, 0.25, True)), None),
        (small_run(IMAGES, recipe=replace(RECIPE, num_epochs=3, optimizer="orthogonal_sgd", lr=1e-3)), None),
    ],
    ids=["all ingredients, adam", "dropout, sgd, one cycle", "orthogonal, one cycle"],
)
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(run, signals, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    whole = trained(run, tmp_path / "whole", signals)

    def stop_in_third(line):
        if line.startswith("epoch 3/"):
            raise Stop

    with pytest.raises(Stop):
        trained(run, tmp_path / "parts", signals, log=stop_in_third)
    lines = []
    parts = trained(run, tmp_path / "parts", signals, log=lines.append)
    assert lines[0] == "goes on after epoch 2" and len(lines) == 2
    assert parts.outcome == whole.outcome


def left_by_another_teacher(path, run, monkeypatch):
    """A whole checkpoint, with the weights of its last epoch."""
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    kept = Store(path.parent.parent, path.parent.parent, path.parent.parent)
    train(run, IMAGES, kept, COMPUTE, teacher_digest="another")


def half_written(path, *_):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a checkpoint")


def without_history(path, run, monkeypatch):
    left_by_another_teacher(path, run, monkeypatch)
    state = torch.load(path, weights_only=True)
    torch.save({"teacher": None} | {name: state[name] for name in ("model", "optimizer", "scheduler")}, path)


def without_schedule(path, run, monkeypatch):
    """With weights and momentum, which are put back before anything is missed."""
    left_by_another_teacher(path, run, monkeypatch)
    state = torch.load(path, weights_only=True)
    del state["scheduler"]
    torch.save(state | {"teacher": None}, path)


@pytest.mark.parametrize("left", [half_written, without_history, without_schedule, left_by_another_teacher])
def test_a_checkpoint_that_cannot_be_used_is_said_and_the_training_starts_anew(left, tmp_path, monkeypatch):
    run = small_run(IMAGES)
    left(store(tmp_path).checkpoint_path(run.key), run, monkeypatch)
    lines = []
    outcome = trained(run, tmp_path, log=lines.append).outcome
    assert "cannot be used" in lines[0] and lines[1].startswith("epoch 1/")
    assert outcome == trained(run, tmp_path / "other").outcome


LONG = small_run(IMAGES, recipe=replace(RECIPE, num_epochs=12))


def train_and_keep(folder: str) -> None:
    """What the killed process does."""
    torch.set_num_threads(1)
    training.CHECKPOINT_EVERY_SECONDS = 0
    kept = store(Path(folder))
    kept.add(train(LONG, IMAGES, kept, COMPUTE), "arms")


def epochs_kept(kept: Store) -> int:
    """Epochs in the checkpoint; every file that can be seen must be whole."""
    for path in kept.scratch.glob("weights/*.safetensors"):
        load_weights(path, 4)
    for record in kept.records():
        assert record.outcome["history"][-1]["epoch"] == 12
    try:
        content = kept.checkpoint_path(LONG.key).read_bytes()
    except FileNotFoundError:
        return 0
    return len(torch.load(io.BytesIO(content), weights_only=True)["history"])


def test_kill_9_loses_no_finished_epoch_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    processes = multiprocessing.get_context("spawn")
    kept = store(tmp_path / "killed")
    delay = random.Random(0)
    for least in (1, 5):
        process = processes.Process(target=train_and_keep, args=(str(tmp_path / "killed"),))
        process.start()
        while (before := epochs_kept(kept)) < least:
            assert process.is_alive()
            time.sleep(0.002)
        time.sleep(delay.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert epochs_kept(kept) >= before
    assert not list(kept.records()) and kept.find_weights(LONG.key) is None

    lines = []
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as the killed process had
    try:
        resumed = train(LONG, IMAGES, kept, COMPUTE, log=lines.append)
        whole = trained(LONG, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert lines[0].startswith("goes on after epoch")
    assert resumed.outcome == whole.outcome


@pytest.mark.parametrize(
    "recipe",
    [
        replace(RECIPE, lr=1e30, one_cycle=False),
        replace(RECIPE, lr=1e38, one_cycle=False, num_epochs=1, batch_size=40),
    ],
    ids=["loss", "weights after the last step"],
)
def test_a_loss_that_is_not_finite_fails_the_run_and_stores_nothing(recipe, tmp_path):
    run = small_run(IMAGES, recipe=recipe)
    with pytest.raises(TrainingError, match="loss is (nan|inf)"):
        trained(run, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.json"))


def test_images_of_another_fingerprint_are_refused(tmp_path):
    with pytest.raises(InputError, match=IMAGES.fingerprint):
        trained(small_run(IMAGES), tmp_path, images=small_images(seed=1))


def last_rates(run, folder):
    """Learning rates after the last step, and the outcome once the weights can be written."""
    kept = store(folder)
    obstacle = kept.weights_path(run.key)
    obstacle.mkdir(parents=True)  # a folder where the weights should go
    with pytest.raises(TrainingError):
        trained(run, folder)
    state = torch.load(kept.checkpoint_path(run.key), weights_only=True)
    obstacle.rmdir()
    lines = []
    trained(run, folder, log=lines.append)
    assert lines == [f"goes on after epoch {run.recipe.num_epochs}"]  # nothing is trained twice
    return [group["lr"] for group in state["optimizer"]["param_groups"]]


def test_one_cycle_ends_at_nothing_and_a_constant_rate_stays(tmp_path):
    one_epoch = replace(RECIPE, num_epochs=1)
    assert last_rates(small_run(IMAGES, recipe=one_epoch), tmp_path) == pytest.approx([0, 0], abs=1e-5 * RECIPE.lr)
    constant = small_run(IMAGES, recipe=replace(one_epoch, one_cycle=False))
    assert last_rates(constant, tmp_path) == [RECIPE.lr] * 2


@pytest.mark.parametrize("batch_size, steps", [(64, 1), (15, 2), (13, 3), (10, 4)])
def test_a_training_of_a_few_steps_has_a_schedule(batch_size, steps, tmp_path):
    run = small_run(IMAGES, recipe=replace(RECIPE, num_epochs=1, batch_size=batch_size))
    assert 40 // batch_size in (steps, 0)
    assert math.isfinite(trained(run, tmp_path).outcome["loss"])


def test_weight_decay_leaves_batch_norm_and_biases_alone(tmp_path):
    # so strong that each step halves what it acts on
    strong = replace(RECIPE, num_epochs=4, lr=0.05, one_cycle=False, weight_decay=10.0)
    run = small_run(IMAGES, recipe=strong)
    trained(run, tmp_path)
    model = load_weights(store(tmp_path).weights_path(run.key), 4)
    assert float(model.features[0][1].weight.detach().mean()) > 0.8  # starts at 1
    assert float(model.features[0][0].weight.detach().abs().max()) < 0.1


def test_training_learns(tmp_path):
    run = small_run(IMAGES, recipe=replace(RECIPE, num_epochs=12))
    outcome = trained(run, tmp_path).outcome
    assert outcome["accuracy"] > 0.6 and outcome["train_accuracy"] > 0.6  # chance is 0.25
    assert [means["epoch"] for means in outcome["history"]] == list(range(1, 13))
    assert outcome["history"][-1]["loss"] < outcome["history"][0]["loss"]


def test_a_validation_run_is_scored_on_the_images_held_out(tmp_path):
    subset = Subset(validation=0.2)
    run = small_run(IMAGES, subset=subset, split="validation")
    record = trained(run, tmp_path)
    assert (record.outcome["n_test"], record.outcome["n_train"]) == (8, 32)
    held_out = validation_indices(IMAGES.train_labels, subset)
    model = load_weights(store(tmp_path).weights_path(run.key), 4)
    scored = evaluate(model, IMAGES.train_images[held_out], IMAGES.train_labels[held_out], COMPUTE)
    assert scored == {name: record.outcome[name] for name in scored}


def test_the_record_says_what_the_weights_do(tmp_path):
    run = small_run(IMAGES)
    record = trained(run, tmp_path)
    model = load_weights(store(tmp_path).weights_path(run.key), 4)
    scored = evaluate(model, IMAGES.test_images, IMAGES.test_labels, COMPUTE)
    assert scored == {name: record.outcome[name] for name in scored}
    predicted = unpack_predictions(record.outcome["predictions"])
    assert (predicted == IMAGES.test_labels).mean() == record.outcome["accuracy"]
    assert Record.from_json(record.to_json()) == record


class ReadsPixel(nn.Module):
    """Gives 2 to the class that the first red value names and 0 to the others."""

    def forward(self, x):
        named = (x[:, 0, 0, 0] * 255).round().long()
        return 2 * nn.functional.one_hot(named, 4).float()


def test_evaluate_worked_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 0, 0, 1, 1, 2, 2, 3])  # class 3 does not occur
    images = np.zeros((8, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = predicted
    scores = evaluate(ReadsPixel(), images, labels, COMPUTE)
    assert scores["accuracy"] == 5 / 8 and scores["n_test"] == 8
    assert scores["per_class_accuracy"] == [0.75, 0.5, 0.5, None]
    assert scores["balanced_accuracy"] == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    # by chance they agree on (4 * 3 + 2 * 2 + 2 * 2 + 0 * 1) / 64 = 20 / 64
    assert scores["kappa"] == pytest.approx((40 - 20) / (64 - 20))
    right, wrong = -log_softmax([2.0, 0.0, 0.0, 0.0])[:2]
    assert scores["loss"] == pytest.approx((5 * right + 3 * wrong) / 8)


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_evaluate_agrees_with_scikit_learn():
    random_numbers = np.random.default_rng(0)
    labels = random_numbers.integers(0, 3, 300)
    predicted = np.where(random_numbers.random(300) < 0.5, labels, random_numbers.integers(0, 4, 300))
    images = np.zeros((300, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = predicted
    scores = evaluate(ReadsPixel(), images, labels, COMPUTE)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores["kappa"] == pytest.approx(cohen_kappa_score(labels, predicted))


def test_predicting_leaves_the_network_as_it_was():
    model = Architecture(17).build(4, None, torch.Generator().manual_seed(0)).train()
    before = state_digest(model)
    predict(model, IMAGES.test_images, COMPUTE)
    assert model.training and state_digest(model) == before


def planned(*runs):
    return [Planned("arms", {"arm": "Student", "seed": run.seed}, run) for run in runs]


@pytest.fixture
def study(tmp_path):
    study = Study("demo", device="cpu", root=tmp_path, log=lambda line: study.lines.append(line), jobs=1)
    study.lines, study.images, study.compute = [], IMAGES, COMPUTE
    return study


def test_other_runs_go_on_after_one_that_failed(study):
    good, other = small_run(IMAGES), small_run(IMAGES, seed=1)
    bad = small_run(IMAGES, recipe=replace(RECIPE, lr=1e30, one_cycle=False))
    with pytest.raises(TrainingError, match=f"1 of 3 runs failed.*{bad.key}"):
        study.ensure(planned(good, bad, other))
    assert study.store.keys() == {good.key, other.key}
    assert [line for line in study.lines if line.startswith("failed")]
    assert list(study.table(planned(good, bad, other)).seed) == [0, 1]


def test_a_record_that_cannot_be_written_fails_its_run_alone(study, monkeypatch, tmp_path):
    # a file where the folder of one experiment should be
    study.store.root.mkdir(parents=True)
    (study.store.root / "blocked").write_text("")
    first, second = small_run(IMAGES), small_run(IMAGES, seed=1)
    items = [
        Planned("blocked", {"arm": "Student", "seed": 0}, first),
        Planned("arms", {"arm": "Student", "seed": 1}, second),
    ]
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    with pytest.raises(TrainingError, match="1 of 2 runs failed"):
        study.ensure(items)
    assert study.store.keys() == {second.key}
    assert not study.store.checkpoint_path(second.key).exists()
    (study.store.root / "blocked").unlink()
    lines = []
    assert study.train(first, lines.append).outcome["history"][-1]["epoch"] == first.recipe.num_epochs
    assert lines == [f"goes on after epoch {first.recipe.num_epochs}"]  # nothing was trained again


def test_a_run_that_cannot_be_trained_leaves_the_others_alone(study, monkeypatch):
    impossible = small_run(IMAGES, subset=Subset(1e-6))  # no image of any class
    large = small_run(IMAGES, recipe=replace(RECIPE, padding=10**7))  # more memory than there is
    good = small_run(IMAGES, seed=1)
    with pytest.raises(TrainingError, match="2 of 3 runs failed"):
        study.ensure(planned(impossible, large, good))
    assert study.store.keys() == {good.key}


def test_a_finished_run_is_not_repeated(study):
    items = planned(small_run(IMAGES), small_run(IMAGES, seed=1))
    first = study.ensure(items)
    study.lines.clear()
    again = study.ensure(items)
    assert study.lines == [] and again.equals(first)


def test_a_teacher_online_teaches_what_its_kept_logits_do_where_nothing_is_augmented(tmp_path):
    images, teacher = replace(IMAGES, flip=False), small_teacher(IMAGES)
    kept = Signals(logits=predict(teacher.model, images.train_images, COMPUTE))
    online = Signals(teacher=teacher.model.eval())
    method = Method(alpha=0.5, temperature=2.0)

    def terms(recipe, signals, folder):
        history = trained(small_run(images, method, recipe), tmp_path / folder, signals, images).outcome["history"]
        return np.array([epoch["distillation"] for epoch in history])

    still = replace(RECIPE, padding=0)
    np.testing.assert_allclose(terms(still, online, "a"), terms(still, kept, "b"), rtol=1e-3)
    # Under crops the kept logits are no longer those of what the student sees.
    assert not np.allclose(terms(RECIPE, online, "c"), terms(RECIPE, kept, "d"), rtol=1e-2)


def test_a_teacher_online_stays_as_it_is(tmp_path):
    teacher = small_teacher(IMAGES)
    digest = state_digest(teacher.model)
    trained(small_run(IMAGES, Method(alpha=0.5)), tmp_path, Signals(teacher=teacher.model.eval()))
    assert state_digest(teacher.model) == digest and not teacher.model.training
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_a_student_behind_a_square_as_large_as_the_image_sees_nothing(tmp_path):
    # Sides beyond twice the image cover it wherever their centre is: one answer for all images.
    run = small_run(IMAGES, Method(cutout=4 * IMAGES.size[0]), replace(RECIPE, num_epochs=3))
    blind = trained(run, tmp_path / "blind").outcome
    # batch norm of a constant is 0, so the logits are those of the biases, whatever the image
    assert blind["history"][-1]["train_accuracy"] <= 0.5
    seeing = trained(small_run(IMAGES, recipe=replace(RECIPE, num_epochs=3)), tmp_path / "seeing").outcome
    assert seeing["history"][-1]["train_accuracy"] > blind["history"][-1]["train_accuracy"]
