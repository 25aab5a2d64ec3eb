"""What findings are computed from, on made-up records."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from igkd import experiments, findings, published
from igkd.engine import Study
from igkd.errors import MissingImages
from igkd.experiments import PROFILES
from igkd.images import CIFAR10_CLASSES, RecordedImages
from igkd.methods import ARMS, RECIPES, Recipe
from igkd.runs import Record


def study_of(profile, n_train, root):
    study = Study(profile, root=root, device="cpu", log=lambda line: None)
    sizes = (32, 32), n_train, 10_000
    study.images = RecordedImages("cifar10", CIFAR10_CLASSES, *sizes, "0123456789abcdef", MissingImages("not here"))
    study.plan = experiments.Plan(study.profile, study.fingerprint, "a teacher", "a second one")
    return study


@pytest.fixture
def study(tmp_path):
    return study_of("laptop", 2000, tmp_path)


def keep(study, planned, accuracy):
    for item in planned:
        outcome = {
            "accuracy": accuracy(item.labels["arm"], item.labels["seed"]),
            "n_train": 2000,
            "n_test": 10_000,
            "history": [],
        }
        study.store.add(Record(item.run, outcome, {"seconds": 1.0}), item.experiment)


def keep_teachers(study):
    """Records of the two teachers, by whose accuracies a sentence names them."""
    runs = {}
    for name, recipe in (("teacher_key", Recipe(20)), ("second_teacher_key", RECIPES["teacher"])):
        runs[name] = experiments.teacher_run("the images", recipe)
        study.store.add(Record(runs[name], {"accuracy": 0.9, "history": []}, {"seconds": 1.0}), "teacher")
    study.plan = replace(study.plan, **{name: run.key for name, run in runs.items()})


def of_seeds(planned, seeds):
    return [item for item in planned if item.labels["seed"] in seeds]


OWN = {"KD": (0.010, 0.012, 0.005), "IG": (0.0, -0.002, 0.004), "KD+IG": (0.02, 0.01, 0.03)}
PAPERS = {"KD": (0.001, 0.004, -0.003), "IG": (0.002, 0.002, 0.003), "KD+IG": (0.05, 0.04, 0.03)}


def with_gains(gains, student):
    return lambda arm, seed: student + seed / 100 + (gains[arm][seed] if arm != "Student" else 0.0)


def test_gains_with_two_recipes_are_paired_by_seed(study):
    keep(study, of_seeds(experiments.arms(study.plan), range(3)), with_gains(OWN, 0.4))
    keep(study, of_seeds(experiments.recipe_arms(study.plan), range(3)), with_gains(PAPERS, 0.3))
    # A seed of which one recipe lacks an arm says nothing.
    keep(study, of_seeds(experiments.arms(study.plan), [3]), lambda arm, seed: 0.9)
    keep(study, of_seeds(experiments.recipe_arms(study.plan), [3])[:-1], lambda arm, seed: 0.1)
    gains = findings.recipe_gains(study)
    assert list(gains.recipe.unique()) == [
        "16 epochs, SGD in one cycle, batches of 32",
        "100 epochs, Adam at a constant rate, batches of 64",
    ]
    assert set(gains.seed) == {0, 1, 2} and len(gains) == 2 * 3 * 3
    changes = findings.recipe_changes(gains).set_index("arm")
    assert list(changes.index) == ["KD", "IG", "KD+IG"]
    p = {}
    for arm, row in changes.iterrows():
        assert (row["mean"], row.mean_reference) == pytest.approx((np.mean(PAPERS[arm]), np.mean(OWN[arm])))
        by_scipy = stats.ttest_rel(PAPERS[arm], OWN[arm])
        p[arm] = by_scipy.pvalue
        assert (row.low, row.high) == pytest.approx(tuple(by_scipy.confidence_interval()))
        assert row.p == pytest.approx(by_scipy.pvalue)
    assert changes.p_holm[min(p, key=p.get)] == pytest.approx(min(1, 3 * min(p.values())))


def test_no_gains_before_the_papers_recipe_is_recorded(study):
    keep(study, of_seeds(experiments.arms(study.plan), range(3)), with_gains(OWN, 0.4))
    assert findings.recipe_gains(study).empty
    keep(study, of_seeds(experiments.recipe_arms(study.plan), range(3))[1::4], with_gains(PAPERS, 0.3))  # KD alone
    assert findings.recipe_gains(study).empty


def test_a_second_teachers_arms_are_compared_with_the_plain_student_and_with_the_other_teachers(study):
    keep_teachers(study)
    better = {arm: tuple(gain + 0.01 * (seed + 1) for seed, gain in enumerate(OWN[arm])) for arm in OWN}
    keep(study, of_seeds(experiments.second_teacher_arms(study.plan), range(3)), with_gains(better, 0.4))
    keep(study, of_seeds(experiments.arms(study.plan), range(3)), with_gains(OWN, 0.4))
    found = findings.second_teacher_changes(study).set_index(["arm", "reference"])
    assert list(found.index) == [
        *((f"{arm}, second teacher", "Student") for arm in OWN),
        *((f"{arm}, second teacher", arm) for arm in OWN),
    ]
    for arm in OWN:
        gain = found.loc[f"{arm}, second teacher", "Student"]
        assert (gain.difference, gain.n) == (pytest.approx(np.mean(better[arm])), 3)
        change = found.loc[f"{arm}, second teacher", arm]
        interval = stats.t.interval(0.95, 2, 0.02, stats.sem([0.01, 0.02, 0.03]))
        assert (change.difference, change.low, change.high) == pytest.approx((0.02, *interval))
    ((says, detail),) = [
        each for part in findings.findings(study).values() for each in part if "second teacher" in each.says
    ]
    assert (
        "the mean of KD and of IG and of KD+IG is ahead of Student" in says
        and "Less Student: KD +2.90 points" in detail
    )
    assert "no arm can be told" in says  # p = 0.07 before Holm's correction
    assert "the first teacher's: KD +2.00 points [" in detail
    signals = [item.run.signals.teacher for item in experiments.second_teacher_arms(study.plan)]
    assert set(signals) == {study.plan.second_teacher_key} and len(signals) == 3 * 10


def test_no_gains_of_a_second_teacher_before_they_are_recorded(study):
    keep(study, of_seeds(experiments.arms(study.plan), range(3)), with_gains(OWN, 0.4))
    assert findings.second_teacher_changes(study).empty


def test_recipes_are_compared_within_a_network_and_a_number_of_images(tmp_path):
    study = study_of("paper", 40_000, tmp_path)
    # Of each network and recipe the accuracies by seed; of one the paper's recipe has a single run, of another none.
    accuracies = {
        (0, 0.1): {"sgd": (0.58, 0.60), "orthogonal_sgd": (0.74, 0.73, 0.75), "adam": (0.69, 0.70, 0.68)},
        (17, 1.0): {"sgd": (0.55, 0.54), "adam": (0.50,)},
        (0, 1.0): {"orthogonal_sgd": (0.93,)},
        (5, 1.0): {"adam": (0.90,)},
    }
    for item in experiments.recipes(study.plan):
        run = item.run
        known = accuracies.get((run.architecture.blocks_removed, run.subset.fraction), {}).get(run.recipe.optimizer, ())
        if run.seed < len(known):
            n_train = round(40_000 * run.subset.fraction)
            outcome = {"accuracy": known[run.seed], "n_train": n_train, "n_test": 10_000, "history": []}
            study.store.add(Record(run, outcome, {"seconds": 1.0, "data": "cifar10"}), item.experiment)
    found = findings.recipe_differences(study).set_index(["blocks_removed", "n_train", "arm"])
    differences = found.difference.to_dict()
    assert differences == {
        (0, 4_000, RECIPES["fast"].name): pytest.approx(-0.105),  # of seeds 0 and 1
        (0, 4_000, RECIPES["teacher"].name): pytest.approx(0.05),
        (17, 40_000, RECIPES["fast"].name): pytest.approx(0.05),  # of seed 0
    }
    assert list(found.n) == [2, 3, 1] and set(found.reference) == {RECIPES["paper"].name}
    by_scipy = stats.ttest_rel(*(accuracies[0, 0.1][name] for name in ("orthogonal_sgd", "adam"))).confidence_interval()
    row = found.loc[0, 4_000, RECIPES["teacher"].name]
    assert (row.low, row.high) == pytest.approx(tuple(by_scipy))
    ((says, detail),) = findings.findings(study)["Here, the teacher's network"]
    assert says.startswith(
        f"With 4,000 images the teacher's network reaches 74.0% in {RECIPES['teacher'].name}, and 69.0%"
    )
    assert "74.0% against 69.0%, +5.00 points [" in detail and "59.0% against 69.5%, -10.50 points [" in detail
    assert "reaches 93.00% (n = 1); the 100 epochs were not run on them" in detail


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_not_recorded_is_left_out(profile, tmp_path):
    about = findings.findings(study_of(profile, 2000, tmp_path))
    assert list(about) == ["In the published numbers"]
    assert "+0.83 points" in about["In the published numbers"][0].says  # 92.018 - 91.184, facts of the released runs


def test_a_single_run_of_each_arm_gives_no_sentence_about_it(study):
    everything = [experiments.factorial, experiments.controls, experiments.monte_carlo, experiments.steps]
    for experiment in everything:
        keep(study, of_seeds(experiment(study.plan), [0]), lambda arm, seed: 0.4)
    assert list(findings.findings(study)) == ["In the published numbers"]


def test_the_effect_of_the_overlay_is_averaged_over_the_other_ingredients(study):
    assert findings.overlay_effect(study) is None
    added = {"KD": 0.01, "IG": -0.02, "AT": 0.005}
    noise = np.random.default_rng(0).normal(0, 0.003, (len(ARMS), 3))

    def accuracy(arm, seed):
        present = arm.split("+") if arm != "Student" else []
        return 0.4 + seed / 100 + sum(added[part] for part in present) + noise[list(ARMS).index(arm), seed]

    keep(study, of_seeds(experiments.factorial(study.plan), range(3)), accuracy)
    table = study.table(experiments.factorial(study.plan))
    by_hand = table.accuracy[table.arm.str.contains("IG")].mean() - table.accuracy[~table.arm.str.contains("IG")].mean()
    effect = findings.overlay_effect(study)
    assert effect.estimate == pytest.approx(by_hand) and effect.low < by_hand < effect.high and effect.n == 24


def test_gradient_shares_of_an_epoch_add_up_to_one_over_the_terms_that_it_has():
    epochs = pd.DataFrame(
        {
            "key": ["a", "b"],
            "epoch": [1, 1],
            "gradient_norms.cross_entropy": [3.0, 1.0],
            "gradient_norms.distillation": [1.0, np.nan],
        }
    )
    shares = findings.gradient_shares(epochs).set_index(["key", "term"]).share
    assert shares.to_dict() == {("a", "cross-entropy"): 0.75, ("a", "distillation"): 0.25, ("b", "cross-entropy"): 1.0}


def test_the_published_confidence_comes_back_from_the_gap():
    stated = published.confidence().set_index("network").loc["Teacher"]
    logits = np.array([findings.published_gap()] + [0.0] * 9)
    assert special.softmax(logits / stated.temperature)[0] == pytest.approx(stated.label_probability)


def test_gains_of_the_sweep_need_two_pairs(study):
    planned = [item for item in experiments.sweep(study.plan) if item.labels["width"] == 1]
    cut = {item.labels["blocks_removed"] for item in planned}
    # Both seeds of the smallest network, one of the others.
    done = [item for item in planned if item.labels["seed"] == 0 or item.labels["blocks_removed"] == 17]
    keep(study, done, lambda arm, seed: 0.5 + (0.01 * (1 + seed) if arm == "KD+IG" else 0.0))
    assert len(cut) > 1
    [row] = findings.sweep_gains(study).itertuples()
    assert (row.blocks_removed, row.arm, row.n) == (17, "KD+IG", 2)
    assert row.difference == pytest.approx(0.015)


def test_the_papers_size_is_judged_from_two_pairs_on(tmp_path):
    study = study_of("paper", 40_000, tmp_path)
    teacher = experiments.teacher_run(study.fingerprint, study.profile.teacher)
    study.plan = experiments.Plan(study.profile, study.fingerprint, teacher.key, "a second one")
    study.store.add(Record(teacher, {"accuracy": 0.915, "n_train": 40_000}, {"seconds": 1.0}), "teacher")
    keep(study, of_seeds(experiments.arms(study.plan), [0]), lambda arm, seed: 0.9)
    [(says, detail)] = findings._of_the_papers_size(study)
    assert "IG 90.00% (n = 1)" in detail and "single runs do not tell arms apart" in says
    gains = (-0.001, 0.002, 0.005)
    for seed in range(3):
        pair = [item for item in of_seeds(experiments.arms(study.plan), [seed]) if item.labels["arm"] != "KD"]
        keep(study, pair, lambda arm, seed: 0.9 + seed / 1000 + (gains[seed] if arm == "KD+IG" else 0.0))
    [(says, _)] = findings._of_the_papers_size(study)
    half = stats.t.ppf(0.975, 2) * np.std(gains, ddof=1) / 3**0.5
    assert f"+0.20 points [{0.2 - 100 * half:+.2f}, {0.2 + 100 * half:+.2f}], 3 of 10 declared pairs" in says
    assert "published Monte Carlo means: +1.24" in says  # the means of the paper's Monte Carlo table, 91.29 - 90.05
