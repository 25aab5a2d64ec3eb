"""Verdicts on made-up records, and the ledger that shows them."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy import stats

from igkd import claims, experiments, published
from igkd.engine import Study
from igkd.runs import Record

ROOT = Path(__file__).resolve().parent.parent


def study_with(tmp_path, effect, spread, pairs, profile="paper"):
    """A study whose KD+IG runs are ahead by `effect` points on average, exactly, with this spread (points)."""
    study = Study(profile, root=tmp_path, device="cpu", log=lambda line: None)
    study.fingerprint = "0123456789abcdef"
    if profile != "paper":
        study.plan = experiments.Plan(study.profile, study.fingerprint, "a teacher")
    noise = np.zeros(pairs)
    if pairs > 1:
        noise = stats.zscore(np.random.default_rng(0).normal(size=pairs), ddof=1)
    for item in experiments.arms(study.plan):
        seed = item.labels["seed"]
        if seed < pairs and item.labels["arm"] in ("Student", "KD+IG"):
            ahead = effect + spread * noise[seed] if item.labels["arm"] == "KD+IG" else 0.0
            outcome = {"accuracy": 0.9 + seed / 1000 + ahead / 100, "n_train": 40_000, "n_test": 10_000}
            study.store.add(Record(item.run, outcome, {"seconds": 1.0}), "arms")
    return study


def c1(study):
    return claims.CHECKS["C1"](study)


@pytest.mark.parametrize(
    ("effect", "spread", "pairs", "verdict", "why"),
    [
        (1.0, 0.2, 10, "reproduced", "lies above 0"),
        (0.0, 0.2, 10, "not reproduced", "lies above 0"),
        (-1.0, 0.2, 10, "not reproduced", "lies above 0"),
        (0.3, 0.2, 10, "not reproduced", "lies above 0"),  # there is a gain, but less than half of the claimed one
        (0.3, 1.0, 10, "inconclusive", "pairs to be seen with 80 % power"),
        (1.0, 0.2, 9, "inconclusive", "9 of 10 declared pairs"),
        (1.0, 0.2, 1, "inconclusive", "1 of 10 declared pairs"),
        (1.0, 0.2, 0, "inconclusive", "0 of 10 declared pairs"),
    ],
)
def test_each_outcome(tmp_path, effect, spread, pairs, verdict, why):
    finding = c1(study_with(tmp_path, effect, spread, pairs))
    assert (finding.verdict, finding.n) == (verdict, pairs)
    assert why in finding.why
    if pairs < 2:
        assert finding.estimate is None
        return
    half = stats.t.ppf(0.975, pairs - 1) * spread / pairs**0.5
    assert (finding.estimate, finding.low, finding.high) == pytest.approx((effect, effect - half, effect + half))


def test_runs_of_another_size_decide_nothing(tmp_path):
    finding = c1(study_with(tmp_path, 1.0, 0.2, 3, profile="laptop"))
    assert finding.verdict == "inconclusive" and "another size" in finding.why
    assert finding.estimate == pytest.approx(1.0)


def test_a_claim_without_truth_is_rarely_borne_out():
    """At no gain the interval lies above 0 in 2.5 % of the cases; the criterion adds no more."""
    random, n = np.random.default_rng(1), 2000
    differences = random.normal(0, 1, (n, 10))
    half = stats.t.ppf(0.975, 9) * differences.std(1, ddof=1) / 10**0.5
    verdicts = [claims.judge_gain(m - h, m + h, 0.5) for m, h in zip(differences.mean(1), half, strict=True)]
    assert stats.binomtest(verdicts.count("reproduced"), n, 0.025).pvalue > 0.001


def test_published_values_are_those_of_the_paper(tmp_path):
    findings = {each.claim.number: each for each in claims.ledger(study_with(tmp_path, 0, 1, 0))}
    assert list(findings) == [f"C{number}" for number in range(1, 8)]
    assert "+1.10 points" in findings["C1"].published and "+0.83 points" in findings["C1"].published
    assert findings["C2"].published.startswith("10.8 times")
    assert findings["C2"].estimate == pytest.approx(88.0 / 58.7, abs=0.002)  # million multiply-accumulates
    assert "-0.16 points" in findings["C3"].published
    assert findings["C4"].published.startswith("+1.24 points")
    assert findings["C7"].estimate == pytest.approx(10)


def test_the_ledger_has_every_statistic_and_figure_once(tmp_path):
    study = study_with(tmp_path, 0.3, 1.0, 10)
    claims.write_ledger(study)
    text = (study.figures / "ledger.md").read_text()
    rows = published.recomputed()
    names = rows.statistic + rows.unit.map(lambda unit: f" ({unit})" if unit else "")
    for name in [*names, *claims.published_figures()["item"]]:
        assert text.count(f"\n| {name} |") == 1, name
    page = (study.figures / "ledger.html").read_text()
    assert "http" not in page and '<td class="inconclusive">' in page
    # In Markdown each table has one line more: the rule under its head.
    assert page.count("<tr>") == text.count("\n| ") - page.count("<table>")


def test_a_figure_is_drawn_anew_or_a_reason_is_given():
    table = claims.published_figures()
    assert ((table.notebook != "") ^ (table.reason != "")).all()
    assert set(table.notebook) - {""} <= set(experiments.NOTEBOOKS)
    assert (table.source != "").all()


def test_each_claim_points_to_a_section_that_exists(tmp_path):
    for finding in claims.ledger(study_with(tmp_path, 0, 1, 0)):
        if finding.claim.section:
            (path,) = (ROOT / "notebooks").glob(f"{finding.claim.notebook}_*.ipynb")
            cells = nbformat.read(path, 4).cells
            text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
            assert finding.claim.section in re.findall(r"^#+ (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize(("effect", "verdict"), [(1.0, "reproduced"), (0.0, "not reproduced")])
def test_released_signals_have_a_verdict_of_their_own(tmp_path, effect, verdict):
    """As described the gain is large; what the controls with released signals show does not touch that verdict."""
    study = study_with(tmp_path, 1.0, 0.2, 10)
    unlike = {"": 0.0, "released": effect}
    for item in experiments.controls(study.plan):
        name, variant = item.labels["arm"], item.labels["variant"]
        if (name, variant) == ("KD+IG", "released"):
            noise = [-1, 1][item.labels["seed"] % 2] / 1000
            accuracy = 0.9 + item.labels["seed"] / 1000 + unlike[variant] / 100 + noise
            outcome = {"accuracy": accuracy, "n_train": 40_000, "n_test": 10_000}
            study.store.add(Record(item.run, outcome, {"seconds": 1.0}), "controls")
    finding = c1(study)
    assert finding.verdict == "reproduced"
    assert (finding.released.verdict, finding.released.n) == (verdict, 10)
    assert finding.released.estimate == pytest.approx(effect)
    row = claims.as_table(claims.ledger(study)).loc["C1"]
    assert row["as released"] == verdict and row["as released, here"].endswith("n = 10")


def test_claims_without_released_runs_have_a_dash(tmp_path):
    table = claims.as_table(claims.ledger(study_with(tmp_path, 0, 1, 0)))
    assert {claim for claim, text in table["as released"].items() if text != "–"} == {"C1", "C3"}
    assert table.loc["C1", "as released"] == "inconclusive"  # declared, and not recorded
