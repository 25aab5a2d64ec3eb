"""Verdicts on hand-worked cases, on made-up pairs and on made-up records."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from igkd import claims, experiments, other_images, published
from igkd.costs import Measurements
from igkd.experiments import PROFILES, Plan
from igkd.records import Record
from igkd.study import Study


# Published +0.8 points: half of it is 0.4; the prediction interval begins at 0.4.
@pytest.mark.parametrize(
    ("complete", "estimate", "interval", "narrow", "p", "expected"),
    [
        (True, 0.4, (0.1, 0.7), (0.2, 0.6), 0.01, "reproduced"),  # exactly on the edge is inside
        (True, 3.0, (2.5, 3.5), (2.6, 3.4), 0.001, "reproduced"),  # more than published
        (True, 0.2, (0.1, 0.3), (0.12, 0.28), 0.01, "smaller than published"),  # a gain comes before equivalence
        (True, 0.2, (0.01, 0.39), (0.05, 0.35), 0.2, "no gain"),  # Holm takes the gain away
        (True, -0.1, (-0.5, 0.3), (-0.39, 0.2), 1.0, "no gain"),
        (True, -0.1, (-0.5, 0.3), (-0.4, 0.2), 1.0, "inconclusive"),  # touches the margin
        (True, 0.9, (0.1, 1.7), (0.2, 1.6), 0.06, "inconclusive"),
        (True, -0.2, (-0.3, -0.1), (-0.28, -0.12), 0.2, "contradicted"),  # before equivalence, whatever Holm says
        (False, 0.9, (0.6, 1.2), (0.7, 1.1), 0.001, "open"),
        (False, -0.9, (-1.2, -0.6), (-1.1, -0.7), 0.001, "open"),
        (True, 0.5, (np.nan, np.nan), (np.nan, np.nan), np.nan, "inconclusive"),  # pairs that do not vary
    ],
)
def test_rules_of_the_verdict(complete, estimate, interval, narrow, p, expected):
    assert claims.verdict(complete, estimate, interval, narrow, p, predicted=0.4, margin=0.4) == expected


@pytest.mark.parametrize(("n_published", "n"), [(10, 10), (60, 5)])
def test_the_prediction_interval_holds_the_mean_of_new_pairs_in_95_of_100_cases(n_published, n):
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        a, b = rng.normal(1, 2, n_published), rng.normal(0, 1, n_published)
        stated = claims.Difference.of_samples(a.mean() - b.mean(), (a.var(ddof=1), b.var(ddof=1)), n_published)
        low, high = stated.prediction(n, np.nan)
        inside += low < rng.normal(1, 2, n).mean() - rng.normal(0, 1, n).mean() < high
    assert stats.binomtest(inside, 2000, 0.95).pvalue > 0.001


def test_published_differences_are_of_means_by_hand():
    points = {number: round(100 * each.mean, 2) for number, each in claims.PUBLISHED.items()}
    assert points == {"C1": 0.83, "C3": -0.16, "C4": 1.24, "C5": 0.19, "C6": 1.93}
    runs = published.ablation_runs().pivot(index="run", columns="arm", values="accuracy")
    welch = stats.ttest_ind(runs["KD+IG"], runs["Student"], equal_var=False)
    assert claims.PUBLISHED["C1"].df == pytest.approx(welch.df)
    assert claims.PUBLISHED["C4"].sd * 100 == pytest.approx((0.30544 + 0.11758) ** 0.5)
    # a single published pair: its spread is taken to be ours
    low, high = claims.PUBLISHED["C6"].prediction(5, 0.01)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 4) * 0.01 * (1 + 1 / 5) ** 0.5)


def judged(monkeypatch, full_size=True, **effects):
    """The row of C1 where pairs of the claims have exactly this mean and spread (points): (mean, spread, pairs)."""
    noise, changed = np.random.default_rng(0).normal(size=10), {}
    for number, claim in claims.GAINS.items():
        mean, spread, n = effects.get(number, (0, 1, 0))
        own = stats.zscore(noise[:n], ddof=1) if n > 1 else np.zeros(n)
        reference = 0.9 + np.arange(n) / 1000
        table = pd.DataFrame({claim.arm: reference + (mean + spread * own) / 100, claim.reference: reference})
        changed[number] = replace(claim, pairs=lambda study, claim, table=table: table)
    monkeypatch.setattr(claims, "GAINS", changed)
    return claims._gain_rows(SimpleNamespace(full_size=full_size))["C1"]


def test_a_row_has_estimate_interval_size_and_p_corrected_over_all_five_claims(monkeypatch):
    row = judged(monkeypatch, C1=(0.8, 0.3, 10))
    half = stats.t.ppf(0.975, 9) * 0.3 / 10**0.5
    assert row["here"] == f"+0.80 [{0.8 - half:+.2f}, {0.8 + half:+.2f}] points"
    assert (row["verdict"], row["n"], row["size"].split()[0]) == ("reproduced", "10", "inside")
    assert row["share of the pairs that gain"].startswith("1.00 [0.69")  # 0.025 ** 0.1
    # an uncorrected p of 0.02 is 0.1 after Holm over five, of which four are not recorded
    mean = stats.t.isf(0.01, 9) * 0.3 / 10**0.5
    row = judged(monkeypatch, C1=(mean, 0.3, 10))
    assert "p = 0.1," in row["a gain?"] and row["verdict"] == "inconclusive"
    row = judged(monkeypatch, full_size=False, C1=(0.8, 0.3, 10))
    assert row["verdict"] == "open" and row["here"].startswith("+0.80 [") and "a gain?" not in row
    sure = {"C3": (1.2, 0.1, 10), "C4": (1.2, 0.1, 10), "C5": (1.2, 0.1, 8), "C6": (1.2, 0.1, 10)}
    assert "p = 0.02," in judged(monkeypatch, C1=(mean, 0.3, 10), **sure)["a gain?"]


def test_the_share_of_the_pairs_that_gain_has_the_interval_of_the_sign_test(monkeypatch):
    row = judged(monkeypatch, C1=(0.1, 1.0, 10))
    ahead = int((0.1 + stats.zscore(np.random.default_rng(0).normal(size=10), ddof=1) > 0).sum())
    low, high = stats.binomtest(ahead, 10).proportion_ci()
    assert 0 < ahead < 10 and row["share of the pairs that gain"] == f"{ahead / 10:.2f} [{low:.2f}, {high:.2f}]"


def test_an_inconclusive_claim_says_how_many_pairs_would_decide(monkeypatch):
    row = judged(monkeypatch, C1=(0.3, 1.0, 10))
    n = int(row["pairs that would decide"]) + np.array([-1, 0])
    power = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.417 * n**0.5)  # half of the published 0.834 points
    assert row["verdict"] == "inconclusive" and power[0] < 0.8 <= power[1]


def test_c6_is_judged_by_balanced_accuracy_on_all_images(monkeypatch):
    of = product(("Student", "KD+IG"), range(2), ("all", "teacher_correct"))
    kept = pd.DataFrame(of, columns=["arm", "seed", "condition"]).assign(accuracy=0.1)
    kept["balanced_accuracy"] = kept.arm.map({"Student": 0.8, "KD+IG": 0.9}).where(kept.condition == "all", 0.5)
    monkeypatch.setattr(other_images, "kept", lambda *_: kept)
    found = claims.on_imagenet(SimpleNamespace(plan=None), replace(claims.GAINS["C6"], runs=lambda plan: []))
    assert (found["KD+IG"] - found["Student"]).tolist() == pytest.approx([0.1, 0.1])


C2 = {"reproduced": (5.4, 0.01), "not reproduced": (5.37, 0.01), "inconclusive": (5.4, 1.0)}


@pytest.mark.parametrize("verdict", C2)
def test_c2_asks_for_half_of_the_published_ratio(tmp_path, verdict):
    """140 ms / 13 ms / 2 = 5.385."""
    ratio, half = C2[verdict]
    row = {"blocks_removed": 5, "batch_size": 1, "ratio": ratio, "ratio_low": ratio - half, "ratio_high": ratio + half}
    table = pd.DataFrame([row | {"batch_size": 64, "ratio_low": 99.0, "ratio_high": 99.0}, row]).assign(n=20)
    measured = Measurements(path := tmp_path / "latency.json", {"name": "a machine"})
    measured.once("steady_state", {}, lambda: table)
    study = SimpleNamespace(latency_files=(path,), root=tmp_path, images=SimpleNamespace(name="cifar10"))
    assert claims._latency(study)["verdict"] == verdict


def test_the_ledger_of_some_records_is_written_with_all_its_parts(tmp_path, monkeypatch):
    """Of made-up ones: three pairs of C1, of C5 two at 1122x and one, which is too few, at 139x."""
    monkeypatch.delenv("IGKD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    study = Study("paper", device="cpu", root=tmp_path, log=lambda line: None)
    plan = Plan(PROFILES["paper"], "f" * 16, experiments.teacher_run("f" * 16, PROFILES["paper"].teacher).key)
    some = [item for item in experiments.arms(plan) if item.labels["seed"] < 3]
    for item in experiments.sweep(plan):
        some += [item] * ((item.labels["blocks_removed"], item.labels["seed"]) in ((17, 0), (17, 1), (15, 0)))
    for item in some:
        gain = 0.001 * (1 + item.labels["seed"]) if item.labels["arm"] == "KD+IG" else 0
        outcome = {"accuracy": 0.9 + gain, "n_train": 40_000, "n_test": 10_000, "history": []}
        study.store.add(Record(item.run, outcome, {"data": "cifar10", "seconds": 1.0}), item.experiment)
    found = claims.write_ledger(study)
    assert found.index.tolist() == [f"C{number}" for number in range(1, 8)]
    assert (found.n["C1"], found.here["C1"]) == ("3 of 10", "+0.20 points")  # of 0.1, 0.2 and 0.3
    assert (found.n["C5"], found.here["C5"]) == ("2 of 8", "+0.15 points")  # 1122x and, of C1, 4.12x
    assert found.verdict.tolist() == ["open"] * 6 + ["reproduced (counted)"]
    text = (study.figures / "ledger.md").read_text()
    assert all(part in text for part in (*published.recomputed().statistic.head(3), "+0.20 points", "aspect"))
