"""Each statistic by a second route: SciPy, statsmodels and scikit-learn, worked cases, simulation, published runs."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from sklearn.metrics import accuracy_score, roc_auc_score
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.power import TTestIndPower, TTestPower

from igkd import published
from igkd import statistics as st
from igkd.errors import InputError
from igkd.runs import ARMS

ACCURACIES = some.lists(some.integers(0, 1000).map(lambda right: right / 1000), min_size=0, max_size=12)
DIFFERENCES = some.floats(-0.3, 0.3)


def table(**arms) -> pd.DataFrame:
    """Runs of some arms, seeds from 0 on."""
    each = [pd.DataFrame({"arm": arm, "seed": range(len(a)), "accuracy": a}) for arm, a in arms.items()]
    return pd.concat(each, ignore_index=True).astype({"accuracy": float})


@pytest.fixture(scope="module")
def runs():
    return published.ablation_runs()


# -- arms against each other -----------------------------------------------------------------------


def test_compare_is_scipys_test_of_the_runs_that_both_have():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 0.01, 9), rng.normal(0.49, 0.01, 7)
    shuffled = table(A=a, B=b).sample(frac=1, random_state=0)
    paired, welch = (st.compare(shuffled, [("A", "B")], pair_by).iloc[0] for pair_by in ("seed", None))
    assert (paired.n, paired.n_reference, welch.n, welch.n_reference) == (7, 7, 9, 7)
    for row, test in (paired, stats.ttest_rel(a[:7], b)), (welch, stats.ttest_ind(a, b, equal_var=False)):
        assert (row.p, row.low, row.high) == pytest.approx((test.pvalue, *test.confidence_interval()))
        assert row.difference == pytest.approx(row["mean"] - row.mean_reference)
        assert row.p_holm == row.p


def test_published_gain_by_welch(runs):
    row = st.compare(runs, [("KD+IG", "Student")], pair_by=None).iloc[0]
    a, b = (runs.accuracy[runs.arm == arm] for arm in ("KD+IG", "Student"))
    t = (a.mean() - b.mean()) / np.sqrt(a.var() / 10 + b.var() / 10)
    df = (a.var() + b.var()) ** 2 / ((a.var() ** 2 + b.var() ** 2) / 9)
    assert row.p == pytest.approx(2 * stats.t.sf(abs(t), df))


@settings(deadline=None, max_examples=60)
@given(ACCURACIES, ACCURACIES, some.sampled_from(["seed", None]))
def test_any_runs_can_be_compared_and_the_order_of_arms_is_the_sign(a, b, pair_by):
    there, back = st.compare(table(A=a, B=b), [("A", "B"), ("B", "A")], pair_by).itertuples()
    assert np.isnan(there.p) or (0 <= there.p <= there.p_holm <= 1 and there.low <= there.difference <= there.high)
    assert [there.difference, there.low, there.high, there.p] == pytest.approx(
        [-back.difference, -back.high, -back.low, back.p], nan_ok=True
    )


@pytest.mark.parametrize("pair_by", ["seed", None])
def test_what_does_not_vary_or_is_missing_has_a_row_and_counts_in_the_correction(pair_by):
    some_runs = table(A=[0.1, 0.2, 0.4], B=[0.1, 0.1, 0.1], C=[0.3, 0.3, 0.3], D=[0.5])
    found = st.compare(some_runs, [("A", "B"), ("C", "B"), ("D", "B"), ("E", "B")], pair_by)
    assert found.difference.tolist() == pytest.approx([0.4 / 3, 0.2, 0.4, np.nan], nan_ok=True)
    assert found[["low", "high", "p", "p_holm"]].isna().all(axis=1).tolist() == [False, True, True, True]
    assert found.p_holm[0] == pytest.approx(min(1, 4 * found.p[0]))
    assert st.compare(some_runs, [], pair_by).empty


def test_a_run_without_a_value_is_left_out():
    rows = st.compare(table(A=[0.1, np.nan, 0.4, 0.2], B=[0.1, 0.3, 0.2, 0.1]), [("A", "B")])
    assert (rows.n[0], rows.difference[0]) == (3, pytest.approx(0.1))


def test_pairs_must_be_unique():
    with pytest.raises(InputError, match="two runs with the same seed"):
        st.compare(table(A=[0.1, 0.2], B=[0.1, 0.3]).assign(seed=0), [("A", "B")])


def test_holm_worked_case():
    p = pd.Series({"a": 0.01, "b": 0.04, "c": 0.03, "d": np.nan})
    expected = pd.Series({"a": 0.04, "b": 0.09, "c": 0.09, "d": np.nan})
    pd.testing.assert_series_equal(st.holm(p), expected)


def test_a_table_in_points_shows_what_was_compared_and_leaves_unknown_values_out():
    text = st.in_points(
        st.compare(table(A=[0.5, 0.52], B=[0.5, 0.5], C=[0.4, 0.4]), [("A", "B"), ("C", "B")])
    ).to_html()
    assert "+1.00" in text and "-10.00" in text and "–" in text and "nan" not in text


# -- the design as a whole -------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, "seed"])
def test_factorial_is_the_analysis_of_variance(block):
    rng = np.random.default_rng(3)
    design = table(**{arm: rng.normal(0.4, 0.01, 4) for arm in ARMS})
    found = st.factorial(design, block).set_index("term")
    coded = design.assign(
        **{name: design.arm.str.split("+").map(lambda on, name=name: name in on) for name in ("KD", "IG", "AT")}
    )
    formula = "accuracy ~ C(KD, Sum) * C(IG, Sum) * C(AT, Sum)" + (" + C(seed)" if block else "")
    anova = anova_lm(smf.ols(formula, coded).fit(), typ=3)["PR(>F)"]
    for term, row in found.iterrows():
        assert row.p == pytest.approx(anova[":".join(f"C({name}, Sum)" for name in term.split(":"))])
        assert row.low < row.estimate < row.high
    mean = coded.groupby("KD").accuracy.mean()
    assert found.estimate["KD"] == pytest.approx(mean[True] - mean[False])
    cells = coded.groupby(["KD", "IG"]).accuracy.mean()
    assert found.estimate["KD:IG"] == pytest.approx(
        cells[True, True] - cells[True, False] - cells[False, True] + cells[False, False]
    )


def test_published_main_effects(runs):
    found = st.factorial(runs).set_index("term")
    assert (found.estimate["KD"], found.estimate["IG"]) == pytest.approx((0.0052, 0.0024), abs=5e-5)
    assert (found.p_holm < 0.05).to_dict() == {term: term in ("KD", "IG") for term in found.index}


@pytest.mark.parametrize("repeats", [1, 3])
def test_factorial_says_nothing_about_chance_without_a_spread(repeats):
    design = table(**{arm: [0.4] * repeats for arm in ARMS})
    found = st.factorial(design)
    assert found.estimate.tolist() == pytest.approx([0] * 7) and found[["low", "high", "p", "p_holm"]].isna().all(
        axis=None
    )
    with pytest.raises(InputError, match="the design needs runs"):
        st.factorial(design[design.arm != "KD+AT"])


# -- scatter and planning --------------------------------------------------------------------------


def test_spread_is_the_residual_of_an_analysis_of_variance_and_covers(runs):
    sd, low, high = st.spread(*(arm.accuracy for _, arm in runs.groupby("arm")))
    assert sd == pytest.approx(np.sqrt(smf.ols("accuracy ~ arm", runs).fit().mse_resid)) and low < sd < high
    samples = np.random.default_rng(4).normal(0, 1, (2000, 2, 6))
    covers = [low < 1 < high for _, low, high in (st.spread(*pair) for pair in samples)]
    assert np.mean(covers) == pytest.approx(0.95, abs=0.016)


def test_t_interval_is_statsmodels_and_silent_about_single_runs():
    values = np.random.default_rng(5).normal(0.4, 0.1, 6)
    mean = smf.ols("a ~ 1", pd.DataFrame({"a": values})).fit()
    assert st.t_interval(values) == pytest.approx(mean.conf_int().to_numpy()[0])
    assert np.isnan(st.t_interval([0.4])).all() and np.isnan(st.t_interval([])).all()


@pytest.mark.parametrize(("paired", "design"), [(False, TTestIndPower()), (True, TTestPower())])
def test_power_is_statsmodels(paired, design):
    for n, effect in product((3, 10, 40), (0.2, 0.5, 1.0)):
        assert st.power(effect, 1, n, paired=paired) == pytest.approx(design.power(effect, n, 0.05), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(some.integers(2, 200), DIFFERENCES, some.floats(0.001, 0.1), some.booleans())
def test_power_is_a_probability_and_planning_is_its_inverse(n, difference, sd, paired):
    chance = st.power(difference, sd, n, paired=paired)
    assert 0.05 <= chance <= 1 and chance == st.power(-difference, sd, n, paired=paired)
    visible = st.smallest_difference(n, sd, paired=paired)
    assert st.power(visible, sd, n, paired=paired) == pytest.approx(0.8)
    if abs(difference) > 0.02 * sd:
        needed = st.runs_needed(difference, sd, paired=paired)
        assert st.power(difference, sd, needed, paired=paired) >= 0.8
        assert needed == 2 or st.power(difference, sd, needed - 1, paired=paired) < 0.8


@pytest.mark.parametrize("sd", [0, 1e-17, np.nan])
def test_without_a_spread_nothing_can_be_planned(sd):
    assert np.isnan([st.runs_needed(0.01, sd), st.smallest_difference(10, sd), st.power(0.01, sd, 10)]).all()
    assert np.isnan([st.runs_needed(0, 0.01), st.runs_needed(np.nan, 0.01), st.smallest_difference(1, 0.01)]).all()
    assert np.isnan(st.spread([0.4, 0.4], [0.3, 0.3])[1:]).all() and np.isnan(st.spread([0.4])).all()
    with pytest.raises(InputError, match="alpha"):
        st.runs_needed(0.01, 0.01, power=0.01)


# -- what luck does --------------------------------------------------------------------------------


def test_luck_has_the_known_error_rates():
    found = st.luck(8, np.random.default_rng(6), num_arms=4, sd=0.01, correlation=0.5)
    shares = (found.filter(regex="paired|welch|any") < 0.05).mean()
    assert shares["paired"] == pytest.approx(0.05, abs=0.012) and shares["welch"] < 0.02  # it ignores what pairs share
    assert shares["any_arm_holm"] < 0.062 and shares["any_arm"] > 0.09 and shares["any_look"] > 0.12
    assert found.mean_gain.std() == pytest.approx(0.01 * np.sqrt(2 * 0.5 / 8), rel=0.05)


def test_best_of_n_closed_forms_and_simulation():
    assert (st.best_of_n(1), st.best_of_n(2, 0.1)) == pytest.approx((0, 0.1 / np.sqrt(np.pi)), abs=1e-12)
    assert st.best_of_n(10) == pytest.approx(np.random.default_rng(7).normal(size=(40000, 10)).max(1).mean(), abs=0.015)


# -- image by image --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(ACCURACIES.filter(len), ACCURACIES.filter(len))
def test_unpaired_improvement_is_mann_whitney_and_the_area_under_the_roc_curve(a, b):
    share, low, high = st.probability_of_improvement(a, b, paired=False)
    assert 0 <= low <= share <= high <= 1
    assert share == pytest.approx(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    assert share == pytest.approx(roc_auc_score([1] * len(a) + [0] * len(b), [*a, *b]))
    assert share == pytest.approx(1 - st.probability_of_improvement(b, a, paired=False)[0])


def test_paired_improvement_has_the_exact_interval():
    share, *interval = st.probability_of_improvement([0.3, 0.4, 0.5, 0.2], [0.2, 0.3, 0.6, 0.1])
    assert share == 0.75 and interval == pytest.approx(stats.binomtest(3, 4).proportion_ci())
    assert st.probability_of_improvement([0.3, 0.4], [0.3, 0.3])[0] == 0.75
    assert np.isnan([st.probability_of_improvement([], []), st.probability_of_improvement([0.1], [np.nan])]).all()
    with pytest.raises(InputError, match="equally many"):
        st.probability_of_improvement([0.3], [0.2, 0.1])


def test_agreement_and_mcnemar_of_ten_images():
    labels, teacher = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 1, 1, 0, 2])
    student = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1])
    found = st.agreement(student, teacher, labels)
    assert found["all"] == accuracy_score(teacher, student) == 0.6 and found.teacher_wrong == pytest.approx(2 / 3)
    assert np.isnan(st.agreement(student, labels, labels).teacher_wrong)
    found = st.mcnemar(teacher, student, labels)
    assert (found.only_a, found.only_b, found.p) == (3, 1, pytest.approx(stats.binomtest(1, 4).pvalue))
    assert st.mcnemar(student, student, labels).p == 1


def test_share_of_the_test_set_by_simulation():
    rng, labels = np.random.default_rng(8), np.zeros(500, int)
    alone = rng.random((200, 500)) > 0.7  # seeds differ on single images by chance alone
    quality = rng.normal(0.7, 0.03, (200, 1))  # and now in quality too, by more than the 0.02 of 500 images
    both = rng.random((200, 500)) > quality
    expected = (0.7 * 0.3 / 500) / (0.7 * 0.3 / 500 + 0.03**2)
    assert st.test_set_share(alone, labels)[0] == pytest.approx(1, abs=0.2)
    share, low, high = st.test_set_share(both, labels)
    assert share == pytest.approx(expected, abs=0.08) and 0 <= low < share < high <= 1
    assert np.isnan(st.test_set_share(alone[:1], labels)).all()
    assert np.isnan(st.test_set_share(np.tile(alone[0], (3, 1)), labels)).all()
