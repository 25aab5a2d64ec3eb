from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional as F

from igkd.engine import describe
from igkd.experiments import (
    CONTRASTS,
    LABEL_SMOOTHING,
    PROFILES,
    Plan,
    arms,
    chosen,
    contrasts,
    controls,
    fair_contrasts,
    recipe_arms,
    recipes,
    second_teacher,
    second_teacher_arms,
    sweep,
    teacher_run,
    tuned,
    tuning,
)
from igkd.images import Subset
from igkd.losses import distillation_loss
from igkd.methods import ARMS, RECIPES, Method
from igkd.models import compression_factor
from igkd.variants import VARIANTS


def plan(name):
    return Plan(PROFILES[name], "0123456789abcdef", "fedcba9876543210", "a second one")


def arm(item):
    return item.labels["arm"], item.labels["variant"]


@pytest.mark.parametrize("name", PROFILES)
def test_controls_share_their_seeds_and_all_but_method_and_signals(name):
    items = controls(plan(name))
    rounds = [[item for item in items if item.labels["seed"] == seed] for seed in range(PROFILES[name].num_controls)]
    assert rounds and [item for planned in rounds for item in planned] == items  # a round is finished before the next
    student = plan(name).student(ARMS["Student"], 0)
    for seed, planned in enumerate(rounds):
        assert [arm(item) for item in planned] == [arm(item) for item in rounds[0]]
        assert len({item.run.key for item in planned}) == len(planned)
        for item in planned:
            assert replace(item.run, method=student.method, signals=None) == replace(student, seed=seed)
            if item.labels["arm"] != "Student":
                assert item.run.signals.variant == item.labels["variant"] and item.labels["variant"] in describe(item)
                assert item.run.signals.teacher == plan(name).teacher_key


@pytest.mark.parametrize("name", ("laptop", "paper"))
def test_arms_with_the_papers_recipe_differ_from_the_others_in_nothing_else(name):
    own = {item.run.key: item for item in arms(plan(name))}
    alike = set()
    for item in recipe_arms(plan(name)):
        recipe = item.run.recipe
        stated = (recipe.num_epochs, recipe.batch_size, recipe.optimizer, recipe.lr, recipe.one_cycle, recipe.padding)
        assert stated == (100, 64, "adam", 1e-3, False, 4) and recipe.weight_decay == 0
        twin = own[replace(item.run, recipe=plan(name).profile.recipe).key]
        assert twin.labels | {"recipe": recipe.name} == item.labels
        alike.add(twin.labels["seed"])
    assert len(recipe_arms(plan(name))) == 4 * len(alike) and len(alike) >= 3
    # Plain students of both experiments are the same runs.
    shared = {item.run.key for item in recipe_arms(plan(name))} & {item.run.key for item in recipes(plan(name))}
    assert len(shared) == len(alike)


@pytest.mark.parametrize("name", PROFILES)
def test_a_second_teacher_is_trained_in_the_profile_of_its_images_only(name):
    of_its_images = replace(plan(name), second_teacher_key=teacher_run(plan(name).data, RECIPES["teacher"]).key)
    if name == "demo":
        assert not second_teacher(of_its_images) and not second_teacher_arms(of_its_images)
        return
    assert second_teacher(plan(name)) == []  # it comes with the repository
    (item,) = second_teacher(of_its_images)
    assert item.run.key == of_its_images.second_teacher_key
    # Its arms differ from the others in nothing but the teacher.
    own = {item.run.key for item in arms(plan(name))}
    taught = second_teacher_arms(plan(name))
    assert {item.labels["arm"] for item in taught} == {"KD", "IG", "KD+IG"}
    for item in taught:
        assert item.run.signals.teacher == "a second one"
        signals = replace(item.run.signals, teacher=plan(name).teacher_key)
        assert replace(item.run, signals=signals).key in own


@pytest.mark.parametrize("name", PROFILES)
def test_every_contrast_has_both_arms_and_no_arm_is_trained_for_nothing(name):
    declared = {arm(item): item.run for item in controls(plan(name)) if item.run.seed == 0}
    family = contrasts(plan(name))
    compared = {which for _, treated, reference in family for which in (treated, reference)}
    assert compared == set(declared)
    assert {variant for _, variant in declared} == {"", *PROFILES[name].control_variants}
    pairs = [(treated, reference) for _, treated, reference in family]
    assert len(set(pairs)) == len(pairs) and not [pair for pair in pairs if pair[::-1] in pairs]
    for treated, reference in pairs:
        # Either the student without anything, or the same arm with other signals.
        assert reference == ("Student", "") or declared[treated].method == declared[reference].method


def test_all_but_the_demo_ask_every_declared_question():
    for name in ("laptop", "paper"):
        assert contrasts(plan(name)) == list(CONTRASTS) and set(PROFILES[name].control_variants) == {*VARIANTS} - {
            "online"
        }
    assert len({arm(item) for item in controls(plan("demo"))}) <= 13  # the demo trains them live, within its minutes


def test_controls_with_described_signals_are_the_runs_of_the_arms():
    described = {item.run.key for item in controls(plan("laptop")) if item.labels["variant"] in ("", "described")}
    assert {item.run.key for item in arms(plan("laptop"))} <= described


def test_permuted_logits_pull_on_average_as_uniform_ones_do():
    # Each of ten classes is as often the teacher's first: over all orders the mean target is uniform.
    K, temperature = 10, ARMS["KD"].temperature
    teacher = 6 * F.one_hot(torch.arange(K), K).double()
    logits = 4 * torch.randn(1, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    each = [torch.autograd.grad(distillation_loss(logits, target[None], temperature), logits)[0] for target in teacher]
    uniform = distillation_loss(logits, torch.zeros(1, K), temperature)
    torch.testing.assert_close(torch.stack(each).mean(0), torch.autograd.grad(uniform, logits)[0])


def test_strength_of_label_smoothing_is_as_said():
    K, alpha, T = 10, ARMS["KD"].alpha, ARMS["KD"].temperature
    assert LABEL_SMOOTHING.alpha == alpha and LABEL_SMOOTHING.temperature == 1

    def gradient(scale, temperature):
        logits = scale * torch.randn(500, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits.requires_grad_()
        (found,) = torch.autograd.grad(distillation_loss(logits, torch.zeros_like(logits), temperature), logits)
        linear = (logits - logits.mean(1, keepdim=True)).detach() / K
        return float(found.norm()), float((500 * found - linear).abs().max())

    small, large = ([gradient(scale, temperature) for temperature in (1.0, T)] for scale in (1e-3, 1e3))
    assert all(error < 1e-6 for _, error in small) and small[0][0] == pytest.approx(small[1][0], rel=1e-3)
    assert large[1][0] / large[0][0] == pytest.approx(T, rel=0.05)

    def share(margin, temperature):
        """Probability of the label if its logit is `margin` above all others."""
        return 1 / (1 + (K - 1) * np.exp(-margin / temperature))

    def slope(margin, alpha, temperature):
        """Of the loss at that margin, in the label's logit."""
        return alpha * temperature * (share(margin, temperature) - 1 / K) - (1 - alpha) * (1 - share(margin, 1))

    def margin(alpha, temperature):
        return brentq(slope, 0, 50, args=(alpha, temperature))

    assert margin(alpha, T) == pytest.approx(6.5, abs=0.05) and margin(alpha, 1) == pytest.approx(6.9, abs=0.05)
    assert margin(0.014, 1) == pytest.approx(margin(alpha, T), abs=0.02)


@pytest.mark.parametrize("name", PROFILES)
def test_the_sweep_finishes_a_seed_before_the_next_and_pairs_its_arms(name):
    grid, items = PROFILES[name].sweep, sweep(plan(name))
    assert [item.labels["seed"] for item in items] == sorted(item.labels["seed"] for item in items)
    assert len({item.run.key for item in items}) == len(items)
    for item in items:
        network = item.run.architecture
        assert (network.blocks_removed, network.width) == (item.labels["blocks_removed"], item.labels["width"])
        assert item.run.method == ARMS[item.labels["arm"]] and item.run.split == "test"
        twin = replace(item.run, method=ARMS["Student"], signals=None)
        assert twin.key in {other.run.key for other in items}  # same network, images and seed without a teacher
    assert len({item.run.subset for item in items}) == (grid.num_seeds if grid.share < 1 else 1)


def test_the_sweep_of_the_paper_has_its_eight_factors_and_the_runs_of_the_ablation():
    items = sweep(plan("paper"))
    factors = {
        round(compression_factor(item.labels["blocks_removed"]), 2) for item in items if item.labels["width"] == 1
    }
    assert factors == {2.19, 4.12, 7.29, 12.04, 28.97, 54.59, 139.43, 1121.71}
    at_4x = {item.run.key for item in items if (item.labels["blocks_removed"], item.labels["width"]) == (5, 1)}
    assert at_4x <= {item.run.key for item in arms(plan("paper"))}


def recorded(name, accuracy):
    """The profile's plan as if every run had been recorded with the accuracy of its method."""
    blank = plan(name)
    known = {item.run.key: accuracy(item) for item in tuning(blank)}
    return replace(blank, accuracy=known.get)


def test_the_best_constants_on_held_out_images_are_chosen_and_combined():
    def accuracy(item):
        m = item.run.method
        wanted = m.alpha == 0.5 and m.temperature == 4 or m.overlay_prob == 0.25 and m.overlay_weight == 0.25
        lucky = item.labels["seed"] == 0 and m.alpha == 0.9  # one good seed is not a good mean
        return 0.5 + 0.1 * wanted + 0.2 * lucky

    tuned_plan = recorded("laptop", accuracy)
    best = chosen(tuned_plan)
    assert best["KD"] == best["Online KD"] == Method(alpha=0.5, temperature=4)
    assert best["IG"] == Method(overlay_prob=0.25, overlay_weight=0.25, max_exponent=1.0)  # of equals the first
    arms_of_a_seed = {item.labels["arm"]: item.run for item in tuned(tuned_plan) if item.run.seed == 3}
    assert arms_of_a_seed["KD+IG"].method == Method(0.5, 4, 0.25, overlay_weight=0.25, max_exponent=1.0)
    assert arms_of_a_seed["KD+Cutout"].method == Method(0.5, 4, cutout=best["Cutout"].cutout)
    assert arms_of_a_seed["Online KD+IG"].signals.variant == "online"
    assert arms_of_a_seed["KD+IG"].signals.variant == "described"
    assert arms_of_a_seed["Label smoothing"].signals.variant == "uniform"
    assert {run.split for run in arms_of_a_seed.values()} == {"test"}


@pytest.mark.parametrize("name", PROFILES)
def test_nothing_is_compared_before_all_constants_are_tried(name):
    complete = recorded(name, lambda item: 0.5)
    one_missing = tuning(plan(name))[-1].run.key
    waiting = replace(complete, accuracy=lambda key: None if key == one_missing else complete.accuracy(key))
    assert tuned(waiting) == [] and tuned(plan(name)) == []
    arms_compared = {arm for _, *pair in fair_contrasts(complete) for arm in pair}
    assert {item.labels["arm"] for item in tuned(complete)} == arms_compared and "KD+IG" in arms_compared


@pytest.mark.parametrize("name", PROFILES)
def test_constants_are_tuned_on_the_same_held_out_images_for_all(name):
    items = tuning(plan(name))
    assert len({item.run.key for item in items}) == len(items)
    assert {(item.run.split, item.run.subset) for item in items} == {("validation", Subset(validation=0.2))}
    seeds = [
        sorted(item.run.seed for item in items if item.run.method == m) for m in {item.run.method for item in items}
    ]
    assert all(set(each) == set(range(PROFILES[name].tuning.num_seeds)) for each in seeds)


def test_the_paper_s_constants_are_among_those_tried():
    for name in PROFILES:
        methods = [item.run.method for item in tuning(plan(name))]
        assert {ARMS["Student"], ARMS["IG"]} <= set(methods)
        assert ARMS["KD"] in methods or name == "demo"
        assert not PROFILES[name].tuning.families.count("AT") or ARMS["AT"] in methods
