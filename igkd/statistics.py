"""Which differences between arms are real, how large they are, and how sure we can be.

A table of runs has one row a run: ``arm``, ``seed``, ``accuracy`` (a fraction). Tests and intervals are SciPy's and
statsmodels'. Where nothing can be said, because runs are too few, do not vary, or lack a value, numbers are NaN; what
is no input of a formula is refused.
"""

import warnings
from bisect import bisect_left

import numpy as np
import pandas as pd
from scipy import optimize, stats
from statsmodels.formula.api import ols

from igkd.errors import InputError
from igkd.runs import DESIGN

TINY = 1e-12  # rounding leaves a spread of about 1e-16 in differences of accuracies that are all equal
POWER = 0.8  # with which plans find a difference
LEAST_SHOWN = 4  # runs from which tables, figures and sentences give an interval
COLUMNS = ["arm", "reference", "n", "n_reference", "mean", "mean_reference", "difference", "low", "high", "p"]


def compare(
    runs: pd.DataFrame, pairs, pair_by: str | None = "seed", value: str = "accuracy", least: int = 2
) -> pd.DataFrame:
    """Each arm against its reference: the difference with its 95 % t-interval, `p`, and `p_holm` over all pairs.

    Runs that share `pair_by` are compared in pairs; with ``pair_by=None`` by Welch's test. A pair with fewer runs than
    `least` keeps its row without interval and p, and counts in Holm's correction: give the number that was declared, as
    an interval that one looks at until it pleases is none. A row a pair, columns `COLUMNS` and ``p_holm``; `value`, and
    so means, difference and interval, are fractions.

    Raises
    ------
    InputError
        If an arm has two runs with the same `pair_by`.

    Examples
    --------
    >>> runs = pd.DataFrame({"arm": ["Student", "KD"] * 3, "seed": [0, 0, 1, 1, 2, 2]})
    >>> runs["accuracy"] = [0.90, 0.92, 0.91, 0.92, 0.92, 0.95]
    >>> compare(runs, [("KD", "Student")])[["n", "difference", "low", "high"]].round(3)
       n  difference    low   high
    0  3        0.02 -0.005  0.045
    """
    rows = []
    for arm, reference in pairs:
        if pair_by:
            both = paired(runs, arm, reference, [pair_by], value)
            a, b = both[arm], both[reference]
        else:
            a, b = (runs.loc[runs.arm == name, value].astype(float) for name in (arm, reference))
        with warnings.catch_warnings(action="ignore"):  # of too few runs, or of an arm that does not vary
            test = stats.ttest_rel(a, b) if pair_by else stats.ttest_ind(a, b, equal_var=False)
        means = [sample.mean(skipna=False) for sample in (a, b)]
        varies = ((a - b).std() if pair_by else a.std() + b.std()) > TINY
        known = [*test.confidence_interval(), test.pvalue] if varies and len(a) >= least else [np.nan] * 3
        rows.append([arm, reference, len(a), len(b), *means, means[0] - means[1], *known])
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(p_holm=holm(table.p))


def paired(runs: pd.DataFrame, arm="KD+IG", reference="Student", by=("seed",), value="accuracy") -> pd.DataFrame:
    """Runs of two arms beside each other: a row for each `by` that both arms have, and a column an arm.

    Raises
    ------
    InputError
        If an arm has two runs with the same `by`.

    Examples
    --------
    >>> runs = pd.DataFrame({"arm": ["Student", "KD+IG", "Student"], "seed": [0, 0, 1], "accuracy": [0.5, 0.75, 0.25]})
    >>> paired(runs).eval("`KD+IG` - Student").tolist()  # seed 1 has no partner
    [0.25]
    """
    table = runs if len(runs) else runs.reindex(columns=["arm", *by, value])  # without runs it has no columns
    of = {name: table[table.arm == name].set_index([*by])[value].astype(float) for name in (arm, reference)}
    if not all(each.index.is_unique for each in of.values()):
        raise InputError(f"{arm} or {reference} has two runs with the same {', '.join(by)}; pairs need one run each")
    return pd.concat(of, axis=1, join="inner").sort_index()


def holm(p: pd.Series) -> pd.Series:
    """P-values of one declared family after Holm's correction; a NaN was asked too, so it counts."""
    # Not statsmodels' multipletests, which collects garbage at each call: most of a second beside PyTorch.
    asked = p.astype(float).fillna(1).to_numpy()
    order = asked.argsort()
    corrected = np.maximum.accumulate(asked[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return pd.Series(corrected[order.argsort()], p.index).where(p.notna())


def in_points(compared: pd.DataFrame | dict[str, pd.DataFrame], *by: str):
    """What `compare` or `factorial` found as a styled table, in points, with intervals and p from four runs on.

    `by`: columns that stand before the arms; of several tables, the name of their names.
    """
    if isinstance(compared, dict):
        compared = pd.concat(compared, names=[*by]).reset_index([*by])
    columns = {"n": "n", "difference": "points", "estimate": "points", "low": "95 % from", "high": "to", "p": "p"}
    columns["p_holm"] = "p (Holm)"
    shown = compared.rename(columns={"reference": "minus"})
    shown = shown.set_index([each for each in (*by, "term", "arm", "minus") if each in shown])
    shown = shown.filter(columns).rename(columns=columns)
    points = ["points", "95 % from", "to"]
    shown[points] *= 100
    shown.loc[shown.n < LEAST_SHOWN, ["95 % from", "to", "p", "p (Holm)"]] = np.nan
    return shown.style.format("{:.2g}", na_rep="–").format("{:+.2f}", subset=points, na_rep="–").format(subset="n")


def factorial(runs: pd.DataFrame, block: str | None = None) -> pd.DataFrame:
    """Main effects and interactions of KD, IG and AT: the analysis of variance of the 2 x 2 x 2 design.

    Factors are coded -1/2 and +1/2, so ``KD`` is the mean change when KD is switched on, and ``KD:IG`` the change of
    that when IG is switched on. `block` ("seed") removes what runs of one seed have in common. A row a ``term``:
    ``estimate``, ``low``, ``high`` (95 %), ``p``, ``p_holm``, ``n`` (runs).

    Raises
    ------
    InputError
        If one of the eight arms of the design is missing, or a run has no accuracy.
    """
    runs = runs[runs.arm.isin(DESIGN)]
    if set(runs.arm) != set(DESIGN) or runs.accuracy.isna().any():
        raise InputError(f"the design needs accuracies of {', '.join(DESIGN)}, and has {', '.join(set(runs.arm))}")
    levels = runs.arm.str.get_dummies("+")[["KD", "IG", "AT"]] - 0.5
    with np.errstate(all="ignore"):  # no run is left to estimate the error
        fit = ols("accuracy ~ KD * IG * AT" + (f" + C({block})" if block else ""), runs.assign(**levels)).fit()
        table = pd.concat([fit.params, fit.conf_int(), fit.pvalues], axis=1)
    table.columns = ["estimate", "low", "high", "p"]
    table = table[table.index.str.contains("^(?:KD|IG|AT)")].rename_axis("term").reset_index()
    if not (fit.df_resid > 0 and fit.mse_resid > TINY**2):
        table[["low", "high", "p"]] = np.nan
    return table.assign(p_holm=holm(table.p), n=len(runs))


def t_interval(values) -> tuple[float, float]:
    """95 % confidence interval of a mean; for seaborn's ``errorbar=``."""
    values = pd.Series(values, dtype=float)
    known = values.sem() > TINY and values.notna().all()
    return stats.t.interval(0.95, len(values) - 1, values.mean(), values.sem()) if known else (np.nan, np.nan)


def pooled_sd(*samples) -> tuple[float, float, float]:
    """Standard deviation of runs around the mean of their arm, pooled over arms, with its 95 % interval."""
    df = sum(max(len(sample) - 1, 0) for sample in samples)
    squares = sum(((np.asarray(sample) - np.mean(sample)) ** 2).sum() for sample in samples if len(sample))
    if df == 0 or squares < TINY**2:
        return (0.0 if df else np.nan), np.nan, np.nan
    return tuple(float(np.sqrt(squares / x)) for x in (df, *stats.chi2.ppf([0.975, 0.025], df)))


def power(difference: float, sd: float, n: int, *, paired: bool = True, alpha: float = 0.05) -> float:
    """How often n runs of each arm (pairs if `paired`, then `sd` is that of their differences) find this difference."""
    if not (n >= 2 and sd > TINY):
        return np.nan
    df, pairs = (n - 1, n) if paired else (2 * n - 2, n / 2)
    # The square of t is F. statsmodels adds two tails of t, some of which SciPy gives as NaN; at 0 SciPy's F is wrong.
    return float(np.clip(stats.ncf.sf(stats.f.isf(alpha, 1, df), 1, df, pairs * (difference / sd) ** 2), alpha, 1))


def minimum_detectable_difference(n: int, sd: float, *, paired: bool = True) -> float:
    """True difference that n runs of each arm (pairs if `paired`) find with 80 % power at 5 %, in the unit of `sd`."""
    if not (n >= 2 and sd > TINY):
        return np.nan
    return sd * optimize.brentq(lambda x: power(x, 1, n, paired=paired) - POWER, 0, 16)


def runs_needed(difference: float, sd: float, *, paired: bool = True) -> float:
    """Runs of each arm (pairs if `paired`) that find a true difference of this size; NaN if none, or only 10^13, can.

    Examples
    --------
    A difference as large as the standard deviation of the pairs' differences takes ten pairs:

    >>> runs_needed(0.003, 0.003)
    10
    """
    if not (sd > TINY and abs(difference) > 1e-6 * sd):
        return np.nan
    most = 2
    while power(difference, sd, most, paired=paired) < POWER:
        most *= 2
    return bisect_left(range(most), POWER, 2, key=lambda n: power(difference, sd, n, paired=paired))


def simulate_null(
    n: int, rng: np.random.Generator, num_arms: int = 4, sd: float = 1, correlation: float = 0
) -> pd.DataFrame:
    """What 4000 simulated studies find in which all arms are the same: one row a study, p-values and gains.

    `correlation`, 0 to 1, is that of runs of one pair. ``any_arm`` is the smallest p-value of all arms, ``any_look``
    that of tests after two, three, ... n pairs; ``best_gain`` compares best runs.
    """
    if not 0 <= correlation <= 1:
        raise InputError(f"the correlation is {correlation}; give a number from 0 to 1")
    common, own = rng.normal(0, sd, (4000, 1, n)), rng.normal(0, sd, (4000, num_arms, n))
    runs = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
    reference, others = runs[:, :1], runs[:, 1:]
    p = stats.ttest_rel(others, np.broadcast_to(reference, others.shape), axis=2).pvalue
    looks = [stats.ttest_rel(others[:, 0, :k], reference[:, 0, :k], axis=1).pvalue for k in range(2, n + 1)]
    return pd.DataFrame(
        {
            "paired": p[:, 0],
            "welch": stats.ttest_ind(others[:, 0], reference[:, 0], axis=1, equal_var=False).pvalue,
            "any_arm": p.min(axis=1),
            "any_arm_holm": np.minimum(1, p.min(axis=1) * p.shape[1]),  # Holm's smallest is Bonferroni's
            "any_look": np.min(looks, axis=0) if looks else np.nan,
            "mean_gain": others[:, 0].mean(axis=1) - reference[:, 0].mean(axis=1),
            "best_gain": others[:, 0].max(axis=1) - reference[:, 0].max(axis=1),
        }
    )


def _right(predictions, labels) -> pd.DataFrame:
    """Which images (columns) each row of classes (n, N) puts into the class of `labels` (N,)."""
    predictions, labels = np.atleast_2d(predictions), np.asarray(labels)
    whole = {predictions.dtype.kind, labels.dtype.kind} <= set("iub")
    if not (whole and predictions.shape[1:] == labels.shape):
        raise InputError(f"{predictions.shape} classes for {labels.shape} images; give whole numbers, one an image")
    return pd.DataFrame(predictions == labels)


def agreement(predicted, teacher, labels) -> pd.Series:
    """Share of images that a student puts into its teacher's class: of all, of those that the teacher gets wrong."""
    same, right = _right(predicted, teacher).loc[0], _right(teacher, labels).loc[0]
    return pd.Series({"all": same.mean(), "teacher_wrong": same[~right].mean()})


def finite_test_set_share(predictions, labels) -> tuple[float, float, float]:
    """Which part of an arm's variance between seeds is that of a finite test set, with its 95 % interval.

    On another test set of this size other seeds would look good, as far as seeds differ on single images by chance.
    `predictions` holds classes, (n_seeds, n_test). The part is what remains of the variance of accuracies after the
    covariance of two different images, which a larger test set would keep; above 1 it is cut, as chance put it there.
    Source: K. Jordan, On the variance of neural network training (2023), arXiv:2304.01910.
    """
    right = _right(predictions, labels).astype(float)
    variance, low, high = np.square(pooled_sd(right.mean(axis=1)))
    variances = np.array([variance or np.nan, high, low])
    return tuple(np.clip((right.var().mean() / variances - 1) / (right.shape[1] - 1), 0, 1).tolist())


def crossed_interval(values, groups=None) -> pd.Series:
    """Mean of runs (rows) on images (columns), and how far other runs and other images would move it.

    The mean over `groups` of images, such as their classes (N,), if given. Returned are ``mean``; its standard errors
    from ``runs``, from ``images`` and from ``both``; ``low`` and ``high``, the 95 % t-interval of both, and the
    two-sided ``p``, with the degrees of freedom of the runs. Runs and images are crossed random effects: the scatter of
    single runs on single images is in the first two errors and counts once in the third.

    Examples
    --------
    >>> crossed_interval([[2, 1], [1, -2]]).round(2).to_dict()
    {'mean': 0.5, 'runs': 1.0, 'images': 1.0, 'both': 1.32, 'low': -16.31, 'high': 17.31, 'p': 0.77}
    """
    table = np.asarray(values, dtype=float)
    n, groups = len(table), np.zeros(table.shape[1]) if groups is None else np.asarray(groups)
    parts = [table[:, groups == each] for each in np.unique(groups)]
    means = np.mean([part.mean(axis=1) for part in parts], axis=0)
    of_images, of_single = 0.0, 0.0
    for part in parts:
        left = part - part.mean(axis=0) - part.mean(axis=1, keepdims=True) + part.mean()
        of_images += part.mean(axis=0).var(ddof=1) / part.shape[1] / len(parts) ** 2
        of_single += left.var() / (n - 1) / (part.shape[1] - 1) / len(parts) ** 2
    of_runs = means.var(ddof=1) / n
    # What is counted twice is an estimate, too, which chance can make larger than one of the two errors.
    errors = np.sqrt([of_runs, of_images, max(of_runs + of_images - of_single, of_runs, of_images)])
    low, high = stats.t.interval(0.95, n - 1, means.mean(), errors[2])
    p = 2 * stats.t.sf(abs(means.mean()) / errors[2], n - 1) if errors[2] > TINY else np.nan
    names = ["mean", "runs", "images", "both", "low", "high", "p"]
    return pd.Series([means.mean(), *errors, low, high, p], names)
