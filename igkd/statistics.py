"""Which differences between arms are real, how large they are, and how sure we can be.

An *arm* is one method (``"Student"``, ``"KD+IG"``, ...) trained several times; a *run* gives one
accuracy, a fraction in [0, 1]. Start with :func:`compare` (two arms) or :func:`compare_arms` (several arms
against one reference, Holm-corrected); for the whole 2 x 2 x 2 design use :func:`factorial`.

Every test is SciPy's or statsmodels'. What this module adds is the choice of test, the checks of what goes
in, and results that can be read aloud. Whatever draws random numbers asks for a generator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb, prod

import numpy as np
import pandas as pd
from scipy import integrate, optimize, stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.diagnostic import lilliefors as _lilliefors
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from igkd.errors import InputError

FACTORS = ("KD", "IG", "AT")


@dataclass(frozen=True)
class TestResult:
    """Outcome of one test: its name, statistic, degrees of freedom (None if it has none), p-value, sizes."""

    __test__ = False  # pytest would otherwise try to collect a class of this name

    test: str
    statistic: float
    df: float | None
    p: float
    n: tuple[int, ...]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the unit of the data."""

    estimate: float
    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True)
class Comparison:
    """One arm against another; ``difference`` = mean of ``arm`` minus mean of ``reference``, a fraction.

    ``low`` and ``high`` bound the difference with the given confidence; ``p`` belongs to ``test``;
    ``hedges_g`` (``g_low`` to ``g_high``) is the difference in units of the run-to-run standard deviation.
    """

    arm: str
    reference: str
    n: int
    n_reference: int
    mean: float
    mean_reference: float
    difference: float
    low: float
    high: float
    confidence: float
    test: str
    statistic: float
    df: float
    p: float
    hedges_g: float
    g_low: float
    g_high: float

    def __str__(self) -> str:
        return (
            f"{self.arm} - {self.reference}: {100 * self.difference:+.2f} points "
            f"[{100 * self.low:+.2f}, {100 * self.high:+.2f}], {self.test} t({self.df:.1f}) = "
            f"{self.statistic:.2f}, p = {self.p:.2g}, g = {self.hedges_g:.2f}, "
            f"n = {self.n} and {self.n_reference}"
        )


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests: small ``p`` means that the true difference lies inside +-``margin``."""

    difference: float
    low: float
    high: float
    margin: float
    alpha: float
    p: float
    equivalent: bool


def _runs(values: Iterable[float], name: str = "runs", least: int = 2) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise InputError(f"{name}: give a flat list of finite numbers, one per run")
    if array.size < least:
        raise InputError(f"{name}: {array.size} value(s), but this needs at least {least}; add runs (seeds)")
    return array


def _two(a: Iterable[float], b: Iterable[float], paired: bool = False) -> tuple[np.ndarray, np.ndarray]:
    a, b = _runs(a, "first arm"), _runs(b, "second arm")
    if paired and a.size != b.size:
        raise InputError(f"pairs need equally many runs, not {a.size} and {b.size}; use paired=False")
    return a, b


def _constant(*samples: np.ndarray) -> bool:
    # rounding leaves a spread of about 1e-16 in differences of accuracies that are all equal
    return all(np.ptp(s) <= 1e-12 * max(1.0, np.abs(s).max()) for s in samples)


def _varies(*samples: np.ndarray) -> None:
    if _constant(*samples):
        raise InputError("the runs do not vary, so chance cannot be judged; add runs with other seeds")


def _fraction(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} is {value}; give a number between 0 and 1")


# -- tests of two or more samples ------------------------------------------------------------------


def welch(a: Iterable[float], b: Iterable[float]) -> TestResult:
    """Do two arms of independent runs differ in mean? Variances may differ.

    Parameters
    ----------
    a, b : (n,) and (m,) array_like
        One value per run, at least two each.

    Notes
    -----
    Assumes independent runs and means that are close to normal. Two-sided.
    Source: B. L. Welch, Biometrika 34 (1947) 28; ``scipy.stats.ttest_ind(equal_var=False)``.
    """
    a, b = _two(a, b)
    _varies(a, b)
    return _t_result("Welch", stats.ttest_ind(a, b, equal_var=False), a, b)


def equal_variance(a: Iterable[float], b: Iterable[float]) -> TestResult:
    """Do two arms of independent runs differ in mean, if they vary equally?

    The test behind the paper's Monte Carlo p-values; parameters as in :func:`welch`.

    Notes
    -----
    Also assumes equal variances; where they differ and the arms have different sizes, the error rate is
    not the nominal one. Two-sided. Source: Student, Biometrika 6 (1908) 1; ``scipy.stats.ttest_ind``.
    """
    a, b = _two(a, b)
    _varies(a, b)
    return _t_result("equal-variance", stats.ttest_ind(a, b), a, b)


def paired(a: Iterable[float], b: Iterable[float]) -> TestResult:
    """Do two arms differ in mean, when run i of both shares seed, subset and initial weights?

    Parameters
    ----------
    a, b : (n,) array_like
        One value per run in the same order of seeds, at least two.

    Notes
    -----
    Assumes that the differences are independent and close to normal. Without shared seeds the pairing
    is arbitrary, and another order of the same runs gives another p-value. Two-sided.
    Source: ``scipy.stats.ttest_rel``.
    """
    a, b = _two(a, b, paired=True)
    _varies(a - b)
    return _t_result("paired", stats.ttest_rel(a, b), a, b)


def _t_result(name: str, result, a: np.ndarray, b: np.ndarray) -> TestResult:
    return TestResult(name, float(result.statistic), float(result.df), float(result.pvalue), (a.size, b.size))


def sign_flip(a: Iterable[float], b: Iterable[float], rng: np.random.Generator, n_resamples: int = 9999) -> TestResult:
    """Do two arms differ, when run i of both shares seed and subset? A test free of normality.

    Parameters
    ----------
    a, b : (n,) array_like
        One value per run in the same order of seeds, at least two.
    rng : numpy.random.Generator
        Source of the flips, where there are more than `n_resamples`.
    n_resamples : int
        Most flips that are tried.

    Notes
    -----
    If the arms do not differ, a coin might as well have decided which run of a pair belongs to which. ``statistic``
    is the mean difference, ``p`` how often coins give one as large: exact while 2^n <= `n_resamples`, and never
    below 2 / 2^n, so fewer than six pairs cannot reach 0.05. Two-sided.
    Source: Fisher, The Design of Experiments (1935), ch. 3; ``scipy.stats.permutation_test``.
    """
    a, b = _two(a, b, paired=True)
    result = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        rng=rng,
    )
    return TestResult("sign flip", float(result.statistic), None, float(result.pvalue), (a.size, b.size))


def mann_whitney(a: Iterable[float], b: Iterable[float]) -> TestResult:
    """Does a run of one arm tend to exceed a run of the other? A rank test, free of normality.

    Parameters
    ----------
    a, b : (n,) and (m,) array_like
        One value per run, at least two each.

    Notes
    -----
    Assumes independent runs. Exact for small samples without ties, else the normal approximation with
    tie correction. Two-sided. Source: Mann and Whitney, Ann. Math. Stat. 18 (1947) 50;
    ``scipy.stats.mannwhitneyu``.
    """
    a, b = _two(a, b)
    result = stats.mannwhitneyu(a, b, alternative="two-sided")
    return TestResult("Mann-Whitney", float(result.statistic), None, float(result.pvalue), (a.size, b.size))


def brown_forsythe(*samples: Iterable[float]) -> TestResult:
    """Do two or more arms vary equally from run to run?

    Parameters
    ----------
    *samples : (n_i,) array_like
        One value per run, at least two runs per arm.

    Notes
    -----
    Levene's test around the median, which keeps its level for skewed data. ``df`` is the denominator's;
    the numerator's is the number of arms minus one. Source: Brown and Forsythe, J. Am. Stat. Assoc. 69
    (1974) 364; ``scipy.stats.levene(center="median")``.
    """
    arrays = [_runs(s, f"arm {i}") for i, s in enumerate(samples, 1)]
    if len(arrays) < 2:
        raise InputError("a comparison of variances needs at least two arms")
    _varies(*arrays)
    result = stats.levene(*arrays, center="median")
    sizes = tuple(a.size for a in arrays)
    df = float(sum(sizes) - len(sizes))
    return TestResult("Brown-Forsythe", float(result.statistic), df, float(result.pvalue), sizes)


def lilliefors(values: Iterable[float]) -> TestResult:
    """Are the runs compatible with a normal distribution of unknown mean and variance?

    Parameters
    ----------
    values : (n,) array_like
        One value per run, at least four.

    Notes
    -----
    A large p is no proof of normality, least of all with few runs. p is interpolated in a table and lies
    between 0.001 and 0.99. Source: Lilliefors, J. Am. Stat. Assoc. 62 (1967) 399;
    ``statsmodels.stats.diagnostic.lilliefors``.
    """
    array = _runs(values, least=4)
    _varies(array)
    statistic, p = _lilliefors(array, dist="norm", pvalmethod="table")
    return TestResult("Lilliefors", float(statistic), None, float(p), (array.size,))


def silverman(values: Iterable[float], rng: np.random.Generator, n_resamples: int = 999) -> TestResult:
    """Does the distribution behind the runs have more than one peak?

    Parameters
    ----------
    values : (n,) array_like
        One value per run, at least four.
    rng : numpy.random.Generator
        Source of the resamples.
    n_resamples : int
        Number of resamples.

    Returns
    -------
    TestResult
        ``statistic`` is the critical bandwidth, in the unit of `values`: the narrowest normal kernel with which
        the estimated density has a single peak. ``p`` is the share of samples from that density that need a
        wider one.

    Notes
    -----
    Cautious for bell-shaped data (fewer than 5 % false alarms), so with some tens of runs it often misses two peaks;
    single runs far off count as peaks. Assumes continuous data: values in bins should be spread over their bins
    first. Source: Silverman, J. R. Stat. Soc. B 43 (1981) 97, with resamples scaled to the variance of the runs.
    """
    array = _runs(values, least=4)
    _varies(array)
    # peaks merge one by one as the kernel widens, so the critical width is found by halving
    narrow, wide = 0.0, float(np.ptp(array))
    while wide - narrow > 1e-4 * np.ptp(array):
        middle = (narrow + wide) / 2
        narrow, wide = (middle, wide) if _peaks(array, middle) > 1 else (narrow, middle)
    shrink = np.sqrt(1 + wide**2 / array.var())
    several = 0
    for _ in range(n_resamples):
        sample = rng.choice(array, array.size)
        smooth = sample.mean() + (sample - sample.mean() + wide * rng.standard_normal(array.size)) / shrink
        several += _peaks(smooth, wide) > 1
    return TestResult("Silverman", wide, None, (several + 1) / (n_resamples + 1), (array.size,))


def _peaks(array: np.ndarray, bandwidth: float) -> int:
    # all peaks of a sum of normal kernels lie between the outermost runs, where it rises first and falls last
    grid = np.linspace(array.min(), array.max(), 512)
    density = np.exp(-(((grid[:, None] - array) / bandwidth) ** 2) / 2).sum(1)
    slopes = np.sign(np.diff(density))
    slopes = slopes[slopes != 0]
    return 1 + int(((slopes[:-1] < 0) & (slopes[1:] > 0)).sum())


# -- size of a difference --------------------------------------------------------------------------


def bootstrap_difference(
    a: Iterable[float],
    b: Iterable[float],
    rng: np.random.Generator,
    *,
    paired: bool = False,
    confidence: float = 0.95,
    n_resamples: int = 9999,
) -> Interval:
    """How large is mean(a) - mean(b), without assuming normal runs?

    Parameters
    ----------
    a, b : (n,) and (m,) array_like
        One value per run, at least two each; in the same order of seeds if `paired`.
    rng : numpy.random.Generator
        Source of the resamples: the same generator state gives the same interval.
    paired : bool
        Resample pairs instead of each arm by itself.
    confidence : float
        Coverage aimed at.
    n_resamples : int
        Number of resamples.

    Notes
    -----
    Bias-corrected and accelerated. With about ten runs bootstrap intervals come out somewhat narrow;
    compare with the t interval of :func:`compare`. Source: Efron, J. Am. Stat. Assoc. 82 (1987) 171;
    ``scipy.stats.bootstrap``.
    """
    a, b = _two(a, b, paired)
    _fraction(confidence, "confidence")
    _varies(*((a - b,) if paired else (a, b)))

    def difference(x, y, axis):
        return x.mean(axis=axis) - y.mean(axis=axis)

    result = stats.bootstrap(
        (a, b),
        difference,
        paired=paired,
        vectorized=True,
        method="BCa",
        confidence_level=confidence,
        n_resamples=n_resamples,
        rng=rng,
    )
    low, high = result.confidence_interval
    return Interval(float(a.mean() - b.mean()), float(low), float(high), confidence, "bootstrap BCa")


def hedges_g(a: Iterable[float], b: Iterable[float], confidence: float = 0.95) -> Interval:
    """How many run-to-run standard deviations lie between the two means?

    Parameters
    ----------
    a, b : (n,) and (m,) array_like
        One value per run, at least two each.
    confidence : float
        Coverage of the interval.

    Notes
    -----
    Cohen's d with the pooled standard deviation of the arms and Hedges' correction for small samples;
    the interval is the normal approximation of meta-analysis. Paired designs use the same definition, so
    that values can be compared across designs; the interval then ignores the pairing, which makes it too
    wide where paired runs are positively correlated.
    Source: Borenstein et al., Introduction to Meta-Analysis (2009), ch. 4;
    ``statsmodels.stats.meta_analysis.effectsize_smd``.
    """
    a, b = _two(a, b)
    _fraction(confidence, "confidence")
    _varies(a, b)
    g, variance = effectsize_smd(a.mean(), a.std(ddof=1), a.size, b.mean(), b.std(ddof=1), b.size)
    half = stats.norm.isf((1 - confidence) / 2) * np.sqrt(variance)
    return Interval(float(g), float(g - half), float(g + half), confidence, "Hedges g")


def spread(*samples: Iterable[float], confidence: float = 0.95) -> Interval:
    """How much do runs of the same arm vary, and how well is that known?

    Parameters
    ----------
    *samples : (n_i,) array_like
        One value per run of an arm (or one difference per pair), at least two. Several arms are pooled, each around
        its own mean.
    confidence : float
        Coverage of the interval.

    Returns
    -------
    Interval
        The standard deviation in the unit of the runs.

    Notes
    -----
    Assumes independent, normal runs of equal variance; unlike that of a mean, this interval does not forgive other
    shapes. Source: Montgomery, Design and Analysis of Experiments, ch. 2; ``scipy.stats.chi2``.
    """
    arrays = [_runs(sample, f"arm {i}") for i, sample in enumerate(samples, 1)]
    _fraction(confidence, "confidence")
    _varies(*arrays)
    df = sum(array.size - 1 for array in arrays)
    squares = float(sum(((array - array.mean()) ** 2).sum() for array in arrays))
    low, high = (float(np.sqrt(squares / stats.chi2.ppf(tail / 2, df))) for tail in (1 + confidence, 1 - confidence))
    return Interval(float(np.sqrt(squares / df)), low, high, confidence, "chi-squared")


def compare(
    a: Iterable[float],
    b: Iterable[float],
    *,
    paired: bool,
    confidence: float = 0.95,
    names: tuple[str, str] = ("a", "b"),
) -> Comparison:
    """Is arm `a` better than arm `b`, by how much, and how sure is that?

    Parameters
    ----------
    a, b : (n,) and (m,) array_like
        Accuracies (fractions), one per run, at least two each.
    paired : bool
        True only if run i of both arms shares its seed: the paired t-test is used. Otherwise Welch's.
    confidence : float
        Coverage of both intervals.
    names : tuple of str
        What to call the two arms.

    Returns
    -------
    Comparison
        ``print(compare(...))`` gives one sentence in percentage points.

    Raises
    ------
    InputError
        Too few runs, unequal numbers of paired runs, or runs that do not vary.
    """
    a, b = _two(a, b, paired)
    _fraction(confidence, "confidence")
    _varies(*((a - b,) if paired else (a, b)))
    result = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = result.confidence_interval(confidence)
    g = hedges_g(a, b, confidence)
    return Comparison(
        arm=names[0],
        reference=names[1],
        n=a.size,
        n_reference=b.size,
        mean=float(a.mean()),
        mean_reference=float(b.mean()),
        difference=float(a.mean() - b.mean()),
        low=float(low),
        high=float(high),
        confidence=confidence,
        test="paired" if paired else "Welch",
        statistic=float(result.statistic),
        df=float(result.df),
        p=float(result.pvalue),
        hedges_g=g.estimate,
        g_low=g.low,
        g_high=g.high,
    )


def _pick(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise InputError(f"the table lacks column {', '.join(missing)}; it has {', '.join(frame.columns)}")


def compare_arms(
    frame: pd.DataFrame,
    reference: str = "Student",
    family: Sequence[str] | None = None,
    *,
    pair_by: str | None = None,
    value: str = "accuracy",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Which arms differ from the reference arm, when all of them are asked at once?

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per run with columns ``arm`` and `value`, and `pair_by` if given.
    reference : str
        The arm that the others are compared with.
    family : sequence of str, optional
        The arms of the question, declared beforehand: p-values are corrected over exactly these. Default:
        every other arm in `frame`, in order of appearance.
    pair_by : str, optional
        Column (for example ``"seed"``) by which runs are paired; only seeds that both arms have are used.
        None: the runs of two arms share nothing, and Welch's test is used.
    value : str
        Column that is compared.
    confidence : float
        Coverage of each interval (not corrected for the number of arms).

    Returns
    -------
    pandas.DataFrame
        One row per arm of the family, with the fields of :class:`Comparison` and ``p_holm``.
    """
    _pick(frame, ["arm"])
    family = [a for a in dict.fromkeys(frame["arm"]) if a != reference] if family is None else list(family)
    if not family:
        raise InputError(f"no runs of any other arm than {reference}; add runs of the arms to compare")
    pairs = [(arm, reference) for arm in family]
    return compare_pairs(frame, pairs, pair_by=pair_by, value=value, confidence=confidence)


def compare_pairs(
    frame: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    pair_by: str | None = None,
    value: str = "accuracy",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Which of these pairs of arms differ, when all of them are asked at once?

    Parameters
    ----------
    frame, pair_by, value, confidence
        As in :func:`compare_arms`.
    pairs : sequence of (arm, reference)
        The comparisons of the question, declared beforehand: p-values are corrected over exactly these.

    Returns
    -------
    pandas.DataFrame
        One row per pair, with the fields of :class:`Comparison` and ``p_holm``. Where the runs do not vary, so
        that chance cannot be judged, everything but the means and their difference is NaN.

    Raises
    ------
    InputError
        If an arm has no runs, too few, or two with the same `pair_by`.
    """
    _pick(frame, ["arm", value] + ([pair_by] if pair_by else []))
    present = list(dict.fromkeys(frame["arm"]))
    absent = [arm for arm in dict.fromkeys(sum(pairs, ())) if arm not in present]
    if absent or not pairs:
        raise InputError(f"no runs of {', '.join(absent) or 'any pair'}; the arms are {', '.join(present)}")
    rows = []
    for arm, reference in pairs:
        if pair_by is None:
            a, b = (frame.loc[frame["arm"] == name, value] for name in (arm, reference))
        else:
            both = frame[frame["arm"].isin([arm, reference])]
            if both.duplicated(["arm", pair_by]).any():
                raise InputError(f"an arm has two runs with the same {pair_by}; pairs need one run each")
            matched = both.pivot(index=pair_by, columns="arm", values=value).dropna()
            a, b = matched[arm], matched[reference]
        names, paired = (arm, reference), pair_by is not None
        samples = _two(a, b, paired)
        if _constant(*((samples[0] - samples[1],) if paired else samples)):
            rows.append(_undecided(*samples, paired, confidence, names))
        else:
            rows.append(compare(a, b, paired=paired, confidence=confidence, names=names))
    table = pd.DataFrame([asdict(row) for row in rows])
    # a pair that could not be tested was still asked about, so it counts in the correction
    table["p_holm"] = holm(table["p"].fillna(1.0)).where(table["p"].notna())
    return table


def compare_recorded(
    frame: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *,
    pair_by: str,
    value: str = "accuracy",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """As :func:`compare_pairs`, where some of the declared runs are not recorded yet.

    Parameters
    ----------
    frame, pairs, pair_by, value, confidence
        As in :func:`compare_pairs`.

    Returns
    -------
    pandas.DataFrame
        One row per pair. With a single value of `pair_by` in common the difference is that of two runs, and nothing
        is said about chance; with none, it is NaN too. p-values are corrected over all of `pairs`, tested or not.

    Raises
    ------
    InputError
        If an arm has two runs with the same `pair_by`.
    """
    _pick(frame, ["arm", value, pair_by])
    rows = []
    for arm, reference in pairs:
        both = frame[frame["arm"].isin([arm, reference])]
        if both.duplicated(["arm", pair_by]).any():
            raise InputError(f"an arm has two runs with the same {pair_by}; pairs need one run each")
        common = both.groupby(pair_by)["arm"].nunique() == 2
        if common.sum() >= 2:
            found = compare_pairs(both, [(arm, reference)], pair_by=pair_by, value=value, confidence=confidence)
            rows.append(found.iloc[0].drop("p_holm").to_dict())
            continue
        single = both[both[pair_by].isin(common.index[common])]
        n = len(single) // 2
        a, b = (
            single.loc[single["arm"] == name, value].to_numpy() if n else np.array([np.nan])
            for name in (arm, reference)
        )
        rows.append(asdict(_undecided(a, b, True, confidence, (arm, reference))) | {"n": n, "n_reference": n})
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].fillna(1.0)).where(table["p"].notna())
    return table


def in_points(compared: pd.DataFrame, *by: str):
    """Comparisons as a styled table for a notebook, differences and intervals in percentage points.

    Parameters
    ----------
    compared : pandas.DataFrame
        From :func:`compare_pairs` and the like; ``p_holm`` may be missing.
    by : str
        Its columns that stand before the arms.
    """
    columns = {"n": "n", "difference": "points", "low": "95 % from", "high": "to", "p": "p", "p_holm": "p (Holm)"}
    shown = compared.set_index([*by, "arm", "reference"]).filter(columns).rename(columns=columns)
    shown = shown.rename_axis(index={"reference": "less"})
    points = ["points", "95 % from", "to"]
    shown[points] *= 100
    return shown.style.format("{:.2g}", na_rep="–").format("{:+.2f}", subset=points, na_rep="–").format(subset="n")


def _undecided(a: np.ndarray, b: np.ndarray, paired: bool, confidence: float, names: tuple[str, str]) -> Comparison:
    unknown = dict.fromkeys(("low", "high", "statistic", "df", "p", "hedges_g", "g_low", "g_high"), np.nan)
    return Comparison(
        arm=names[0],
        reference=names[1],
        n=a.size,
        n_reference=b.size,
        mean=float(a.mean()),
        mean_reference=float(b.mean()),
        difference=float(a.mean() - b.mean()),
        confidence=confidence,
        test="paired" if paired else "Welch",
        **unknown,
    )


def holm(p_values: Mapping[str, float] | Iterable[float]) -> pd.Series:
    """What are the p-values worth, after asking several questions at once?

    Parameters
    ----------
    p_values : mapping or array_like
        The p-values of one declared family of tests; a mapping or Series keeps its labels.

    Returns
    -------
    pandas.Series
        Adjusted p-values: rejecting those below 0.05 keeps the chance of one or more false rejections in
        the family at 5 % at most, however the tests depend on each other.

    Notes
    -----
    Source: Holm, Scand. J. Stat. 6 (1979) 65; ``statsmodels.stats.multitest.multipletests``.
    """
    series = pd.Series(p_values, dtype=float)
    if series.empty or not series.between(0, 1).all():
        raise InputError("a family of p-values needs at least one, each between 0 and 1")
    if len(series) == 1:  # nothing to correct, and `multipletests` ends in a collection of all garbage
        return series.rename("p_holm")
    return pd.Series(multipletests(series.to_numpy(), method="holm")[1], index=series.index, name="p_holm")


def equivalence(
    a: Iterable[float], b: Iterable[float], margin: float, *, paired: bool, alpha: float = 0.05
) -> Equivalence:
    """Are two arms so close that the difference does not matter?

    "Not significant" does not show equality; this does.

    Parameters
    ----------
    a, b : (n,) and (m,) array_like
        One value per run, at least two each; in the same order of seeds if `paired`.
    margin : float
        The largest difference that would not matter, in the unit of the data; choose it beforehand.
    paired : bool
        Whether run i of both arms shares its seed.
    alpha : float
        Level; ``low`` and ``high`` bound the difference with confidence ``1 - 2 * alpha``.

    Notes
    -----
    Two one-sided t-tests (Welch's if not paired). Source: Schuirmann, J. Pharmacokinet. Biopharm. 15
    (1987) 657; ``statsmodels.stats.weightstats.ttost_ind`` and ``ttost_paired``.
    """
    a, b = _two(a, b, paired)
    if margin <= 0:
        raise InputError(f"margin is {margin}; give a positive difference that would not matter")
    if not 0 < alpha < 0.5:
        raise InputError(f"alpha is {alpha}; give a number between 0 and 0.5")
    interval = compare(a, b, paired=paired, confidence=1 - 2 * alpha)
    if paired:
        p = ttost_paired(a, b, -margin, margin)[0]
    else:
        p = ttost_ind(a, b, -margin, margin, usevar="unequal")[0]
    return Equivalence(interval.difference, interval.low, interval.high, margin, alpha, float(p), bool(p < alpha))


# -- planning --------------------------------------------------------------------------------------


def _power(effect: float, n: float, paired: bool, alpha: float) -> float:
    df, noncentrality = (n - 1, n * effect**2) if paired else (2 * n - 2, n * effect**2 / 2)
    # the square of t is F; statsmodels' TTestPower adds two tails of t, of which SciPy returns some as NaN
    return float(stats.ncf.sf(stats.f.isf(alpha, 1, df), 1, df, noncentrality))


def _plan(n: float = 2, sd: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> None:
    if n < 2 or sd <= 0:
        raise InputError(f"planning needs at least 2 runs per arm and sd > 0, not n = {n} and sd = {sd}")
    _fraction(alpha, "alpha")
    if not alpha < power < 1:
        raise InputError(f"power is {power}; give a number between alpha ({alpha}) and 1")


def power(difference: float, sd: float, n: int, *, paired: bool = False, alpha: float = 0.05) -> float:
    """How likely is a true difference of this size to be found with n runs per arm?

    Parameters
    ----------
    difference, sd : float
        True difference of means, and the run-to-run standard deviation of an arm (if `paired`: of the
        differences within pairs), in the same unit.
    n : int
        Runs per arm (pairs if `paired`).
    paired : bool
        Paired t-test instead of the two-sample one with equal variances.
    alpha : float
        Two-sided level.

    Notes
    -----
    Assumes normal runs. Computed as the power of the equivalent F-test; equals
    ``statsmodels.stats.power.TTestIndPower`` and ``TTestPower``.
    Source: Cohen, Statistical Power Analysis (1988), ch. 2; ``scipy.stats.ncf``.
    """
    _plan(n, sd, alpha)
    return _power(difference / sd, n, paired, alpha)


def minimal_detectable_difference(
    n: int, sd: float, *, power: float = 0.8, paired: bool = False, alpha: float = 0.05
) -> float:
    """Which true difference would n runs per arm find with the given power?

    Parameters and assumptions as in :func:`power`, which must exceed `alpha`; result in the unit of `sd`.
    """
    _plan(n, sd, alpha, power)
    most = 1.0
    while _power(most, n, paired, alpha) < power:
        most *= 2
    return sd * optimize.brentq(lambda effect: _power(effect, n, paired, alpha) - power, 0, most)


def runs_needed(difference: float, sd: float, *, power: float = 0.8, paired: bool = False, alpha: float = 0.05) -> int:
    """How many runs per arm (pairs if `paired`) find a true difference of this size with the given power?

    Parameters and assumptions as in :func:`power`.
    """
    _plan(sd=sd, alpha=alpha, power=power)
    if difference == 0:
        raise InputError("no number of runs finds a difference of 0; give the smallest one that matters")
    effect = difference / sd
    most = 2
    while _power(effect, most, paired, alpha) < power:
        most *= 2
    return bisect_left(range(most), power, lo=2, key=lambda n: _power(effect, n, paired, alpha))


# -- what luck does --------------------------------------------------------------------------------


def against_itself(values: Iterable[float], rng: np.random.Generator, most: int = 2000) -> np.ndarray:
    """Which p-values come out when an arm is compared with itself?

    Its runs are divided into two halves, in every way or, if there are more than `most`, in `most` different ones drawn
    at random; Welch's test compares the halves.

    Parameters
    ----------
    values : (n,) array_like
        One value per run, at least four.
    rng : numpy.random.Generator
        Source of the divisions.
    most : int
        Largest number of divisions.

    Returns
    -------
    ndarray (m,)
        Each division once. Divisions with halves that do not vary are left out.

    Notes
    -----
    For runs whose order means nothing, the expected share of p < 0.05 is the false-positive rate for half as many
    runs. All divisions reuse the same runs, so the share scatters more than that of m fresh experiments would.
    """
    array = _runs(values, least=4)
    half = array.size // 2
    twice = array.size == 2 * half  # each division comes twice, the second time with the halves swapped
    if comb(array.size, half) // (1 + twice) <= most:
        first = np.array(list(combinations(range(array.size), half)))
        if twice:
            first = first[first[:, 0] == 0]
    else:
        drawn: dict[frozenset, np.ndarray] = {}
        while len(drawn) < most:
            one, other = np.split(rng.permutation(array.size), [half])
            drawn.setdefault(frozenset(other if twice and 0 in other else one), one)
        first = np.array(list(drawn.values()))
    chosen = np.zeros((len(first), array.size), bool)
    np.put_along_axis(chosen, first, True, axis=1)
    a, b = (np.broadcast_to(array, m.shape)[m].reshape(len(m), -1) for m in (chosen, ~chosen))
    varies = (np.ptp(a, axis=1) > 0) | (np.ptp(b, axis=1) > 0)
    return stats.ttest_ind(a[varies], b[varies], axis=1, equal_var=False).pvalue


def luck(
    n: int,
    rng: np.random.Generator,
    *,
    num_arms: int = 4,
    sd: float = 1.0,
    correlation: float = 0.0,
    n_studies: int = 4000,
) -> pd.DataFrame:
    """What do studies find in which all arms are the same?

    Parameters
    ----------
    n : int
        Runs per arm, at least two.
    rng : numpy.random.Generator
        Source of the simulated runs.
    num_arms : int
        Arms, the first of which is the reference; at least two.
    sd : float
        Run-to-run standard deviation.
    correlation : float
        Of the runs of a pair, 0 to 1: how much of their variance arms with one seed have in common.
    n_studies : int
        Number of simulated studies.

    Returns
    -------
    DataFrame
        One row a study. p-values: ``paired`` and ``welch`` (one arm against the reference), ``any_arm`` (the smallest
        of all paired ones), ``any_arm_holm`` (the same, Holm-corrected), ``any_look`` (one arm, the smallest of the
        paired tests after two, three, ... n pairs). Differences in the unit of `sd`: ``mean_gain`` (means of an arm
        and the reference), ``best_gain`` (best run against best run).

    Notes
    -----
    Normal runs, pairs independent of each other; the tests are SciPy's.
    """
    _plan(n, sd)
    if not 0 <= correlation < 1:
        raise InputError(f"correlation is {correlation}; give a number from 0 to less than 1")
    if num_arms < 2:
        raise InputError(f"num_arms is {num_arms}; a comparison needs at least 2")
    common, own = rng.normal(0, sd, (n_studies, 1, n)), rng.normal(0, sd, (n_studies, num_arms, n))
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
            "any_look": np.min(looks, axis=0),
            "mean_gain": others[:, 0].mean(axis=1) - reference[:, 0].mean(axis=1),
            "best_gain": others[:, 0].max(axis=1) - reference[:, 0].max(axis=1),
        }
    )


# -- the design as a whole -------------------------------------------------------------------------


def factor_levels(arm: str, factors: Sequence[str] = FACTORS) -> dict[str, bool]:
    """Which factors an arm switches on: ``"KD+IG"`` -> KD and IG, ``"Student"`` -> none.

    Raises
    ------
    InputError
        If the name has a part that is not among `factors`.
    """
    parts = set() if arm == "Student" else set(arm.split("+"))
    if not parts <= set(factors):
        raise InputError(f"arm {arm!r} is not Student or a combination of {', '.join(factors)} joined by '+'")
    return {factor: factor in parts for factor in factors}


def factorial(
    frame: pd.DataFrame,
    *,
    block: str | None = None,
    factors: Sequence[str] = FACTORS,
    value: str = "accuracy",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """What does each of KD, IG and AT add on average, and do they help or hinder each other?

    The analysis of variance of the 2 x 2 x 2 design. It uses every run for every effect, so it decides more
    sharply than comparisons of single arms.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per run with columns ``arm`` and `value` (and `block`); every combination of `factors`.
    block : str, optional
        Column (for example ``"seed"``) whose levels shift all arms alike; its effect is removed. Use it only
        if runs with the same level share their seed.
    factors : sequence of str
        The factors that the names of the arms are made of.
    value : str
        Column that is explained.
    confidence : float
        Coverage of the intervals.

    Returns
    -------
    pandas.DataFrame
        One row per effect: ``term``; ``estimate`` with ``low`` and ``high`` in the unit of `value`; ``se``,
        ``t``, ``df``, ``p``; ``p_holm`` over all rows; ``partial_eta_squared`` (share of the variance, beside
        that of the other effects, that this effect explains); ``n``.

    Raises
    ------
    InputError
        If a combination is missing or no run is left to estimate the error.

    Notes
    -----
    Factors are coded -1/2 and +1/2, so the estimate of ``KD`` is a main effect: the mean change when KD is
    switched on, averaged over the other factors. ``KD:IG`` is the change of the effect of KD when IG is
    switched on (and the other way round); ``KD:IG:AT`` is the change of ``KD:IG`` when AT is switched on.
    Each row has one degree of freedom, so its t-test is the F-test of the analysis of variance (type III),
    and partial eta squared is t^2 / (t^2 + df). Assumes independent, normal errors of equal variance.
    Source: Montgomery, Design and Analysis of Experiments, ch. 6; ``statsmodels.regression.linear_model.OLS``.
    """
    _pick(frame, ["arm", value] + ([block] if block else []))
    _fraction(confidence, "confidence")
    levels = pd.DataFrame([factor_levels(arm, factors) for arm in frame["arm"]])
    if len(levels.drop_duplicates()) < 2 ** len(factors):
        raise InputError(f"all {2 ** len(factors)} combinations of {', '.join(factors)} need runs")
    coded = levels.to_numpy(dtype=float) - 0.5
    terms = [c for size in range(1, len(factors) + 1) for c in combinations(range(len(factors)), size)]
    design = {":".join(factors[i] for i in term): prod(coded[:, i] for i in term) for term in terms}
    names = list(design)
    columns = pd.DataFrame(design).assign(mean=1.0)
    if block:
        shifts = pd.get_dummies(frame[block].to_numpy(), prefix="block", drop_first=True, dtype=float)
        columns = pd.concat([columns, shifts], axis=1)
    y = _runs(frame[value])
    if y.size <= np.linalg.matrix_rank(columns.to_numpy()):
        raise InputError("every run is used up by the effects; at least two runs per arm are needed")
    _varies(y)
    fit = OLS(y, columns).fit()
    interval = fit.conf_int(alpha=1 - confidence).loc[names]
    t = fit.tvalues[names].to_numpy()
    table = pd.DataFrame(
        {
            "term": names,
            "estimate": fit.params[names].to_numpy(),
            "low": interval[0].to_numpy(),
            "high": interval[1].to_numpy(),
            "se": fit.bse[names].to_numpy(),
            "t": t,
            "df": fit.df_resid,
            "p": fit.pvalues[names].to_numpy(),
            "partial_eta_squared": t**2 / (t**2 + fit.df_resid),
            "n": y.size,
        }
    )
    table.insert(8, "p_holm", holm(table["p"]).to_numpy())
    return table


def best_of_n(n: int, mean: float = 0.0, sd: float = 1.0) -> float:
    """What does the best of n runs show on average, when each is normal with this mean and sd?

    The inflation by reporting the best run is ``best_of_n(n, sd=sd)``: 0.56 sd for two runs, 1.54 for ten.

    Parameters
    ----------
    n : int
        Number of runs that the best is taken of, at least 1.
    mean, sd : float
        Of a single run, in any unit; the result has the same unit.

    Notes
    -----
    The mean of the largest order statistic, integrated numerically. Source: David and Nagaraja, Order
    Statistics (2003), ch. 3; ``scipy.integrate.quad``.
    """
    if n < 1 or sd < 0:
        raise InputError(f"the best of n needs n >= 1 and sd >= 0, not n = {n} and sd = {sd}")

    def weighted(z: float) -> float:
        return z * n * stats.norm.pdf(z) * stats.norm.cdf(z) ** (n - 1)

    # beyond 12 standard deviations the density is below 1e-31, whatever n is used in practice
    return mean + sd * integrate.quad(weighted, -12, 12, points=(0, 3), limit=200)[0]


# -- accuracy against cost -------------------------------------------------------------------------


def at_equal_cost(narrowed: pd.DataFrame, cut: pd.DataFrame, cost: str, beyond: float = 0.05) -> pd.Series:
    """How much better is a narrowed network than a cut one would be at the same cost?

    Parameters
    ----------
    narrowed, cut : DataFrame
        Columns ``arm``, ``seed``, ``accuracy`` (fraction) and `cost` (positive), one row a run.
    cost : str
        Column of the cost.
    beyond : float
        Relative distance outside the costs of the cut networks up to which the nearest of them stands in.

    Returns
    -------
    Series
        For each row of `narrowed` its accuracy minus that of the cut networks with the same arm and seed, interpolated
        linearly in the logarithm of the cost; NaN where its cost is further out.
    """
    columns = ["arm", "seed", "accuracy", cost]
    _pick(narrowed, columns)
    _pick(cut, columns)
    if (pd.concat([narrowed[cost], cut[cost]]) <= 0).any():
        raise InputError(f"{cost} has values of 0 or less; costs are positive")
    curves = {name: group.sort_values(cost) for name, group in cut.groupby(["arm", "seed"])}
    found = {}
    for row, run in narrowed.iterrows():
        curve = curves.get((run["arm"], run["seed"]))
        found[row] = np.nan
        if curve is None:
            continue
        lowest, highest = curve[cost].iloc[0], curve[cost].iloc[-1]
        if lowest / (1 + beyond) <= run[cost] <= highest * (1 + beyond):
            expected = np.interp(np.log(run[cost]), np.log(curve[cost]), curve["accuracy"])
            found[row] = run["accuracy"] - expected
    return pd.Series(found, index=narrowed.index, dtype=float)


def pareto_front(cost: Iterable[float], accuracy: Iterable[float]) -> np.ndarray:
    """Which networks does no other beat, being at most as costly, at least as accurate, and better in one of both?

    Parameters
    ----------
    cost, accuracy : (n,) array_like

    Returns
    -------
    ndarray (n,) of bool
    """
    cost, accuracy = (np.asarray(values, float) for values in (cost, accuracy))
    no_worse = (cost[:, None] <= cost) & (accuracy[:, None] >= accuracy)
    better = (cost[:, None] < cost) | (accuracy[:, None] > accuracy)
    return ~(no_worse & better).any(axis=0)
