"""Verdicts on hand-worked cases and made-up pairs, and the ledger of the records."""

import json
import re
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from igkd import claims, experiments, other_images, published
from igkd.study import Study

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def paper():
    return Study("paper", device="cpu", log=lambda line: None)


# Published +0.8 points: half of it is 0.4; the prediction interval begins at 0.4.
@pytest.mark.parametrize(
    ("complete", "estimate", "interval", "narrow", "p", "expected"),
    [
        (True, 0.9, (0.6, 1.2), (0.7, 1.1), 0.001, "reproduced"),
        (True, 0.4, (0.1, 0.7), (0.2, 0.6), 0.01, "reproduced"),  # exactly on the edge is inside
        (True, 3.0, (2.5, 3.5), (2.6, 3.4), 0.001, "reproduced"),  # more than published
        (True, 0.3, (0.1, 0.5), (0.15, 0.45), 0.01, "smaller than published"),
        (True, 0.2, (0.1, 0.3), (0.12, 0.28), 0.01, "smaller than published"),  # a gain comes before equivalence
        (True, 0.2, (0.01, 0.39), (0.05, 0.35), 0.2, "no gain"),  # Holm takes the gain away
        (True, 0.0, (-0.4, 0.4), (-0.3, 0.3), 1.0, "no gain"),
        (True, -0.1, (-0.5, 0.3), (-0.39, 0.2), 1.0, "no gain"),
        (True, -0.1, (-0.5, 0.3), (-0.4, 0.2), 1.0, "inconclusive"),  # touches the margin
        (True, 0.3, (-0.2, 0.8), (-0.1, 0.7), 1.0, "inconclusive"),
        (True, 0.9, (0.1, 1.7), (0.2, 1.6), 0.06, "inconclusive"),
        (True, -0.2, (-0.3, -0.1), (-0.28, -0.12), 0.01, "contradicted"),  # before equivalence
        (True, -0.2, (-0.3, -0.1), (-0.28, -0.12), 0.2, "contradicted"),  # whatever Holm says
        (False, 0.9, (0.6, 1.2), (0.7, 1.1), 0.001, "open"),
        (False, -0.9, (-1.2, -0.6), (-1.1, -0.7), 0.001, "open"),
        (True, 0.5, (np.nan, np.nan), (np.nan, np.nan), np.nan, "inconclusive"),  # pairs that do not vary
    ],
)
def test_rules_of_the_verdict(complete, estimate, interval, narrow, p, expected):
    assert claims.verdict(complete, estimate, interval, narrow, p, smallest=0.4, margin=0.4) == expected


def test_a_claim_without_truth_is_rarely_borne_out():
    """Without any gain the interval lies above 0 in 2.5 % of the cases, and below 0 as often."""
    differences = np.random.default_rng(1).normal(0, 1, (2000, 10))
    found = [
        claims.verdict(True, each.mean(), t.confidence_interval(0.95), t.confidence_interval(0.9), t.pvalue, 0.4, 0.4)
        for each in differences
        if (t := stats.ttest_1samp(each, 0))
    ]
    for one in (["reproduced", "smaller than published"], ["contradicted"]):
        assert stats.binomtest(sum(each in one for each in found), 2000, 0.025).pvalue > 0.001


@pytest.mark.parametrize(("n_published", "n"), [(10, 10), (60, 5)])
def test_the_prediction_interval_holds_the_mean_of_new_pairs_in_95_of_100_cases(n_published, n):
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        a, b = rng.normal(1, 2, n_published), rng.normal(0, 1, n_published)
        variances = a.var(ddof=1), b.var(ddof=1)
        stated = claims.Difference.of_samples(a.mean() - b.mean(), variances, n_published)
        low, high = stated.prediction(n, np.nan)
        inside += low < rng.normal(1, 2, n).mean() - rng.normal(0, 1, n).mean() < high
    assert stats.binomtest(inside, 2000, 0.95).pvalue > 0.001


def test_published_differences_are_of_means_by_hand():
    points = {number: round(100 * each.mean, 2) for number, each in claims.PUBLISHED.items()}
    assert points == {"C1": 0.83, "C3": -0.16, "C4": 1.24, "C5": 0.19, "C6": 1.93}
    runs = published.ablation_runs().pivot(index="run", columns="arm", values="accuracy")
    df = stats.ttest_ind(runs["KD+IG"], runs["Student"], equal_var=False).df
    assert claims.PUBLISHED["C1"].df == pytest.approx(df)
    assert claims.PUBLISHED["C4"].sd * 100 == pytest.approx((0.30544 + 0.11758) ** 0.5)
    # a single published pair: its spread is taken to be ours
    low, high = claims.PUBLISHED["C6"].prediction(5, 0.01)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 4) * 0.01 * (1 + 1 / 5) ** 0.5)


def made(monkeypatch, **effects):
    """The five claims on pairs whose differences have exactly this mean and spread (points): (mean, spread, pairs)."""
    noise = stats.zscore(np.random.default_rng(0).normal(size=10), ddof=1)

    def pairs(mean, spread, n):
        reference = 0.9 + np.arange(n) / 1000
        own = stats.zscore(noise[:n], ddof=1) if n > 1 else 0.0
        return reference + (mean + spread * own) / 100, reference

    changed = {}
    for number, claim in claims.GAINS.items():
        arm, reference = pairs(*effects.get(number, (0, 1, 0)))
        table = pd.DataFrame({claim.arm: arm, claim.reference: reference}, dtype=float)
        changed[number] = replace(claim, pairs=lambda study, claim, table=table: table)
    monkeypatch.setattr(claims, "GAINS", changed)


def rows(full_size=True):
    return claims._gain_rows(SimpleNamespace(full_size=full_size))


def test_a_row_has_estimate_interval_and_size(monkeypatch):
    made(monkeypatch, C1=(0.8, 0.3, 10))
    row = rows()["C1"]
    half = stats.t.ppf(0.975, 9) * 0.3 / 10**0.5
    assert row["here"] == f"+0.80 [{0.8 - half:+.2f}, {0.8 + half:+.2f}] points"
    assert (row["verdict"], row["n"], row["size"].split()[0]) == ("reproduced", "10", "inside")
    assert row["P(improvement)"].startswith("1.00 [0.69")  # 0.025 ** 0.1
    assert "pairs that would decide" not in row


def test_p_is_corrected_over_all_five_claims(monkeypatch):
    """An uncorrected p of 0.02 is 0.1 after Holm over five, of which four are not recorded."""
    mean = stats.t.isf(0.01, 9) * 0.3 / 10**0.5
    made(monkeypatch, C1=(mean, 0.3, 10))
    row = rows()["C1"]
    assert row["gain"] == "no (p = 0.1, Holm over 5)" and row["verdict"] == "inconclusive"
    made(monkeypatch, C1=(mean, 0.3, 10), C4=(1.2, 0.1, 10), C5=(1.2, 0.1, 8), C6=(1.2, 0.1, 10), C3=(1.2, 0.1, 10))
    assert rows()["C1"]["gain"].startswith("yes (p = 0.02")


def test_an_inconclusive_claim_says_how_many_pairs_would_decide(monkeypatch):
    made(monkeypatch, C1=(0.3, 1.0, 10))
    row = rows()["C1"]
    n, effect = int(row["pairs that would decide"]), 0.417

    def power(n):
        limit = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(limit, n - 1, effect * n**0.5)

    assert row["verdict"] == "inconclusive" and power(n - 1) < 0.8 <= power(n)


@pytest.mark.parametrize(("n", "full_size", "interval"), [(9, True, False), (1, True, False), (10, False, True)])
def test_open_claims_have_an_interval_only_if_all_their_pairs_are_there(monkeypatch, n, full_size, interval):
    made(monkeypatch, C1=(1.0, 0.2, n))
    row = rows(full_size)["C1"]
    assert row["verdict"] == "open" and "gain" not in row
    assert row["here"].startswith("+1.00") and ("[" in row["here"]) == interval


def test_pairs_share_a_seed():
    runs = pd.DataFrame({"arm": ["Student", "KD+IG", "Student"], "seed": [0, 0, 1], "accuracy": [0.5, 0.6, 0.7]})
    study = SimpleNamespace(plan=None, table=lambda declared: runs)
    found = claims.by_seed(study, replace(claims.GAINS["C1"], runs=lambda plan: []))
    assert found.index.tolist() == [0] and found.to_numpy().tolist() == [[0.6, 0.5]]


def test_a_factor_needs_two_pairs_and_counts_once():
    rows = [(5, 0, 0.50, 0.53), (5, 1, 0.50, 0.51), (7, 0, 0.40, 0.45)]
    runs = pd.DataFrame(
        [(cut, seed, arm, value) for cut, seed, *both in rows for arm, value in zip(("Student", "KD+IG"), both)],
        columns=["blocks_removed", "seed", "arm", "accuracy"],
    )
    study = SimpleNamespace(plan=None, table=lambda declared: runs)
    found = claims.by_factor(study, replace(claims.GAINS["C5"], runs=lambda plan: []))
    assert found.index.tolist() == [5] and (found["KD+IG"] - found["Student"]).tolist() == pytest.approx([0.02])


def test_c6_is_judged_by_balanced_accuracy_on_all_images(monkeypatch):
    kept = pd.DataFrame(
        [(arm, seed, condition, accuracy) for arm, accuracy in (("Student", 0.8), ("KD+IG", 0.9))
         for seed in range(2) for condition in (other_images.ALL, other_images.TEACHER_CORRECT)],
        columns=["arm", "seed", "condition", "balanced_accuracy"],
    ).assign(accuracy=0.1)  # fmt: skip
    monkeypatch.setattr(other_images, "kept", lambda *_: kept)
    study = SimpleNamespace(plan=None)
    found = claims.on_imagenet(study, replace(claims.GAINS["C6"], runs=lambda plan: []))
    assert len(found) == 2 and (found["KD+IG"] - found["Student"]).tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(
    ("ratio", "half", "expected"),
    [(10.0, 1.0, "reproduced"), (5.4, 0.01, "reproduced"), (5.37, 0.01, "not reproduced"), (5.4, 1.0, "inconclusive")],
)
def test_c2_asks_for_half_of_the_published_ratio(monkeypatch, tmp_path, ratio, half, expected):
    """140 ms / 13 ms / 2 = 5.385."""
    path = tmp_path / "latency.json"
    path.touch()
    row = {"blocks_removed": 5, "width": 1.0, "batch_size": 1, "ratio": ratio, "n": 20}
    table = pd.DataFrame([row | {"batch_size": 64, "ratio": 99.0}, row])
    table = table.assign(ratio_low=table.ratio - half, ratio_high=table.ratio + half)
    monkeypatch.setattr(claims, "read_measurement", lambda path, name: (table, {}))
    found = claims._latency(SimpleNamespace(latency_files=(path,), root=tmp_path))
    assert found["verdict"] == expected and found["here"].startswith(f"{ratio:.2f} [")


def test_the_three_pairs_of_the_first_edition_are_open_and_without_interval(paper):
    """From the files themselves."""
    keys = {item.run.key: item.labels for item in experiments.arms(paper.plan)}
    accuracy = {
        (labels["arm"], labels["seed"]): json.loads(path.read_text())["outcome"]["accuracy"]
        for path in sorted(paper.store.root.glob("*/*.json"))
        if (labels := keys.get(path.stem))
    }
    pairs = [100 * (accuracy["KD+IG", seed] - accuracy["Student", seed]) for seed in range(3)]
    named = claims.DIFFERENCES_FROM_THE_PAPER.set_index("aspect").here["known beforehand, C1"]
    assert [f"{pair:.2f}" for pair in pairs] == re.findall(r"-\d\.\d\d", named)
    row = claims.ledger(paper).loc["C1"]
    assert (row.verdict, row.n, row.here) == ("open", "3 of 10", f"{np.mean(pairs):+.2f} points")


def test_the_ledger_is_written_with_all_its_parts(paper, tmp_path):
    study = copy(paper)
    study.figures = tmp_path
    found = claims.write_ledger(study)
    assert found.index.tolist() == [f"C{number}" for number in range(1, 8)]
    for ending in ("md", "html"):
        text = (tmp_path / f"ledger.{ending}").read_text()
        assert all(
            part in text for part in (*published.recomputed().statistic.head(3), *found.verdict, "-0.36, -0.39, -0.23")
        )
