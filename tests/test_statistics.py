"""Each statistic by a second route: SciPy, statsmodels and scikit-learn, worked cases, simulation, published runs."""

import warnings
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import example, given, settings
from hypothesis import strategies as some
from scipy import stats
from sklearn.metrics import accuracy_score
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

from igkd import statistics as st
from igkd.runs import ARMS
from small import refusal

NAN = some.just(np.nan)
RUNS = some.lists(some.integers(0, 1000).map(lambda right: right / 1000) | NAN, max_size=10)
CLASSES = some.lists(some.tuples(*[some.integers(0, 3)] * 3), min_size=2, max_size=30).map(np.transpose)
checked = settings(deadline=None, max_examples=40)


def table(**arms) -> pd.DataFrame:
    """Runs of some arms, seeds from 0 on."""
    each = [pd.DataFrame({"arm": arm, "seed": range(len(a)), "accuracy": a}) for arm, a in arms.items()]
    return pd.concat(each, ignore_index=True).astype({"accuracy": float})


@checked
@given(RUNS, RUNS, some.sampled_from(["seed", None]))
@example([0.3, 0.3], [0.1, 0.1], "seed")  # nothing varies
@example([0.3, 0.3], [0.1, 0.1], None)
def test_compare_is_scipys_test_and_the_order_of_arms_is_the_sign(a, b, pair_by):
    runs = table(A=a, B=b).sample(frac=1, random_state=0)
    row, back = st.compare(runs, [("A", "B"), ("B", "A")], pair_by).itertuples()
    mirrored = -back.difference, -back.high, -back.low, back.p, back.p_holm
    assert (row.difference, row.low, row.high, row.p, row.p_holm) == pytest.approx(mirrored, nan_ok=True)
    a, b = np.array(a), np.array(b)
    if pair_by:  # only runs that have a partner
        a, b = a[: len(b)], b[: len(a)]
    assert (row.n, row.n_reference) == (len(a), len(b))
    with warnings.catch_warnings(action="ignore"):
        test = stats.ttest_rel(a, b) if pair_by else stats.ttest_ind(a, b, equal_var=False)
        assert row.difference == pytest.approx(np.mean(a) - np.mean(b), nan_ok=True)
        nothing_varies = np.std(a - b if pair_by else [*(a - a.mean()), *(b - b.mean())]) < 1e-12
    expected = [np.nan] * 3 if nothing_varies else [test.pvalue, *test.confidence_interval()]
    assert [row.p, row.low, row.high] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(row.p) or 0 <= row.p <= row.p_holm <= 1


def test_holm_is_statsmodels_and_the_worked_case():
    p = pd.Series({"a": 0.01, "b": 0.04, "c": 0.03, "d": np.nan})
    assert st.holm(p).tolist() == pytest.approx([0.04, 0.09, 0.09, np.nan], nan_ok=True)  # worked by hand
    p = np.random.default_rng(0).random(30) ** 3
    np.testing.assert_allclose(st.holm(pd.Series(p, [0] * 30)), multipletests(p, method="holm")[1])


def test_a_table_in_points_has_intervals_from_four_runs_on():
    compared = st.compare(table(A=[0.5, 0.52], B=[0.5, 0.5], C=[0.4, 0.4]), [("A", "B"), ("C", "B")])
    text = st.in_points(compared).to_html()
    assert "+1.00" in text and "-10.00" in text and "–" in text and "nan" not in text
    shown = st.in_points({"few": compared, "many": compared.assign(n=4)}, "runs").data
    assert shown.index[0] == ("few", "A", "B") and shown.points.tolist() == pytest.approx([1, -10] * 2)
    assert shown["95 % from"].notna().tolist() == [False, False, True, False]  # C minus B does not vary


@settings(deadline=None, max_examples=8)
@given(some.integers(0, 1000), some.sampled_from([None, "seed"]))
def test_factorial_is_the_analysis_of_variance(seed, block):
    design = table(**dict(zip(ARMS, np.random.default_rng(seed).normal(0.4, 0.01, (8, 4)))))
    found = st.factorial(design, block).set_index("term")
    coded = design.assign(**{name: [name in arm.split("+") for arm in design.arm] for name in ("KD", "IG", "AT")})
    formula = "accuracy ~ C(KD, Sum) * C(IG, Sum) * C(AT, Sum)" + (" + C(seed)" if block else "")
    anova = anova_lm(smf.ols(formula, coded).fit(), typ=3)["PR(>F)"]
    for term, row in found.iterrows():
        assert row.p == pytest.approx(anova[":".join(f"C({name}, Sum)" for name in term.split(":"))])
        assert row.low < row.estimate < row.high and 0 <= row.p <= row.p_holm <= 1
    mean, cells = coded.groupby("KD").accuracy.mean(), coded.groupby(["KD", "IG"]).accuracy.mean()
    assert found.estimate["KD"] == pytest.approx(mean[True] - mean[False])
    both = cells[True, True] - cells[True, False] - cells[False, True] + cells[False, False]
    assert found.estimate["KD:IG"] == pytest.approx(both)


def test_factorial_says_nothing_about_chance_without_a_spread():
    for repeats in (1, 3):
        found = st.factorial(table(**{arm: [0.4] * repeats for arm in ARMS}))
        assert found.estimate.tolist() == pytest.approx([0] * 7)
        assert found[["low", "high", "p", "p_holm"]].isna().all(axis=None)


@checked
@given(RUNS, RUNS)
@example([0.4, 0.4], [])
def test_spread_and_interval_are_those_of_a_regression(a, b):
    sd, low, high = st.pooled_sd(a, b)
    runs, ends = table(A=a, B=b), st.t_interval(a)
    if runs.accuracy.isna().any() or not runs.groupby("arm").accuracy.std().max() > 1e-9:
        assert np.isnan([low, high]).all() and not sd > 1e-9
    else:
        fit = smf.ols("accuracy ~ arm" if a and b else "accuracy ~ 1", runs).fit()
        assert sd == pytest.approx(np.sqrt(fit.mse_resid)) and low < sd < high
    if len(a) < 2 or np.isnan(a).any() or np.ptp(a) == 0:
        assert np.isnan(ends).all()
    else:
        assert ends == pytest.approx(smf.ols("a ~ 1", pd.DataFrame({"a": a})).fit().conf_int().to_numpy()[0])


def test_power_is_statsmodels():
    for n, effect, (paired, design) in product((3, 40), (0.2, 1.0), ((False, TTestIndPower()), (True, TTestPower()))):
        assert st.power(effect, 1, n, paired=paired) == pytest.approx(design.power(effect, n, 0.05), rel=1e-6)


@checked
@given(some.integers(0, 200), some.floats(-0.3, 0.3) | NAN, some.floats(0.001, 0.1) | NAN, some.booleans())
@example(10, 0.1, 0.0, True)
@example(2, 1e-200, 0.1, True)
@example(2, 1e-12, 0.0625, True)
def test_power_is_a_probability_and_planning_is_its_inverse(n, difference, sd, paired):
    chance = st.power(difference, sd, n, paired=paired)
    visible = st.minimum_detectable_difference(n, sd, paired=paired)
    needed = st.runs_needed(difference, sd, paired=paired)
    assert np.isnan(visible) == (n < 2 or not sd > 0)
    assert np.isnan(chance) == (np.isnan(visible) or np.isnan(difference))
    assert np.isnan(needed) == (not sd > 0 or not abs(difference) > 1e-6 * sd)
    assert np.isnan(chance) or 0.05 <= chance <= 1 and chance == st.power(-difference, sd, n, paired=paired)
    assert np.isnan(visible) or st.power(visible, sd, n, paired=paired) == pytest.approx(0.8)
    if sd > 0 and abs(difference) > 0.02 * sd:
        assert st.power(difference, sd, needed, paired=paired) >= 0.8
        assert needed == 2 or st.power(difference, sd, needed - 1, paired=paired) < 0.8


def test_luck_has_the_known_error_rates():
    found = st.simulate_null(8, np.random.default_rng(6), num_arms=4, sd=0.01, correlation=0.5)
    shares = (found.filter(regex="paired|welch|any") < 0.05).mean()
    assert shares["paired"] == pytest.approx(0.05, abs=0.012) and shares["welch"] < 0.02  # it ignores what pairs share
    assert shares["any_arm_holm"] < 0.062 and shares["any_arm"] > 0.09 and shares["any_look"] > 0.12
    assert found.filter(regex="paired|welch|any").stack().between(0, 1).all()
    assert st.simulate_null(3, np.random.default_rng(0), sd=np.nan).isna().all(axis=None)
    assert found.mean_gain.std() == pytest.approx(0.01 * np.sqrt(2 * 0.5 / 8), rel=0.05)


@checked
@given(CLASSES)
def test_agreement_is_that_of_scikit_learn(classes):
    student, teacher, labels = classes
    wrong = teacher != labels
    of_wrong = accuracy_score(teacher[wrong], student[wrong]) if wrong.any() else np.nan
    found = st.agreement(student, teacher, labels)
    assert found.tolist() == pytest.approx([accuracy_score(teacher, student), of_wrong], nan_ok=True)


def test_share_of_the_test_set_by_simulation():
    rng, labels = np.random.default_rng(8), np.zeros(500, int)
    alone = rng.random((200, 500)) > 0.7  # seeds differ on single images by chance alone
    quality = rng.normal(0.7, 0.03, (200, 1))  # and now in quality too, by more than the 0.02 of 500 images
    both = rng.random((200, 500)) > quality
    expected = (0.7 * 0.3 / 500) / (0.7 * 0.3 / 500 + 0.03**2)
    assert st.finite_test_set_share(alone, labels)[0] == pytest.approx(1, abs=0.2)
    share, low, high = st.finite_test_set_share(both, labels)
    assert share == pytest.approx(expected, abs=0.08) and 0 <= low < share < high <= 1
    for without_spread in (alone[:1], [alone[0]] * 3):
        assert np.isnan(st.finite_test_set_share(without_spread, labels)).all()


@pytest.mark.parametrize("number", [np.nan, -0.1, 1.1])
def test_what_a_formula_is_not_defined_for_is_refused(number):
    two, rng = np.array([0, 1]), np.random.default_rng(0)
    for function, *arguments in (
        (st.compare, table(A=[0.1, 0.2], B=[0.1, 0.3]).assign(seed=0), [("A", "B")]),
        (st.factorial, table(**dict.fromkeys(list(ARMS)[1:], [0.4, 0.5]))),
        (st.factorial, table(**dict.fromkeys(ARMS, [0.4, np.nan]))),
        (partial(st.simulate_null, correlation=number), 5, rng),
        (st.agreement, two, two, [0, number]),
        (st.agreement, two, two, [0, 1, 2]),
        (st.finite_test_set_share, [[0, number]] * 3, two),
    ):
        refusal(function, *arguments)


def test_crossed_interval_is_made_of_the_mean_squares_of_two_crossed_factors():
    values = np.random.default_rng(0).normal(size=(4, 9)) + np.arange(9) + [[0], [1], [2], [5]]
    long = pd.DataFrame(values).melt(ignore_index=False).reset_index()
    runs, images, rest, *_ = anova_lm(smf.ols("value ~ C(index) + C(variable)", long).fit()).mean_sq / values.size
    found = st.crossed_interval(values)[["runs", "images", "both"]] ** 2
    assert found.tolist() == pytest.approx([runs, images, runs + images - rest])
    parts = [st.crossed_interval(values[:, rows]) for rows in (slice(6), slice(6, 9))]
    expected = np.mean([part["mean"] for part in parts]), np.hypot(*(part.images for part in parts)) / 2
    assert st.crossed_interval(values, [0] * 6 + [1] * 3)[["mean", "images"]].tolist() == pytest.approx(expected)
