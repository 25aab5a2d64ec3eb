"""The published numbers as tables, and what follows from them alone.

The files ``igkd/published/*.csv`` hold the numbers as their authors state them. Every row names its source: a file of
the authors' public repository (nordlinglab/ModelCompression-IntegratedGradients) at a commit, or an arXiv version.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import optimize, stats


def table(name: str) -> pd.DataFrame:
    """One of the files, with accuracy as a fraction.

    Parameters
    ----------
    name : str
        Name of a file without ``.csv``. A column ``x_percent`` becomes the fraction ``x``.
    """
    found = pd.read_csv(Path(__file__).with_name("published") / f"{name}.csv", dtype={"version": str, "notebook": str})
    percent = found.columns[found.columns.str.endswith("_percent")]
    found[percent] /= 100
    if "metric" in found:  # the ImageNet subset: all in percent but Cohen's kappa
        found.loc[found.metric != "kappa", ["computed", "plotted"]] /= 100
    return found.rename(columns=lambda column: column.removesuffix("_percent"))


def stated(quantity: str) -> float:
    """A number of the abstract, as printed; ``table("headline")`` lists them."""
    return float(table("headline").query("version == '2506.14440'").set_index("quantity").value[quantity])


def ablation_runs(earlier: bool = False) -> pd.DataFrame:
    """The eight arms at 4.12x, ten runs each: ``arm``, ``run``, ``accuracy``, ``source``.

    `earlier` gives those of arXiv 2503.13008, where all KD+IG runs and one Student run are others.

    Examples
    --------
    >>> means = 100 * ablation_runs().groupby("arm").accuracy.mean()
    >>> round(float(means["KD+IG"] - means["Student"]), 2)  # points
    0.83
    """
    runs = table("ablation_runs").set_index(["arm", "run"])
    if earlier:
        runs.update(table("ablation_runs_v1").set_index(["arm", "run"]))
    return runs.reset_index()


def monte_carlo_values() -> pd.DataFrame:
    """One value a run (``arm``, ``accuracy``) for Student and KD+IG, spread evenly over the digitised bars.

    Runs above the figure lie up to where the sample has the published variance.
    """
    variance, samples = table("monte_carlo_summary").set_index("arm").variance_ddof1 / 1e4, []
    for arm, bars in table("monte_carlo_histogram").groupby("arm", sort=False):

        def sample(top: float) -> np.ndarray:
            edges = zip(bars.low, bars.high.fillna(top), bars.runs, strict=True)
            return np.concatenate([low + (high - low) * (np.arange(n) + 0.5) / max(n, 1) for low, high, n in edges])

        edge, beyond = bars.low.iloc[-1], bars.runs.iloc[-1]
        top = optimize.brentq(lambda top: sample(top).var(ddof=1) - variance[arm], edge, 1) if beyond else edge
        samples.append(pd.DataFrame({"arm": arm, "accuracy": sample(top)}))
    return pd.concat(samples, ignore_index=True)


def recomputed() -> pd.DataFrame:
    """Published statistics beside what the published data give.

    Where the two differ is a finding about how two numbers relate, not about which of them is right.

    Returns
    -------
    DataFrame
        24 rows: ``statistic``, ``published`` (NaN where nothing is stated), ``recomputed``, ``note``.
    """
    runs = ablation_runs().pivot(index="run", columns="arm", values="accuracy") * 100
    student, both = runs["Student"], runs["KD+IG"]
    monte_carlo = table("monte_carlo_summary").set_index("arm")
    times = table("inference_time").set_index("blocks_removed")
    table13 = table("compression_sweep").query("series == 'table13'")
    sweep = 100 * table13.pivot(index="blocks_removed", columns="arm", values="accuracy")
    imagenet = 100 * table("imagenet_subset").query("metric == 'accuracy'").set_index("arm")[["plotted", "computed"]]
    winners, ahead = sweep.idxmax(axis=1), sweep["KD+IG"] > sweep["Student"]
    rows = [
        ("gain, best KD+IG run minus best Student run (points)", stated("gain"), both.max() - student.max(), ""),
        ("gain, mean minus mean (points)", np.nan, both.mean() - student.mean(), "smaller than that of the best runs"),
        ("p of the gain, paired t as released", 0.001, stats.ttest_rel(both, student).pvalue, "published as p < 0.001"),
        ("p of the gain, Welch's t", np.nan, stats.ttest_ind(both, student, equal_var=False).pvalue, "unpaired runs"),
        ("compression factor", stated("compression_factor"), times.parameters[0] / times.parameters[5], ""),
        ("speed-up at 4.1x", times.speedup[5], times.seconds[0] / times.seconds[5], "abstract: 140 ms to 13 ms, 10.8"),
        ("factors (of 8) with KD+IG above Student, Table 13", np.nan, ahead.sum(), "abstract: ahead across factors"),
        ("factors with KD+IG best of four arms", np.nan, (winners == "KD+IG").sum(), "the same table"),
        ("factors with an arm with IG best", np.nan, winners.isin(["IG", "KD+IG"]).sum(), "the same table"),
    ]
    samples = pd.concat([100 * monte_carlo["mean"], monte_carlo.variance_ddof1**0.5, monte_carlo.n], axis=1)
    for arm in ("KD", "KD+IG", "KD+IG+AT"):
        both_samples = *samples.loc[arm], *samples.loc["Student"]
        p, of_welch = (stats.ttest_ind_from_stats(*both_samples, equal_var=each).pvalue for each in (True, False))
        rows.append((f"Monte Carlo, {arm} against Student, p", monte_carlo.p_vs_student[arm], p, "equal variances"))
        ratio = monte_carlo.variance_ddof1[arm] / monte_carlo.variance_ddof1["Student"]
        note = f"with unequal variances p is {of_welch:.2g}"
        rows.append((f"Monte Carlo, variance of {arm} relative to Student", np.nan, ratio, note))
    for arm in ("Student", "KD", "IG", "KD+IG"):
        note = "two published tables, the same network and constants"
        rows.append((f"{arm} at 4.12x: Table 13, mean of the ablation (%)", sweep.loc[5, arm], runs[arm].mean(), note))
    for arm in ("Student", "KD", "IG", "KD+IG", "KD+IG+AT"):
        swapped = "IG and KD+IG+AT stand in each other's place" if arm in ("IG", "KD+IG+AT") else "bar chart, data"
        rows.append((f"ImageNet subset, accuracy of {arm} (%)", *imagenet.loc[arm], swapped))
    return pd.DataFrame(rows, columns=["statistic", "published", "recomputed", "note"])
