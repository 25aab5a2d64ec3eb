"""The paper's claims as checks with criteria that were declared before the runs, and the ledger of their verdicts.

A claim is examined on records alone; nothing is trained here. The rule for a claimed gain, in `judge_gain`:

- *not reproduced* if the 95 % interval of the paired difference lies below the smallest gain that would still bear the
  claim out (`Claim.relevant`),
- *reproduced* if it lies above 0 and is not below that gain,
- *inconclusive* if it decides neither,
- *open* where the claim is not examined yet: with fewer runs than declared (an interval that is looked at until it
  pleases is no interval) and with runs of another size than the claim is about.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files

import pandas as pd

from igkd import experiments, published, shift, statistics
from igkd.cost import multiply_accumulates, read_measurement
from igkd.device import machine_name
from igkd.engine import Study
from igkd.methods import ARMS, RECIPES
from igkd.models import MobileNetV2, compression_factor
from igkd.runs import records_digest

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, OPEN = "reproduced", "not reproduced", "inconclusive", "open"
#: Why a claim is open whose runs are smaller than it.
ANOTHER_SIZE = "another size than the claim is about; the paper profile comes nearest"
#: The largest change by attention transfer that would not matter, as a fraction; the paper names no size for its gain.
SMALLEST_GAIN_OF_ATTENTION = 0.002
#: What most of the claims are about, for the top of a notebook, beside what its profile is of.
SIZE = f"the paper's claims: CIFAR-10, 50,000 training images, a student {compression_factor(5):.2f}x smaller"


@dataclass(frozen=True)
class Link:
    """A cell of the ledger that leads to a section of a notebook.

    Attributes
    ----------
    text : str
    target : str
        Relative to the folder of the ledger; executed copies lie beside the figures as the notebooks do.
    """

    text: str
    target: str

    def __str__(self) -> str:
        return self.text


def link(number: str, section: str = "") -> str:
    """The two digits of a notebook."""
    return number


@dataclass(frozen=True)
class Claim:
    """What the paper says and how it is examined.

    Attributes
    ----------
    number : str
    says : str
    criterion : str
        When it counts as reproduced.
    notebook : str
        Two digits.
    section : str
        Heading in that notebook.
    """

    number: str
    says: str
    criterion: str
    notebook: str
    section: str


@dataclass(frozen=True)
class Finding:
    """What came out for one claim.

    Attributes
    ----------
    claim : Claim
    published : str
        The published value, with what it is a value of.
    estimate, low, high : float or None
        Ours with its 95 % interval, in `unit`.
    unit : str
    n : int
        Pairs of runs, or rounds of a measurement; 0 where none is needed, or none is recorded.
    data : str
    verdict : {"reproduced", "not reproduced", "inconclusive", "open"}
    why : str
        What the verdict rests on; for an inconclusive or open one what would settle it.
    digest : str
        Of the records; empty without.
    released : Finding or None
        The same criterion on runs with the signals as the released code has them; None where there are no such runs.
    """

    claim: Claim
    published: str
    estimate: float | None
    low: float | None
    high: float | None
    unit: str
    n: int
    data: str
    verdict: str
    why: str
    digest: str = ""
    released: "Finding | None" = None

    def __str__(self) -> str:
        if self.estimate is None:
            return "–"
        sign = "+" if self.unit == "points" else ""
        interval = "" if self.low is None else f" [{self.low:{sign}.2f}, {self.high:{sign}.2f}]"
        return f"{self.estimate:{sign}.2f}{interval} {self.unit}"


def judge_gain(low: float, high: float, relevant: float) -> str:
    """The verdict on a claimed gain from its interval; `relevant` is the smallest gain that would bear it out."""
    if high < relevant:
        return NOT_REPRODUCED
    return REPRODUCED if low > 0 else INCONCLUSIVE


def gain(
    claim: Claim,
    stated: str,
    study: Study,
    declared: list,
    arm: str,
    reference: str,
    relevant: float,
    measured: pd.DataFrame | None = None,
    scored: str = "",
) -> Finding:
    """Examine a claim that one arm is ahead of another.

    Parameters
    ----------
    claim : Claim
    stated : str
        The published value.
    study : Study
    declared : list of Planned
        All runs that the claim is to rest on; arms of one seed make a pair.
    arm, reference : str
    relevant : float
        Smallest gain that would bear the claim out, a fraction.
    measured : DataFrame, optional
        In place of the runs' test accuracies: ``arm``, ``seed``, ``key``, ``accuracy``, ``n_train``, one row a run.
    scored : str
        On which images these were measured, as it goes on after the description of the data.
    """
    declared = [item for item in declared if item.labels["arm"] in (arm, reference)]
    wanted = len({item.labels["seed"] for item in declared})
    table = study.table(declared) if measured is None else measured
    pairs = pd.DataFrame()
    if not table.empty:
        pairs = table.pivot(index="seed", columns="arm", values="accuracy").reindex(columns=[arm, reference]).dropna()
    how = "--runs-only" if measured is None else "with the weights and the images (README) at hand"
    command = f"python run_all.py --profile {study.profile.name} --only {claim.notebook} {how}"
    if len(pairs) < 2:
        why = f"{len(pairs)} of {wanted} declared pairs of runs are recorded; more: {command}"
        return Finding(claim, stated, None, None, None, "points", len(pairs), "", OPEN, why)
    used = table[table.seed.isin(pairs.index)]
    found = statistics.compare_recorded(used, [(arm, reference)], pair_by="seed").iloc[0]
    interval = (None, None) if pd.isna(found.low) else (100 * found.low, 100 * found.high)
    data = (
        f"{study.data_name}, {used.n_train.iloc[0]:,} images, {study.profile.blocks_removed} blocks removed, "
        f"{study.profile.recipe.num_epochs} epochs{scored}"
    )
    if not study.full_size:
        verdict, why = OPEN, ANOTHER_SIZE
    elif len(pairs) < wanted:
        verdict, why = OPEN, f"{len(pairs)} of {wanted} declared pairs are recorded; more: {command}"
    elif interval[0] is None:
        verdict, why = INCONCLUSIVE, "the pairs do not vary, so chance cannot be judged; more seeds"
    else:
        verdict = judge_gain(found.low, found.high, relevant)
        spread = float((pairs[arm] - pairs[reference]).std())
        needed = statistics.runs_needed(relevant, spread, paired=True)
        why = {
            REPRODUCED: f"the interval lies above 0 and reaches {100 * relevant:.2f} points",
            NOT_REPRODUCED: f"the interval ends below {100 * relevant:.2f} points",
            INCONCLUSIVE: f"a gain of {100 * relevant:.2f} points needs {needed} pairs to be seen with 80 % power",
        }[verdict]
    return Finding(
        claim,
        stated,
        100 * found.difference,
        *interval,
        "points",
        len(pairs),
        data,
        verdict,
        why,
        records_digest(used),
    )


def with_released(
    claim: Claim, stated: str, study: Study, declared: list, arm: str, reference: str, relevant: float
) -> Finding:
    """`gain` for the signals as described, and beside it for those as released, from the controls; parameters alike."""
    released = [item for item in experiments.controls(study.plan) if item.labels["variant"] in ("", "released")]
    finding = gain(claim, stated, study, declared, arm, reference, relevant)
    controls = replace(claim, notebook="08")
    return replace(finding, released=gain(controls, stated, study, released, arm, reference, relevant))


def _c1(study: Study) -> Finding:
    claimed = published.stated("gain")
    claim = Claim(
        "C1",
        "KD+IG reaches 92.6 % with 4.1x fewer parameters, 1.1 points above the student alone, p < 0.001",
        "the 95 % interval of KD+IG - Student lies above 0 and its upper end reaches half the claimed gain, "
        f"{claimed / 2:.2f} points",
        "03",
        "The runs",
    )
    runs = published.ablation_runs().groupby("arm").accuracy.mean()
    stated = (
        f"{claimed:+.1f} points (best of 10 against best of 10); means: "
        f"{100 * (runs['KD+IG'] - runs['Student']):+.2f} points"
    )
    return with_released(claim, stated, study, experiments.arms(study.plan), "KD+IG", "Student", claimed / 200)


def _short(passes: bool) -> str:
    """For a published value, said beside the criterion that ours is judged by."""
    return "" if passes else ", which would not pass the criterion"


def judge_ratio(low: float, high: float, needed: float) -> str:
    """The verdict on a claimed ratio from its interval; `needed` is the smallest ratio that would bear it out."""
    if high < needed:
        return NOT_REPRODUCED
    return REPRODUCED if low >= needed else INCONCLUSIVE


def _c2(study: Study) -> Finding:
    slow, fast = published.stated("inference_teacher"), published.stated("inference_student")
    needed = slow / fast / 2
    claim = Claim(
        "C2",
        "inference falls from 140 ms to 13 ms at 4.1x",
        "the steady-state latencies of teacher and student (PyTorch, one image, measured in turn, median of the ratio) "
        f"differ by at least half the published factor, {needed:.1f} times",
        "07",
        "Latency in the steady state (C2)",
    )
    stated = f"{slow / fast:.1f} times ({slow:g} ms / {fast:g} ms)"
    # what was measured here goes before what the repository brings
    for path in study.latency_files:
        if path.exists():
            table, machine = read_measurement(path, "steady_state")
            found = table[(table.blocks_removed == 5) & (table.width == 1)].set_index("batch_size")
            if 1 in found.index:
                return _latency_finding(claim, stated, found, machine, needed)
    teacher, student = (multiply_accumulates(MobileNetV2(10, cut), (32, 32)) for cut in (0, 5))
    why = (
        "this counts multiply-accumulates; latency is not measured yet: "
        f"python run_all.py --profile {study.profile.name} --only 07"
    )
    return Finding(claim, stated, teacher / student, None, None, "times", 0, "counted", OPEN, why)


def _latency_finding(claim: Claim, stated: str, found: pd.DataFrame, machine: dict, needed: float) -> Finding:
    row = found.loc[1]
    verdict = judge_ratio(row.ratio_low, row.ratio_high, needed)
    others = "".join(f"; {each.ratio:.2f} for batches of {size}" for size, each in found.iterrows() if size != 1)
    why = {
        REPRODUCED: claim.criterion,
        NOT_REPRODUCED: f"less than {needed:.1f} times on this processor; the published times are of another machine",
        INCONCLUSIVE: "the interval of the ratio holds that factor; more repetitions",
    }[verdict]
    why += others
    data = f"{row.n:.0f} rounds, {machine['device']}, {machine_name(machine)}"
    return Finding(claim, stated, row.ratio, row.ratio_low, row.ratio_high, "times", int(row.n), data, verdict, why)


def _c3(study: Study) -> Finding:
    smallest = SMALLEST_GAIN_OF_ATTENTION
    claim = Claim(
        "C3",
        "attention transfer is complementary: it helps when combined with KD and IG",
        f"the 95 % interval of KD+IG+AT - KD+IG lies above 0 and its upper end reaches {100 * smallest:.1f} points",
        "04",
        "Pairs of arms",
    )
    runs = published.ablation_runs().groupby("arm").accuracy.mean()
    ahead = 100 * (runs["KD+IG+AT"] - runs["KD+IG"])
    stated = f"no size stated; means of the published runs, KD+IG+AT less KD+IG: {ahead:+.2f} points{_short(ahead > 0)}"
    return with_released(claim, stated, study, experiments.factorial(study.plan), "KD+IG+AT", "KD+IG", smallest)


def _c4(study: Study) -> Finding:
    means = published.monte_carlo_summary().set_index("arm")["mean"]
    difference = means["KD+IG"] - means["Student"]
    claim = Claim(
        "C4",
        "Monte Carlo runs on random 80 % subsets confirm the gain",
        "the 95 % interval of KD+IG - Student on the same subsets lies above 0 and its upper end reaches half the "
        f"published difference, {50 * difference:.2f} points",
        "05",
        "Pairs: arms on the same subset",
    )
    stated = f"{100 * difference:+.2f} points between the means of 60 runs each"
    return gain(claim, stated, study, experiments.monte_carlo(study.plan), "KD+IG", "Student", difference / 2)


def _c5(study: Study) -> Finding:
    theirs = published.compression_sweep().pivot(index="blocks_removed", columns="arm", values="accuracy")
    ahead = theirs["KD+IG"] - theirs["Student"]
    relevant = float(ahead.mean()) / 2
    claim = Claim(
        "C5",
        "IG-based distillation is ahead over compression factors 2.2x to 1122x",
        "KD+IG - Student, paired by seed, is above 0 in the mean at each of the eight factors, and the 95 % interval of "
        f"its mean over the factors lies above 0 and its upper end reaches half the published mean, "
        f"{100 * relevant:.2f} points; "
        "being behind at one factor (p < 0.05, Holm) speaks against it",
        "07",
        "Accuracy against compression factor (C5)",
    )
    stated = (
        f"{100 * ahead.mean():+.2f} points in the mean of Table 13; ahead at {(ahead > 0).sum()} of {len(ahead)} "
        f"factors{_short((ahead > 0).all())}"
    )
    declared = [
        item
        for item in experiments.sweep(study.plan)
        if item.labels["width"] == 1 and item.labels["arm"] in ("Student", "KD+IG")
    ]
    cuts = {item.labels["blocks_removed"] for item in declared}
    wanted = len({item.labels["seed"] for item in declared})
    table = study.table(declared)
    pairs = pd.DataFrame()
    if not table.empty:
        # only seeds of which every factor has both arms
        pairs = table.pivot(index="seed", columns=["blocks_removed", "arm"], values="accuracy").dropna()
        if pairs.shape[1] < 2 * len(cuts):
            pairs = pairs.iloc[:0]
    command = f"python run_all.py --profile {study.profile.name} --only 07 --runs-only"
    if len(pairs) < 2:
        why = f"{len(pairs)} of {wanted} declared seeds are recorded at all {len(cuts)} factors"
        why += f"; more: {command}" if len(pairs) < wanted else "; an interval needs two"
        return Finding(claim, stated, None, None, None, "points", len(pairs), "", OPEN, why)
    used = table[table.seed.isin(pairs.index)]
    gains = pairs.xs("KD+IG", axis=1, level="arm") - pairs.xs("Student", axis=1, level="arm")
    verdict, why, interval = judge_factors(gains, relevant)
    if not (study.full_size and study.profile.sweep.share == 1 and len(cuts) == len(theirs)):
        verdict, why = OPEN, ANOTHER_SIZE
    elif len(pairs) < wanted:
        verdict, why = OPEN, f"{len(pairs)} of {wanted} declared seeds are recorded; more: {command}"
    data = (
        f"{study.data_name}, {used.n_train.iloc[0]:,} images, {len(cuts)} factors, "
        f"{study.profile.recipe.num_epochs} epochs"
    )
    low, high = (None if pd.isna(each) else 100 * each for each in interval)
    estimate = 100 * float(gains.to_numpy().mean())
    return Finding(claim, stated, estimate, low, high, "points", len(pairs), data, verdict, why, records_digest(used))


def judge_factors(gains: pd.DataFrame, relevant: float) -> tuple[str, str, tuple[float, float]]:
    """The verdict on a gain that is claimed at every compression factor.

    Parameters
    ----------
    gains : DataFrame
        Gain of each seed (rows, at least two) at each factor (columns, blocks removed), fractions.
    relevant : float
        Smallest mean gain over the factors that would bear the claim out.

    Returns
    -------
    str, str
        Verdict and what it rests on.
    (low, high)
        95 % t-interval of the mean gain over the factors; seeds are what varies. NaN if they do not.
    """
    factors = [str(cut) for cut in gains]
    frame = gains.set_axis(factors, axis=1).assign(mean=gains.mean(axis=1), zero=0.0)
    frame = frame.rename_axis(index="seed", columns="arm").stack().rename("accuracy").reset_index()
    each = statistics.compare_pairs(frame, [(factor, "zero") for factor in factors], pair_by="seed")
    mean = statistics.compare_pairs(frame, [("mean", "zero")], pair_by="seed").iloc[0]
    interval = float(mean.low), float(mean.high)
    behind = each[(each.p_holm < 0.05) & (each.difference < 0)]
    not_ahead = each[each.difference <= 0]
    if len(behind):
        return NOT_REPRODUCED, f"behind at {len(behind)} of {len(each)} factors (p < 0.05, Holm)", interval
    verdict = judge_gain(*interval, relevant)
    if verdict == REPRODUCED and len(not_ahead):
        return INCONCLUSIVE, f"not ahead in the mean at {len(not_ahead)} of {len(each)} factors", interval
    why = {
        REPRODUCED: "ahead in the mean at every factor, and the interval lies above 0",
        NOT_REPRODUCED: f"the interval of the mean over the factors ends below {100 * relevant:.2f} points",
        INCONCLUSIVE: "the interval of the mean over the factors decides nothing; more seeds",
    }[verdict]
    return verdict, why, interval


def _c6(study: Study) -> Finding:
    values = published.imagenet_subset().query("arm in ('Student', 'KD+IG')").set_index(["metric", "arm"]).computed
    balanced, plain = (values[name, "KD+IG"] - values[name, "Student"] for name in ("balanced_accuracy", "accuracy"))
    claim = Claim(
        "C6",
        "it generalises to an ImageNet subset aligned with the CIFAR-10 classes",
        "on the images of all mapped classes, whether or not the teacher gets them right, the 95 % interval of KD+IG - "
        "Student in balanced accuracy lies above 0 and its upper end reaches half the published difference, "
        f"{50 * balanced:.2f} points",
        "06",
        "Zero-shot accuracy",
    )
    stated = (
        f"{100 * balanced:+.2f} points in balanced accuracy ({100 * plain:+.2f} in accuracy) on images that the "
        "teacher gets right, one network an arm"
    )
    declared = [item for item in experiments.factorial(study.plan) if item.labels["arm"] in ("KD+IG", "Student")]
    seen, runs = shift.kept(study, declared, "imagenet"), study.table(declared)
    measured, scored = pd.DataFrame(), ""
    if not seen.empty and not runs.empty:
        measured = seen[seen.condition == shift.ALL].merge(runs[["key", "n_train"]], on="key")
        measured = measured.assign(accuracy=measured.balanced_accuracy)
        scored = f"; scored on {seen.images.iloc[0]}"
    return gain(claim, stated, study, declared, "KD+IG", "Student", balanced / 2, measured, scored)


def _c7(study: Study) -> Finding:
    claim = Claim(
        "C7",
        "computing the maps once replaces a large cost during training by a one-time cost",
        "with the paper's constants fewer maps are computed than training would need",
        "02",
        "What does computing them once save? (C7)",
    )
    epochs, share = RECIPES["paper"].num_epochs, ARMS["IG"].overlay_prob
    factor = share * epochs
    verdict = REPRODUCED if factor > 1 else NOT_REPRODUCED
    why = (
        f"one map an image instead of {share:g} x {epochs} (those that are overlaid); "
        f"{epochs} where every step computes all of them"
    )
    return Finding(claim, "no size stated", factor, None, None, "times fewer maps", 0, "counted", verdict, why)


CHECKS: dict[str, Callable[[Study], Finding]] = {
    "C1": _c1,
    "C2": _c2,
    "C3": _c3,
    "C4": _c4,
    "C5": _c5,
    "C6": _c6,
    "C7": _c7,
}


def ledger(study: Study) -> list[Finding]:
    """All claims, examined on the records of a study."""
    return [check(study) for check in CHECKS.values()]


def as_table(findings: list[Finding]) -> pd.DataFrame:
    """The ledger's first table, one row a claim, as text."""
    return pd.DataFrame(
        [
            {
                "claim": each.claim.number,
                "the paper says": each.claim.says,
                "counts as reproduced if": each.claim.criterion,
                "published": each.published,
                "here": str(each),
                "n": str(each.n or "–"),
                "data": each.data or "–",
                "verdict": each.verdict,
                "because": each.why,
                "as released": each.released.verdict if each.released else "–",
                "as released, here": f"{each.released}, n = {each.released.n}" if each.released else "–",
                "see": link(each.claim.notebook, each.claim.section),
                "records": each.digest or "–",
            }
            for each in findings
        ]
    ).set_index("claim")


def verdicts(study: Study, *numbers: str):
    """What came of some claims, for the end of a notebook: a styled table with a column a claim.

    Parameters
    ----------
    study : Study
    numbers : str
        Keys of `CHECKS`.
    """
    findings = [CHECKS[number](study) for number in numbers]
    rows = ["the paper says", "counts as reproduced if", "published", "here", "n", "data", "verdict", "because"]
    rows += ["as released, here", "as released"] * any(each.released for each in findings)
    table = as_table(findings)[rows].T.rename_axis(columns=None)
    return table.style.set_properties(**{"text-align": "left", "vertical-align": "top"})


def published_figures() -> pd.DataFrame:
    """The figures and tables of the paper that are known: ``item``, ``shows``, ``notebook`` or ``reason``, ``source``.

    ``notebook`` is where it is drawn anew; where it is empty, ``reason`` says why it cannot be.
    """
    with files("igkd").joinpath("published", "figures.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False)


def sections(findings: list[Finding], title: str) -> list[tuple[str, str, pd.DataFrame]]:
    """The ledger: heading, a line of text and a table of text for each section."""
    recomputed = published.recomputed()
    stated = recomputed[recomputed.agrees.notna()].sort_values("agrees", kind="stable")
    unstated = recomputed[recomputed.agrees.isna()]
    figures = published_figures()
    drawn, missing = figures[figures.notebook != ""], figures[figures.notebook == ""]
    agree = int(stated.agrees.sum())

    def number(value: float) -> str:
        return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"

    def in_range(row: pd.Series) -> str:
        ends = dict.fromkeys(map(number, (row.low, row.high)))
        return number(row.recomputed) + (f" ({' to '.join(ends)})" if len(ends) > 1 else "")

    def rows(table: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "statistic": table.statistic + table.unit.map(lambda unit: f" ({unit})" if unit else ""),
                "published": table.relation + table.published.map(lambda x: "–" if pd.isna(x) else number(x)),
                "recomputed (range)": table.apply(in_range, axis=1),
                "agrees": table.agrees.map({True: "yes", False: "no"}).fillna("–"),
                "note": table.note,
            }
        )

    return [
        ("Claims", title, as_table(findings).reset_index()),
        (
            "Published statistics, computed anew from published data",
            f"{agree} of {len(stated)} agree: some value in the range that the rounding of the published inputs leaves "
            "rounds to the published one. A difference is a finding about how two published numbers relate, not about "
            "which of them is right; several can have one cause, as the notes say (a pair of bars that stand in each "
            "other's place counts four times), and two sets of runs of one method need not agree within rounding.",
            rows(stated),
        ),
        ("Statistics that follow from published data and are not stated", "", rows(unstated)),
        (
            "Figures that are drawn anew",
            "",
            drawn[["item", "shows", "notebook", "source"]].assign(notebook=drawn.notebook.map(link)),
        ),
        ("Figures and tables that cannot be drawn anew", "", missing[["item", "shows", "reason", "source"]]),
    ]


def _cells(table: pd.DataFrame, linked: Callable[[Link], str], escaped: Callable[[str], str]) -> list[list[str]]:
    return [
        [linked(cell) if isinstance(cell, Link) else escaped(str(cell)) for cell in row]
        for row in table.astype(object).itertuples(index=False, name=None)
    ]


def to_markdown(parts: list[tuple[str, str, pd.DataFrame]]) -> str:
    """The ledger as Markdown."""
    lines = ["# Ledger", ""]
    for heading, text, table in parts:
        lines += [f"## {heading}", ""] + ([text, ""] if text else [])
        cells = _cells(table, lambda to: f"[{to.text}]({to.target})", lambda text: text.replace("|", "\\|"))
        rows = [list(table.columns), ["---"] * table.shape[1], *cells]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(lines)


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:110em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ddd;padding:.35em .6em;text-align:left;
vertical-align:top}th{background:#f5f5f5;position:sticky;top:0}.reproduced{background:#d9f0d9}
.not-reproduced,.no{background:#f6d9d5}.inconclusive{background:#fbf1cf}.open{background:#eee}"""


def to_html(parts: list[tuple[str, str, pd.DataFrame]]) -> str:
    """The ledger as one HTML file that needs nothing else."""
    marked = {REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, OPEN, "no"}
    body = []
    for heading, text, table in parts:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
        body.append(f"<h2>{html.escape(heading)}</h2><p>{html.escape(text)}</p><table><tr>{head}</tr>")
        for row in _cells(
            table, lambda to: f'<a href="{html.escape(to.target)}">{html.escape(to.text)}</a>', html.escape
        ):
            cells = (
                f'<td class="{cell.replace(" ", "-")}">{cell}</td>' if cell in marked else f"<td>{cell}</td>"
                for cell in row
            )
            body.append(f"<tr>{''.join(cells)}</tr>")
        body.append("</table>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Ledger</title><style>{_STYLE}</style>'
        f"<body><h1>Ledger</h1>{''.join(body)}</body></html>\n"
    )


def write_ledger(study: Study) -> list[Finding]:
    """Write ``ledger.md`` and ``ledger.html`` beside the figures of the study's profile.

    Returns
    -------
    list of Finding
    """
    findings = ledger(study)
    parts = sections(
        findings,
        f"Profile {study.profile.name}, verdicts by code. 'here' and 'verdict' are of arms as the paper describes them, "
        "'as released' of arms whose signals are as the released code has them (notebook 08).",
    )
    study.figures.mkdir(parents=True, exist_ok=True)
    (study.figures / "ledger.md").write_text(to_markdown(parts), encoding="utf-8")
    (study.figures / "ledger.html").write_text(to_html(parts), encoding="utf-8")
    return findings
