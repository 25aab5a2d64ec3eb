"""The declared runs, in each profile: what they share, what they vary, and what was chosen on held-out images."""

from dataclasses import fields, replace

import pytest
import torch

from igkd import experiments
from igkd.controls import MAP_CONTROLS, VARIANTS
from igkd.experiments import CONTRASTS, NOTEBOOKS, ORDER, PROFILES, Plan, controls, search, steps, sweep, tuned
from igkd.models import compression_factor
from igkd.runs import ARMS, Method, Recipe, Subset
from igkd.signals import Signals, of_variant
from igkd.study import describe
from small import ALL, ROOT, refusal, store_in

#: Each experiment's own question: what of a run may differ from the profile's student of the same method and seed.
VARIES = {
    "arms": set(), "tuned": set(), "controls": {"signals"}, "steps": {"signals"}, "monte_carlo": {"subset"},
    "search": {"subset", "split"}, "sweep": {"architecture"}, "paper_recipe": {"recipe", "architecture"},
}  # fmt: skip


def plan(name):
    return Plan(PROFILES[name], "0123456789abcdef", "fedcba9876543210")


@pytest.mark.parametrize("experiment", ORDER, ids=lambda experiment: experiment.__name__)
@pytest.mark.parametrize("name", PROFILES)
def test_runs_differ_from_the_student_in_what_is_asked_and_are_paired(name, experiment):
    items = experiment(plan(name))
    keys = {item.run.key for item in items}
    assert len(keys) == len(items) and len({describe(item) for item in items}) == len(items)
    for item in items:
        plain = plan(name).student(item.run.method, item.labels["seed"])
        differ = {each.name for each in fields(plain) if getattr(plain, each.name) != getattr(item.run, each.name)}
        assert differ <= VARIES[item.experiment]
        # The same network, images, seed and recipe without a teacher; overlays of two kinds are paired with each other.
        seed = 0 if experiment is search else item.run.seed
        twin = replace(item.run, method=Method(), signals=None, seed=seed)
        assert experiment is steps or twin.key in keys
    if experiment is not search:  # a stopped study has whole seeds
        assert [item.run.seed for item in items] == sorted(item.run.seed for item in items)


def test_every_experiment_is_shown_in_a_notebook():
    assert {each for declared in NOTEBOOKS.values() for each in declared} == set(ORDER)


def test_every_control_is_compared_and_every_contrast_is_trained():
    declared = {(item.labels["arm"], item.labels["variant"]): item.run for item in controls(plan("paper"))}
    assert {run.signals.variant for run in declared.values() if run.signals} == set(VARIANTS)
    for (arm, variant), run in declared.items():
        assert run.method == ARMS[arm] and (run.signals is None or run.signals.variant == variant)
    for _, treated, reference in CONTRASTS:
        # Either the student without anything, or the same arm with other signals.
        assert reference == ("Student", "") or declared[treated].method == declared[reference].method


def test_a_new_control_needs_one_function(monkeypatch):
    def upside_down(signal, generator):
        """The map upside down."""
        return signal.flip(1)

    refusal(plan("demo").student, ALL, 0, variant="upside_down", match="upside_down")
    for registry in (MAP_CONTROLS, VARIANTS):
        monkeypatch.setitem(registry, "upside_down", upside_down)
    given = Signals(torch.rand(5, 4), torch.rand(5, 9), torch.rand(5, 3, 3))
    made = of_variant(plan("demo").student(ALL, 0, variant="upside_down"), given)
    assert torch.equal(made.maps[:, 0], given.maps[:, 2]) and torch.equal(made.logits, given.logits)


def test_the_paper_has_its_recipe_and_a_sweep_of_its_eight_factors_cheapest_first():
    (recipe,) = {item.run.recipe for item in experiments.paper_recipe(plan("paper"))}
    assert recipe == Recipe(100, 64, "adam", 1e-3, one_cycle=False, weight_decay=0.0, padding=4)
    cuts = list(dict.fromkeys(item.labels["blocks_removed"] for item in sweep(plan("paper"))))
    factors = [round(compression_factor(cut), 2) for cut in cuts]
    assert factors == [1121.71, 139.43, 54.59, 28.97, 12.04, 7.29, 4.12, 2.19]


@pytest.mark.parametrize("name", ["demo", "laptop"])
def test_constants_are_searched_on_the_same_held_out_images_the_paper_s_among_them(name):
    items, grid = search(plan(name)), PROFILES[name].search
    assert {(item.run.split, item.run.subset) for item in items} == {("validation", Subset(validation=0.2))}
    methods = [item.run.method for item in items]
    assert methods.count(Method()) == PROFILES[name].num_seeds and len(set(methods)) == 1 + len(grid)
    assert {ARMS["IG"], ARMS["AT"]} <= set(methods) and ARMS["KD"].alpha in {each.alpha for _, each in grid}
    assert {item.run.method for item in tuned(plan(name)) if "+" not in item.labels["arm"]} <= set(methods)


def test_the_laptop_s_tuned_constants_are_those_that_the_recorded_search_chose():
    accuracy = {record.run.method: record.outcome["accuracy"] for record in store_in(ROOT).records("search")}
    tried = [item.run.method for item in search(plan("laptop"))]  # of equal points the first counts
    if not accuracy.keys() >= set(tried):
        pytest.skip("the search is not recorded")
    switches = "alpha", "overlay_prob", "gamma"
    kd, ig, at = (max((m for m in tried if getattr(m, on)), key=accuracy.get) for on in switches)
    assert PROFILES["laptop"].tuned == replace(kd, overlay_prob=ig.overlay_prob, gamma=at.gamma)
