"""Exercises: solutions as students write them, right ones and ones with a mistake that is easily made."""

import re
from itertools import product

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.optimize import brentq
from scipy.special import rel_entr
from scipy.special import softmax as softmax_of
from statsmodels.stats.power import TTestIndPower

from igkd.exercises import EXERCISES, check
from small import NOTEBOOKS, refusal

# What the notebooks hand in beside the answers.
BY_SEED = pd.DataFrame({"Student": [0.912, 0.905, 0.917, 0.909, 0.914], "KD+IG": [0.919, 0.909, 0.920, 0.917, 0.916]})
RUNS = BY_SEED.rename_axis("seed").melt(ignore_index=False, var_name="arm", value_name="accuracy").reset_index()
PAIRS = BY_SEED["KD+IG"] - BY_SEED["Student"]
POOLED = ((BY_SEED["KD+IG"].var() + BY_SEED["Student"].var()) / 2) ** 0.5
LOGITS = 5 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
GIVEN = {"00.2": {"runs": RUNS}, "01.3": {"logits": LOGITS}, "05.3": {"by_seed": BY_SEED}}


def needed(sd):
    """Smallest number of pairs at which the noncentral t distribution gives a power of 0.8."""
    n = np.arange(2, 1000)
    return n[stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.003 / sd * n**0.5) >= 0.8][0]


def found_with_ten(sd):
    """By the noncentral t distribution; the other tail, less than 1e-5, is left out."""
    return 100 * sd * brentq(lambda d: stats.nct.sf(stats.t.ppf(0.975, 9), 9, d) - 0.8, 0.1, 9) / 10**0.5


def entropy(logits, temperature):
    p = softmax_of(logits.double().numpy() / temperature, axis=1)
    return float(-(p * np.log(p)).sum(1).mean())


def ig(f, x, baseline, n_points):
    total = torch.zeros_like(x)
    for i in range(n_points):
        point = (baseline + i / (n_points - 1) * (x - baseline)).requires_grad_()
        (gradient,) = torch.autograd.grad(f(point[None]).sum(), point)
        total += gradient / (n_points - 1) / (2 if i in (0, n_points - 1) else 1)
    return total * (x - baseline)


def seen(image, ig_map, mirror):
    """In place, which does no harm to what the check goes on with."""
    ig_map -= ig_map.min()
    image += ig_map / ig_map.max()
    return image.div_(2)[:, :, range(image.shape[2] - 1, -1, -1) if mirror else slice(None)]


def kd_loss(student, teacher, temperature):
    p, q = (softmax_of(logits.numpy() / temperature, axis=1) for logits in (teacher, student))
    return temperature**2 * rel_entr(p, q).sum() / len(p)


def gain(runs):
    wide = runs.pivot(index="seed", columns="arm", values="accuracy")
    return 100 * (wide["KD+IG"] - wide["Student"]).mean()


def sign_flip_p(a, b):
    totals = [abs(np.dot(signs, a - b)) for signs in product((1, -1), repeat=len(a))]  # the first flips nothing
    return np.mean([total >= totals[0] - 1e-12 for total in totals])


def least_loss(logits, temperature):
    """The divergence from each teacher's output to the mean output."""
    p = (logits / temperature).softmax(1).numpy()
    return temperature**2 * rel_entr(p, p.mean(0)).sum() / len(p)


RIGHT = {
    "00.2": needed(PAIRS.std()),
    "00.3": lambda z, t: torch.exp(z / t) / torch.exp(z / t).sum(1, keepdim=True),
    "01.3": round(entropy(LOGITS, 20), 3), "02.2": ig, "02.3": seen, "03.1": kd_loss, "03.2": gain,
    "05.3": round(found_with_ten(PAIRS.std()), 2), "05.4": sign_flip_p,
    "04.4": lambda share, hard, attention: brentq(lambda w: w * attention / (hard + w * attention) - share, 0, 1e6),
    "06.3": lambda c: np.mean([row[i] / row.sum() for i, row in enumerate(c) if row.sum()]),
    "07.2": lambda teacher, student: np.median([t / s for t, s in zip(teacher[1:], student[1:])]),
    "08.1": least_loss,
}  # fmt: skip
WRONG = [
    ("00.3", lambda z, t: (z * t).softmax(1), "nearer"),
    ("00.2", needed(BY_SEED["Student"].std()), "one arm"), ("01.3", entropy(LOGITS, 1 / 20), "not multiply"),
    ("02.2", lambda f, x, b, n: ig(f, x, b, n + 1), "not the intervals"),
    ("02.3", lambda image, m, mirror: seen(image.flip(2) if mirror else image, m, False), "its map stays"),
    ("03.1", lambda s, t, T: kd_loss(s, t, T) / T**2, "gradient shrinks"),
    ("03.1", lambda s, t, T: kd_loss(t, s, T), "whose"),
    ("03.1", lambda s, t, T: -T**2 * ((t / T).softmax(1) * (s / T).log_softmax(1)).sum(1).mean(), "cross-entropy;"),
    ("03.1", lambda s, t, T: T**2 * torch.nn.KLDivLoss(reduction="batchmean")(s / T, (t / T).softmax(1)), "softmax is"),
    ("03.2", lambda runs: 100 * runs.groupby("arm").accuracy.mean()[["Student", "KD+IG"]].diff().iloc[1], "seeds"),
    ("04.4", lambda share, hard, attention: share * hard / attention, "the sum has"),
    ("05.3", 100 * POOLED * TTestIndPower().solve_power(nobs1=10, power=0.8, alpha=0.05), "not compared in pairs"),
    ("05.4", lambda a, b: stats.ttest_1samp(a - b, 0).pvalue, "the t-test"),
    # what cannot be compared at all
    ("03.1", 0.5, "hand in the function itself"), ("03.2", lambda runs: -gain(runs), "the sign"),
    ("03.1", lambda s, t, T: "0.1 nats", "numbers are expected"), ("02.2", lambda *of: abs(ig(*of)), "have a sign"),
]  # fmt: skip


@pytest.mark.parametrize("number", EXERCISES)
def test_a_right_answer_is_right_and_none_says_what_is_asked_for(number):
    given = GIVEN.get(number, {})
    assert check(number, RIGHT[number], **given) == f"{number}: right"
    for nothing in (None, ...):
        verdict = check(number, nothing, **given)
        assert verdict.startswith(f"{number}: not answered") and EXERCISES[number][0] in verdict


@pytest.mark.parametrize(("number", "answer", "hint"), WRONG, ids=[f"{number} {hint}" for number, _, hint in WRONG])
def test_a_wrong_answer_gets_the_hint_for_its_mistake(number, answer, hint):
    verdict = check(number, answer, **GIVEN.get(number, {}))
    assert verdict.startswith(f"{number}: not right") and hint in verdict and "\n" not in verdict


def test_an_arm_without_runs_is_named_and_what_a_check_lacks_is_refused():
    runs, by_seed = RUNS[RUNS.arm != "KD+IG"], BY_SEED.drop(columns="KD+IG")
    for verdict in (check("00.2", 10, runs=runs), check("05.3", 10, by_seed=by_seed)):
        assert "not right" in verdict and "KD+IG" in verdict
    for number, given in (("03.9", {}), ("05.3", {}), ("03.1", {"runs": RUNS})):
        refusal(check, number, 1, **given)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_notebook_hands_in_what_is_checked(path):
    cells = nbformat.read(path, as_version=4).cells
    (text,) = [cell.source.split("## Exercises")[1] for cell in cells if "## Exercises" in cell.source]
    posed = {f"{path.stem[:2]}.{number}" for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)}
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    handed_in = re.findall(r'check\("([\d.]+)", \.\.\.(?:, (\w+)=\w+)?\)', code)
    assert [number for number, _ in handed_in] == sorted(number for number in EXERCISES if number[:2] == path.stem[:2])
    assert all({given} - {""} == set(GIVEN.get(number, {})) for number, given in handed_in)
    assert posed > {number for number, _ in handed_in}
