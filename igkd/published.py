"""The published numbers as tables, and what follows from them alone.

The files ``igkd/published/*.csv`` hold the numbers as their authors state them (accuracy in percent); every
row names its source: a file of the authors' public repository
(nordlinglab/ModelCompression-IntegratedGradients) at a commit, or an arXiv version. The functions here return
them as tables with accuracy as a fraction. :func:`recomputed` derives from the tables whatever the paper
derives from them and puts both values side by side; it needs no training and no network.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from importlib.resources import files
from itertools import product
from math import sqrt

import numpy as np
import pandas as pd
from scipy import optimize, stats

# statsmodels offers the table of critical values only here; its public function wants the sample itself
from statsmodels.stats._lilliefors import get_lilliefors_table

from igkd import statistics
from igkd.errors import InputError

VERSIONS = ("2506.14440", "2503.13008")


def _text(name: str) -> pd.DataFrame:
    """The table as published: every cell a string, so that the number of stated digits is kept."""
    with files("igkd").joinpath("published", f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def _table(name: str) -> pd.DataFrame:
    """The table with numbers; each column ``x_percent`` becomes the fraction ``x``."""
    with files("igkd").joinpath("published", f"{name}.csv").open(encoding="utf-8") as file:
        table = pd.read_csv(file)
    percent = [c for c in table.columns if c.endswith("_percent")]
    table[percent] /= 100
    return table.rename(columns={c: c.removesuffix("_percent") for c in percent})


def ablation_runs(version: str = "2506.14440") -> pd.DataFrame:
    """The eight arms of the ablation at 4.12x, ten runs each.

    Parameters
    ----------
    version : {"2506.14440", "2503.13008"}
        The paper, or its earlier version, of which all KD+IG runs and one Student run are others.

    Returns
    -------
    pandas.DataFrame
        80 rows: ``arm``, ``run`` (1 to 10), ``accuracy`` (fraction, last epoch), ``source``.
    """
    if version not in VERSIONS:
        raise InputError(f"no version {version!r} of the paper; choose {' or '.join(VERSIONS)}")
    runs = _table("ablation_runs").set_index(["arm", "run"])
    if version == "2503.13008":
        earlier = _table("ablation_runs_v1").set_index(["arm", "run"])
        runs.loc[earlier.index] = earlier
    return runs.reset_index()


def stated(quantity: str) -> float:
    """A row of `headline`, from the paper's version of 2025."""
    rows = headline().query("version == '2506.14440'").set_index("quantity")
    return float(rows.value[quantity])


def monte_carlo_summary() -> pd.DataFrame:
    """Four arms, 60 runs each on random 80 % subsets: summary statistics and tests as published.

    Returns
    -------
    pandas.DataFrame
        ``mean`` and ``median`` are fractions; ``variance_ddof1`` is in squared percentage points.
    """
    return _table("monte_carlo_summary")


def monte_carlo_histogram() -> pd.DataFrame:
    """The bars of the Monte Carlo figure for Student and KD+IG, digitised (read off the image).

    Returns
    -------
    pandas.DataFrame
        ``low`` and ``high`` are the edges of a bar (fractions), ``runs`` its height. Bar 30 holds what the
        figure does not show: the runs above 92 %.
    """
    return _table("monte_carlo_histogram")


def monte_carlo_values() -> pd.DataFrame:
    """One value a run for Student and KD+IG, as far as the digitised figure and the summary determine them.

    The runs of a bar are spread evenly over it. Those above the figure are spread evenly from its edge up to where
    the sample has the published variance.

    Returns
    -------
    pandas.DataFrame
        120 rows: ``arm``, ``accuracy`` (fraction; within a bar, 0.12 points wide, arbitrary).
    """
    bars = monte_carlo_histogram()
    published_variance = monte_carlo_summary().set_index("arm")["variance_ddof1"] / 1e4
    tables = []
    for arm, group in bars.groupby("arm", sort=False):
        drawn, beyond = group.dropna(subset="high"), group[group["high"].isna()].iloc[0]
        inside = [_evenly(bar.low, bar.high, bar.runs) for bar in drawn.itertuples()]

        def sample(top: float, inside=inside, beyond=beyond) -> np.ndarray:
            return np.concatenate([*inside, _evenly(beyond["low"], top, beyond["runs"])])

        top = beyond["low"]
        if beyond["runs"]:
            gap = published_variance[arm]
            top = optimize.brentq(lambda edge: sample(edge).var(ddof=1) - gap, top, 1)  # noqa: B023 - used at once
        tables.append(pd.DataFrame({"arm": arm, "accuracy": sample(top)}))
    return pd.concat(tables, ignore_index=True)


def _evenly(low: float, high: float, count: int) -> np.ndarray:
    return low + (high - low) * (np.arange(count) + 0.5) / max(count, 1)


def compression_sweep(series: str = "table13") -> pd.DataFrame:
    """Accuracy against compression factor, one value per arm and factor.

    Parameters
    ----------
    series : {"table13", "single_runs_2024"}
        The paper's table, or the single runs with other constants of September 2024.
    """
    table = _table("compression_sweep")
    if series not in set(table["series"]):
        raise InputError(f"no series {series!r}; choose {' or '.join(table['series'].unique())}")
    return table[table["series"] == series].reset_index(drop=True)


def inference_time() -> pd.DataFrame:
    """Parameters, seconds for one call, and the plotted speed-up of the teacher and the eight students."""
    return _table("inference_time")


def imagenet_subset() -> pd.DataFrame:
    """The ImageNet subset: each metric as the notebook computed it and as its bar chart shows it.

    Returns
    -------
    pandas.DataFrame
        ``computed`` and ``plotted`` (empty where not plotted) are fractions, kappa included. ``images`` is
        the number of images behind the value.
    """
    table = _table("imagenet_subset")
    percent = table["metric"] != "kappa"
    table.loc[percent, ["computed", "plotted"]] /= 100
    return table


def kd_grid() -> pd.DataFrame:
    """What is known of the three searches over alpha and temperature: single points and summaries."""
    return _table("kd_grid")


def overlay_search() -> pd.DataFrame:
    """What is known of the search over the overlay probability; ``statistic`` says of how many runs."""
    return _table("overlay_search")


def checkpoints() -> pd.DataFrame:
    """The stored accuracy of each published checkpoint."""
    return _table("checkpoints")


def training_logs() -> pd.DataFrame:
    """The last epoch of training logs that are kept in released notebooks, at 4.12x, one run each.

    Returns
    -------
    pandas.DataFrame
        ``arm``, ``alpha``, ``temperature``, ``gamma``, ``train_loss`` (nats, all terms weighted) and ``train_accuracy``
        (fraction), both means over the last of 100 epochs, ``source``.
    """
    return _table("training_logs")


def confidence() -> pd.DataFrame:
    """How sure two networks are of the label of some test images.

    Returns
    -------
    pandas.DataFrame
        ``network``, ``class``, ``images`` (how many), ``temperature``, ``label_probability_sum`` as stated,
        ``label_probability`` (its mean over the images), ``source``.
    """
    table = _table("confidence")
    return table.assign(label_probability=table.label_probability_sum / table.images)


def headline() -> pd.DataFrame:
    """The numbers of the abstracts, with ``unit`` as printed and ``relation`` (``=`` or ``<``)."""
    return _table("headline").assign(version=_text("headline")["version"])


# -- recomputation ---------------------------------------------------------------------------------


def _half_unit(text: str) -> float:
    """Half a unit of the last stated digit: 91.5 stands for 91.45 to 91.55."""
    return float(Decimal(1).scaleb(Decimal(text).as_tuple().exponent) / 2)


def _spread(function: Callable[..., float], *texts: str) -> tuple[float, float, float]:
    """Value of a function of rounded inputs, with the lowest and highest that their rounding allows.

    The corners of the box of inputs suffice for functions that are monotone in each input.
    """
    corners = [[float(t) - _half_unit(t), float(t) + _half_unit(t)] for t in texts]
    values = [function(*corner) for corner in product(*corners)]
    return function(*map(float, texts)), min(values), max(values)


def _row(
    statistic: str,
    value: float | tuple[float, float, float],
    published: str | None = None,
    unit: str = "",
    note: str = "",
) -> dict:
    recomputed, low, high = value if isinstance(value, tuple) else (value, value, value)
    stated, agrees, relation = np.nan, pd.NA, ""
    if published is not None and published.startswith("<"):
        stated, relation = float(published[1:]), "<"
        agrees = bool(low < stated)
    elif published is not None:
        stated, tolerance = float(published), _half_unit(published) * (1 + 1e-6)
        agrees = bool(low - tolerance <= stated <= high + tolerance)
    return {
        "statistic": statistic,
        "unit": unit,
        "relation": relation,
        "published": stated,
        "recomputed": recomputed,
        "low": low,
        "high": high,
        "agrees": agrees,
        "note": note,
    }


def _stated(version: str) -> dict[str, str]:
    table = _text("headline").query("version == @version")
    return dict(zip(table["quantity"], table["value"], strict=True))


def _percent_runs(version: str) -> dict[str, np.ndarray]:
    # two decimals are exact in print; dividing by 100 and back would leave digits that nobody published
    return {
        arm: (100 * group["accuracy"]).round(2).to_numpy()
        for arm, group in ablation_runs(version).groupby("arm", sort=False)
    }


def _headline_rows() -> list[dict]:
    stated, runs = _stated("2506.14440"), _percent_runs("2506.14440")
    student, kd_ig = runs["Student"], runs["KD+IG"]
    rows = [
        _row("best Student run", student.max(), stated["student_best_accuracy"], "percent"),
        _row("best KD+IG run", kd_ig.max(), stated["kd_ig_best_accuracy"], "percent"),
        _row(
            "gain: best KD+IG run minus best Student run",
            kd_ig.max() - student.max(),
            stated["gain"],
            "points",
            "the published gain is a difference of two maxima of ten",
        ),
        _row(
            "gain: mean KD+IG minus mean Student",
            kd_ig.mean() - student.mean(),
            unit="points",
            note="the difference of the means is smaller than that of the maxima",
        ),
        _row(
            "KD+IG against Student, p (paired t)",
            statistics.paired(kd_ig, student).p,
            "<" + stated["p"],
            note="the released test; no seed that the two lists share is known",
        ),
        _row(
            "KD+IG against Student, p (Welch t)",
            statistics.welch(kd_ig, student).p,
            note="the test for runs that share nothing",
        ),
    ]
    earlier, old = _stated("2503.13008"), _percent_runs("2503.13008")
    teacher = stated["teacher_accuracy"]
    rows += [
        _row("2503.13008: best Student run", old["Student"].max(), earlier["student_best_accuracy"], "percent"),
        _row("2503.13008: best KD+IG run", old["KD+IG"].max(), earlier["kd_ig_best_accuracy"], "percent"),
        _row("2503.13008: best KD run", old["KD"].max(), earlier["kd_best_accuracy"], "percent"),
        _row(
            "2503.13008: best KD+IG run as a share of the teacher's accuracy",
            _spread(lambda t: 100 * old["KD+IG"].max() / t, teacher),
            earlier["share_of_teacher_accuracy"],
            "percent",
        ),
        _row(
            "2503.13008: speed-up",
            _spread(lambda t, s: t / s, stated["inference_teacher"], stated["inference_student"]),
            earlier["speedup"],
            "times",
            "ratio of 140 ms and 13 ms",
        ),
    ]
    for arm in ("Student", "KD+IG"):
        rows.append(
            _row(
                f"runs of {arm} that differ between the versions",
                float((runs[arm] != old[arm]).sum()),
                unit="of 10",
                note=f"mean {old[arm].mean():.3f} before, {runs[arm].mean():.3f} after",
            )
        )
    return rows


def _ablation_rows() -> list[dict]:
    runs = _percent_runs("2506.14440")
    stored = _text("checkpoints").query("experiment == 'ablation'").set_index("arm")["accuracy_percent"]
    rows = []
    for arm, values in runs.items():
        rows.append(_row(f"mean of {arm}", values.mean(), unit="percent"))
        rows.append(_row(f"standard deviation of {arm}", values.std(ddof=1), unit="points"))
        if arm in stored:
            # said in Check_model_weights.ipynb @ c534787
            note = "the authors say that the weights of the best run were not kept" if arm == "KD+IG" else ""
            rows.append(_row(f"best {arm} run against its checkpoint", values.max(), stored[arm], "percent", note))
        if arm != "Student":
            test = statistics.paired(values, runs["Student"])
            rows.append(_row(f"{arm} against Student, t (paired)", test.statistic, note="released test"))
            rows.append(_row(f"{arm} against Student, p (paired)", test.p, note="released test"))
    grid = _text("kd_grid").query("grid == 'final' and statistic == 'max'")["accuracy_percent"].item()
    rows.append(_row("best KD run against the best point of the KD grid", runs["KD"].max(), grid, "percent"))
    return rows


def _monte_carlo_rows() -> list[dict]:
    summary = _text("monte_carlo_summary").set_index("arm")
    counts = summary["n"].astype(int)

    def t_test(field: str, n: int, n_reference: int) -> Callable[..., float]:
        def value(mean: float, variance: float, reference: float, reference_variance: float) -> float:
            result = stats.ttest_ind_from_stats(
                mean, sqrt(variance), n, reference, sqrt(reference_variance), n_reference
            )
            return float(getattr(result, field))

        return value

    critical = get_lilliefors_table("norm")
    reference = summary.loc["Student"]
    rows = []
    for arm, row in summary.iterrows():
        if arm != "Student":
            n = counts[arm], counts["Student"]
            inputs = [table[c] for table in (row, reference) for c in ("mean_percent", "variance_ddof1")]
            for field, name in (("statistic", "t"), ("pvalue", "p")):
                value = _spread(t_test(field, *n), *inputs)
                text = f"Monte Carlo, {arm} against Student, {name} (equal variances)"
                rows.append(_row(text, value, row[f"{name}_vs_student"]))
            ratio = _spread(lambda a, b: a / b, inputs[1], inputs[3])
            f_test = stats.f(n[0] - 1, n[1] - 1)
            p = 2 * min(f_test.sf(ratio[0]), f_test.cdf(ratio[0]))
            note = f"F-test p = {p:.2g}, which assumes normal runs"
            rows.append(_row(f"Monte Carlo, variance of {arm} relative to Student", ratio, unit="times", note=note))
        p = _spread(lambda d, n=counts[arm]: float(critical.prob(d, n)), row["lilliefors_d"])
        rows.append(_row(f"Monte Carlo, Lilliefors p of {arm}", p, row["lilliefors_p"], note="from D and n"))
    return rows + _histogram_rows(summary)


def _histogram_rows(summary: pd.DataFrame) -> list[dict]:
    bars = _table("monte_carlo_histogram")
    bars[["low", "high"]] *= 100
    rows = []
    for arm, group in bars.groupby("arm", sort=False):
        n = int(group["runs"].sum())
        drawn = group.dropna(subset="high")
        low, high = ((drawn[c] * drawn["runs"]).sum() for c in ("low", "high"))
        beyond = n - int(drawn["runs"].sum())
        if not beyond:
            # elsewhere the runs beyond the figure are n minus the bars, so their sum would prove nothing
            rows.append(_row(f"Monte Carlo, runs of {arm} in the figure", n, summary.loc[arm, "n"], "runs"))
            mean = ((low + high) / 2 / n, low / n, high / n)
            rows.append(
                _row(
                    f"Monte Carlo, mean of {arm} from the figure",
                    mean,
                    summary.loc[arm, "mean_percent"],
                    "percent",
                    "digitised; range: bar width",
                )
            )
            continue
        total = n * float(summary.loc[arm, "mean_percent"])
        rounding = n * _half_unit(summary.loc[arm, "mean_percent"])
        edge = group.loc[group["high"].isna(), "low"].item()  # all of them lie above it, and so does their mean
        rest = (
            (total - (low + high) / 2) / beyond,
            max(edge, (total - rounding - high) / beyond),
            (total + rounding - low) / beyond,
        )
        rows.append(
            _row(
                f"Monte Carlo, mean of the {beyond} runs of {arm} above 92 %",
                rest,
                unit="percent",
                note="what the published mean leaves for the runs outside the figure",
            )
        )
    return rows


def _size_and_time_rows() -> list[dict]:
    table = _text("inference_time")
    teacher, students = table.iloc[0], table.iloc[1:]
    stated = _stated("2506.14440")
    rows = []
    for _, row in students.iterrows():
        factor = int(teacher["parameters"]) / int(row["parameters"])
        name = f"{row['blocks_removed']} blocks removed"
        rows.append(
            _row(
                f"compression factor, {name}",
                factor,
                row["compression_factor"],
                "times",
                "ratio of parameter counts",
            )
        )
        ratio = _spread(lambda t, s: t / s, teacher["seconds"], row["seconds"])
        rows.append(_row(f"speed-up, {name}", ratio, row["speedup"], "times", "ratio of the times in Table 8"))
    factors = int(teacher["parameters"]) / students["parameters"].astype(int)
    main = students.set_index("blocks_removed").loc["5"]
    rows += [
        _row(
            "compression factor of the headline",
            float(factors.loc[students["blocks_removed"] == "5"].item()),
            stated["compression_factor"],
            "times",
        ),
        _row("smallest compression factor", factors.min(), stated["compression_factor_smallest"], "times"),
        _row("largest compression factor", factors.max(), stated["compression_factor_largest"], "times"),
        _row(
            "inference time of the teacher",
            _spread(lambda s: 1000 * s, teacher["seconds"]),
            stated["inference_teacher"],
            "ms",
            "Table 8 names it the time for a batch of 64",
        ),
        _row(
            "inference time of the student at 4.1x",
            _spread(lambda s: 1000 * s, main["seconds"]),
            stated["inference_student"],
            "ms",
            "Table 8 names it the time for a batch of 64",
        ),
    ]
    return rows


def _sweep_rows() -> list[dict]:
    text = _text("compression_sweep").query("series == 'table13'")
    runs = _percent_runs("2506.14440")
    rows = []
    for _, row in text.query("blocks_removed == '5'").iterrows():
        arm = row["arm"]
        rows.append(
            _row(
                f"mean of {arm} in the ablation against the sweep at 4.12x",
                runs[arm].mean(),
                row["accuracy_percent"],
                "percent",
                "same network, method and constants; the sweep's number of runs is not stated",
            )
        )
    wide = text.assign(value=text["accuracy_percent"].astype(float)).pivot(
        index="blocks_removed", columns="arm", values="value"
    )
    best = wide.idxmax(axis=1)
    claim = "Table 13; abstract: ahead across compression ratios (2.2x to 1122x)"
    rows += [
        _row(
            "factors at which KD+IG is the best of four arms",
            float((best == "KD+IG").sum()),
            unit="of 8",
            note=claim,
        ),
        _row(
            "factors at which KD+IG or IG is the best of four arms",
            float(best.isin(["KD+IG", "IG"]).sum()),
            unit="of 8",
            note=claim,
        ),
        _row(
            "factors at which KD+IG exceeds Student",
            float((wide["KD+IG"] > wide["Student"]).sum()),
            unit="of 8",
            note=claim,
        ),
        _row(
            "factors at which KD+IG exceeds KD",
            float((wide["KD+IG"] > wide["KD"]).sum()),
            unit="of 8",
            note=claim,
        ),
        _row(
            "mean of KD+IG minus Student over the factors",
            (wide["KD+IG"] - wide["Student"]).mean(),
            unit="points",
        ),
        _row("mean of KD+IG minus KD over the factors", (wide["KD+IG"] - wide["KD"]).mean(), unit="points"),
    ]
    return rows


def _imagenet_rows() -> list[dict]:
    table = _text("imagenet_subset")
    rows = []
    computed = {}
    for arm, group in table.groupby("arm", sort=False):
        classes = group[group["metric"] == "class_accuracy"]
        per_class = list(classes["computed"])
        images = classes["images"].astype(int).to_numpy()
        overall = group.set_index("metric").drop(index="class_accuracy")
        computed[arm] = float(overall.loc["accuracy", "computed"])
        rows.append(
            _row(
                f"ImageNet subset, accuracy of {arm} from its classes",
                _spread(lambda *a, w=images: float(np.average(a, weights=w)), *per_class),
                overall.loc["accuracy", "computed"],
                "percent",
                "weighted by images per class",
            )
        )
        rows.append(
            _row(
                f"ImageNet subset, balanced accuracy of {arm} from its classes",
                _spread(lambda *a: float(np.mean(a)), *per_class),
                overall.loc["balanced_accuracy", "computed"],
                "percent",
                "mean over eight classes",
            )
        )
        for metric in ("accuracy", "balanced_accuracy"):
            if plotted := overall.loc[metric, "plotted"]:
                rows.append(
                    _row(
                        f"ImageNet subset, {metric} of {arm} as plotted",
                        float(overall.loc[metric, "computed"]),
                        plotted,
                        "percent",
                        "computed value against the bar chart",
                    )
                )
    # the students are evaluated on exactly those images that the teacher gets right
    correct, whole = (
        table.query("arm == @arm and metric == 'accuracy'")["images"].astype(int).item()
        for arm in ("Student", "Teacher")
    )
    teacher = table.query("arm == 'Teacher' and metric == 'accuracy'")["computed"].item()
    rows.append(
        _row(
            "ImageNet subset, share of images that the teacher gets right",
            100 * correct / whole,
            teacher,
            "percent",
            "images that the students are evaluated on, of all",
        )
    )
    rows.append(
        _row(
            "ImageNet subset, accuracy of KD+IG minus Student",
            computed["KD+IG"] - computed["Student"],
            unit="points",
            note="balanced accuracy has the other sign",
        )
    )
    return rows


def recomputed() -> pd.DataFrame:
    """Which published statistics follow from the published data?

    Returns
    -------
    pandas.DataFrame
        One row per statistic: ``statistic``, ``unit`` (as printed; accuracies in percent), ``relation`` (``<`` where
        only a bound is published), ``published`` (NaN if the value is not stated anywhere known), ``recomputed``,
        ``low`` and ``high`` (the range that the rounding of the inputs allows), ``agrees`` and ``note``. ``agrees`` is
        True if some value in the range rounds to the published one (for ``<``: lies below it), and missing where
        nothing is published.

    Notes
    -----
    A row that does not agree is a finding about how two numbers relate, not about which of them is right.
    """
    rows = [
        *_headline_rows(),
        *_ablation_rows(),
        *_monte_carlo_rows(),
        *_size_and_time_rows(),
        *_sweep_rows(),
        *_imagenet_rows(),
    ]
    return pd.DataFrame(rows).astype({"agrees": "boolean"})
