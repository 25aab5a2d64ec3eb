"""The check of the exercises: solutions as students write them, right ones and ones with a mistake that is easily made."""

import re
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import rel_entr
from scipy.special import softmax as softmax_of
from statsmodels.stats.power import TTestIndPower, TTestPower

from igkd.check import EXERCISES, check
from igkd.errors import InputError
from igkd.methods import ARMS, Method
from igkd.models import Architecture

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))

# What the notebooks hand in beside the answers.
ACCURACY = {
    "Student": [0.912, 0.905, 0.917, 0.909, 0.914],
    "KD": [0.915, 0.911, 0.918, 0.910, 0.919],
    "KD+IG": [0.919, 0.909, 0.920, 0.917, 0.916],
}
BY_SEED = pd.DataFrame(ACCURACY)
RUNS = BY_SEED.rename_axis("seed").melt(ignore_index=False, var_name="arm", value_name="accuracy").reset_index()
PAIRS = BY_SEED["KD+IG"] - BY_SEED["Student"]
POOLED = ((BY_SEED["KD+IG"].var() + BY_SEED["Student"].var()) / 2) ** 0.5
LOGITS = 5 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
GIVEN = {
    "00.2": {"runs": RUNS},
    "01.3": {"logits": LOGITS},
    "04.2": {"positions": 64},
    "05.3": {"by_seed": BY_SEED},
}


def pairs_needed(difference):
    return int(np.ceil(TTestPower().solve_power(difference / PAIRS.std(), power=0.8, alpha=0.05)))


def runs_needed(difference, sd):
    return int(np.ceil(TTestIndPower().solve_power(difference / sd, power=0.8, alpha=0.05)))


def found_by(n):
    return 100 * PAIRS.std() * TTestPower().solve_power(nobs=n, power=0.8, alpha=0.05)


def entropy(logits, temperature):
    p = softmax_of(logits.double().numpy() / temperature, axis=1)
    return float(-(p * np.log(p)).sum(1).mean())


def ig(f, x, baseline, n_points, weights=None, times=None):
    nodes = torch.linspace(0, 1, n_points, dtype=x.dtype)
    weights = torch.full((n_points,), 1 / (n_points - 1), dtype=x.dtype) if weights is None else weights
    if times is None:
        weights[0], weights[-1] = weights[0] / 2, weights[-1] / 2
    total = torch.zeros_like(x)
    for node, weight in zip(nodes, weights):
        point = (baseline + node * (x - baseline)).requires_grad_()
        (gradient,) = torch.autograd.grad(f(point[None]).sum(), point)
        total += weight * gradient
    return total * (x - baseline)


def seen(image, ig_map, mirror):
    scaled = (ig_map - ig_map.min()) / (ig_map.max() - ig_map.min())
    picture = 0.5 * image + 0.5 * scaled
    return picture[:, :, range(picture.shape[2] - 1, -1, -1)] if mirror else picture


def seen_with_a_map_that_stays(image, ig_map, mirror):
    return seen(image.flip(2) if mirror else image, ig_map, False)


def kd_loss(student, teacher, temperature):
    p, q = (softmax_of(logits.numpy() / temperature, axis=1) for logits in (teacher, student))
    return temperature**2 * rel_entr(p, q).sum() / len(p)


def gain(runs):
    wide = runs.pivot(index="seed", columns="arm", values="accuracy")
    return 100 * (wide["KD+IG"] - wide["Student"]).mean()


def attention(activation):
    q = (activation**2).sum(1).reshape(len(activation), -1)
    return q / (q**2).sum(1, keepdim=True) ** 0.5


def paired_p(a, b):
    return stats.ttest_1samp(a - b, 0).pvalue


def balanced(confusion):
    return np.mean([row[i] / row.sum() for i, row in enumerate(confusion) if row.sum()])


def speedup(teacher, student):
    return np.median([t / s for t, s in zip(teacher[1:], student[1:])])


def nats(p):
    return -(p * p.log()).sum(-1)


def least_loss(logits, temperature):
    p = (logits / temperature).softmax(1)
    return temperature**2 * (nats(p.mean(0)) - nats(p).mean())


def whose_map(labels, seed):
    rng, order = np.random.default_rng(seed), np.empty(len(labels), int)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        order[members] = np.roll(members, 1)
    return order


def shuffled_in_its_class(labels, seed):
    rng, order = np.random.default_rng(seed), np.empty(len(labels), int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order[members] = rng.permutation(members)
    return order


def drawn_from_its_class(labels, seed):
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(labels))
    return [rng.choice(everyone[(labels == label) & (everyone != i)]) for i, label in enumerate(labels)]


def in_place(student, teacher, temperature):
    student /= temperature
    teacher /= temperature
    return temperature**2 * kd_loss(student, teacher, 1)


def softened(logits, temperature):
    powers = torch.exp(logits / temperature)
    return powers / powers.sum(1, keepdim=True)


CLASSES = ("airplane", "automobile", "bird", "cat", "dog", "frog", "ship", "truck")
EQUAL = dict.fromkeys(CLASSES, 1)
# Bird is 5.69 points behind, truck 4.55 ahead (imagenet_subset.csv).
BIRD_AND_TRUCK = dict.fromkeys(CLASSES, 0) | {"bird": 455, "truck": 569}
IMAGES = dict(zip(CLASSES, (126, 377, 2125, 203, 347, 99, 194, 66)))
LIGHTER = Method(alpha=0.01, temperature=2.5, overlay_prob=0.1, overlay_weight=0.2)

RIGHT = [
    ("00.2", pairs_needed(0.003)),
    ("00.3", softened),
    ("01.1", 7),
    ("01.3", round(entropy(LOGITS, 20), 3)),
    ("02.2", ig),
    ("02.3", seen),
    ("03.1", kd_loss),
    ("03.1", in_place),
    ("03.2", gain),
    ("03.3", LIGHTER),
    ("04.2", 0.0125),
    ("04.4", attention),
    ("05.3", round(found_by(10), 2)),
    ("05.4", paired_p),
    ("06.2", BIRD_AND_TRUCK),
    ("06.3", balanced),
    ("07.2", speedup),
    ("07.3", Architecture(1, 0.81)),
    ("08.1", least_loss),
    ("08.2", whose_map),
]
WRONG = [
    ("00.2", runs_needed(0.003, POOLED), "not compared in pairs"),
    ("00.2", runs_needed(0.003, PAIRS.std()), "no pairs"),
    ("00.2", pairs_needed(0.3 * PAIRS.std()), "too large"),
    ("00.2", 2, "fractions"),
    ("00.3", lambda z, t: (z * t).softmax(1), "sharper"),
    ("00.3", lambda z, t: z.softmax(1) / t, "add up to 1"),
    ("00.3", lambda z, t: (z / t).softmax(0), "over the images"),
    ("01.1", 3, "parameters"),
    ("01.1", 9, "first time"),
    ("01.1", 5, "too small"),
    ("01.3", entropy(LOGITS, 20) / np.log(2), "bits"),
    ("01.3", entropy(LOGITS, 1), "temperature of 1"),
    ("01.3", entropy(LOGITS, 1 / 20), "not multiply"),
    ("01.3", np.log(10), "knows nothing"),
    ("01.3", float(nats((LOGITS / 20).softmax(1).mean(0))), "mixed"),
    ("02.2", lambda f, x, b, n: ig(f, x, b, n) / (x - b), "mean gradient"),
    ("02.2", lambda f, x, b, n: ig(f, x, b, n) * (n - 1) / n, "add up to 1"),
    ("02.2", lambda f, x, b, n: ig(f, x, b, n, torch.full((n,), 1 / n), times=1), "both ends"),
    ("02.2", lambda f, x, b, n: ig(f, x, torch.zeros_like(b), n), "starts at 0"),
    ("02.2", lambda f, x, b, n: ig(f, x, b, n + 1), "not the intervals"),
    ("02.2", lambda f, x, b, n: ig(f, x, b, n).abs(), "sign"),
    ("02.3", seen_with_a_map_that_stays, "its map stays"),
    ("02.3", lambda image, m, mirror: seen(image, m, False), "nothing is mirrored"),
    ("02.3", lambda image, m, mirror: seen(image, m, False).flip(1) if mirror else seen(image, m, False), "up and down"),
    ("02.3", lambda image, m, mirror: (image + m) / 2, "range"),
    ("02.3", lambda image, m, mirror: (image + m / m.max()) / 2, "least value"),
    ("03.1", lambda s, t, T: kd_loss(s, t, T) / T**2, "gradient shrinks"),
    ("03.1", lambda s, t, T: kd_loss(s, t, T) / T, "one factor T"),
    ("03.1", lambda s, t, T: kd_loss(t, s, T), "direction"),
    ("03.1", lambda s, t, T: kd_loss(s, t, T) / s.shape[1], "sum over classes"),
    ("03.1", lambda s, t, T: kd_loss(s, t, T) * len(s), "batch size"),
    ("03.1", lambda s, t, T: -T**2 * ((t / T).softmax(1) * (s / T).log_softmax(1)).sum(1).mean(), "cross-entropy"),
    ("03.1", lambda s, t, T: T**2 * torch.nn.KLDivLoss(reduction="batchmean")((s / T).softmax(1), (t / T).softmax(1)),
     "takes the logarithm"),
    ("03.2", lambda runs: 100 * runs.groupby("arm").accuracy.max().loc[["Student", "KD+IG"]].diff().iloc[1], "best"),
    ("03.2", lambda runs: 100 * runs.groupby("arm").accuracy.mean().loc[["Student", "KD+IG"]].diff().iloc[1], "seeds"),
    ("03.2", lambda runs: gain(runs) / 100, "fraction"),
    ("03.2", lambda runs: -gain(runs), "sign"),
    ("03.3", replace(ARMS["KD+IG"], overlay_prob=0.2), "share of the images"),
    ("03.3", replace(ARMS["KD+IG"], overlay_weight=0.8), "image should have"),
    ("03.3", Method(overlay_weight=0.2), "no effect"),
    ("03.3", replace(ARMS["IG"], overlay_weight=0.2), "soft targets"),
    ("03.3", replace(LIGHTER, gamma=0.8), "look at: gamma"),
    ("03.3", 0.2, "hand in Method"),
    ("04.2", 51.2, "larger or smaller"),
    ("04.2", 0.1, "rows and columns"),
    ("04.2", 0.025, "adds to the loss"),
    ("04.4", lambda a: torch.nn.functional.normalize(a.abs().sum(1).flatten(1)), "instead of squares"),
    ("04.4", lambda a: torch.nn.functional.normalize(a.sum(1).square().flatten(1)), "before they are squared"),
    ("04.4", lambda a: a.square().mean(1).flatten(1), "length 1"),
    ("04.4", lambda a: a.square().sum(1).flatten(1) / a.square().sum((1, 2, 3))[:, None], "their squares"),
    ("05.3", found_by(10) / 100, "fraction"),
    ("05.3", 100 * stats.t.ppf(0.975, 9) * PAIRS.std() / 10**0.5, "half of the time"),
    ("05.3", found_by(len(PAIRS)), "not for 10"),
    ("05.3", 100 * POOLED * TTestIndPower().solve_power(nobs1=10, power=0.8, alpha=0.05), "not compared in pairs"),
    ("05.4", lambda a, b: stats.ttest_ind(a, b, equal_var=False).pvalue, "Welch"),
    ("05.4", lambda a, b: stats.ttest_ind(a, b).pvalue, "independent runs"),
    ("05.4", lambda a, b: stats.ttest_rel(a, b, alternative="greater").pvalue, "one-sided"),
    ("05.4", lambda a, b: 2 * stats.norm.sf(abs(stats.ttest_rel(a, b).statistic)), "normal"),
    ("05.4", lambda a, b: 2 * stats.t.sf(abs((a - b).mean() / (a - b).std() * len(a) ** 0.5), len(a) - 1), "divides by n"),
    ("06.2", EQUAL, "balanced"),
    ("06.2", IMAGES, "plain accuracy"),
    ("06.2", EQUAL | {"bird": 20}, "Student is"),
    ("06.2", EQUAL | {"bird": -1}, "negative"),
    ("06.2", {"bird": 1}, "weights are needed for airplane"),
    ("06.3", lambda c: np.trace(c) / c.sum(), "plain accuracy"),
    ("06.3", lambda c: np.nanmean(np.diag(c) / c.sum(0)), "precision"),
    ("06.3", lambda c: (np.diag(c) / c.sum(1).clip(1)).mean(), "always wrong"),
    ("06.3", lambda c: (np.diag(c) / c.sum(1)).mean(), "0 / 0"),
    ("07.2", lambda t, s: t[0] / s[0], "first calls"),
    ("07.2", lambda t, s: np.median(t / s), "first round"),
    ("07.2", lambda t, s: t[1:].mean() / s[1:].mean(), "mean"),
    ("07.2", lambda t, s: np.median(t[1:]) / np.median(s[1:]), "within each round"),
    ("07.2", lambda t, s: np.median(s[1:] / t[1:]), "student over teacher"),
    ("07.3", Architecture(1, 0.54), "parameters"),
    ("07.3", Architecture(1, 0.9), "more operations"),
    ("07.3", Architecture(1, 0.7), "fewer operations"),
    ("07.3", Architecture(5), "Architecture(1, width)"),
    ("08.1", lambda z, T: least_loss(z, T) / T**2, "factor"),
    ("08.1", lambda z, T: T**2 * nats((z / T).softmax(1).mean(0)), "cross-entropy"),
    ("08.1", lambda z, T: T**2 * least_loss(z, 1), "at a temperature"),
    ("08.1", lambda z, T: kd_loss(z.mean(0).expand_as(z), z, T), "not of logits"),
    ("08.1", lambda z, T: kd_loss(torch.zeros_like(z), z, T), "all classes the same"),
    ("08.2", lambda labels, seed: np.random.default_rng(seed).permutation(len(labels)), "another class"),
    ("08.2", shuffled_in_its_class, "keep their own"),
    ("08.2", drawn_from_its_class, "more than once"),
    ("08.2", lambda labels, seed: whose_map(labels, 0), "all seeds"),
    ("08.2", lambda labels, seed: whose_map(labels, None), "the second time"),
    ("08.2", lambda labels, seed: labels[whose_map(labels, seed)][:-1], "index"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "answer"), RIGHT, ids=[number for number, _ in RIGHT])
def test_a_right_answer_is_right(number, answer):
    verdict = check(number, answer, **GIVEN.get(number, {}))
    assert verdict.right is True, verdict
    assert str(verdict) == f"{number}: right"


@pytest.mark.parametrize(("number", "answer", "hint"), WRONG, ids=[f"{number} {hint}" for number, _, hint in WRONG])
def test_a_wrong_answer_gets_the_hint_for_its_mistake(number, answer, hint):
    verdict = check(number, answer, **GIVEN.get(number, {}))
    assert verdict.right is False, verdict
    assert hint in str(verdict)
    assert "\n" not in str(verdict)


def test_every_check_is_tested_both_ways():
    assert {number for number, _ in RIGHT} == {number for number, *_ in WRONG} == set(EXERCISES)


@pytest.mark.parametrize("number", sorted(EXERCISES))
@pytest.mark.parametrize("nothing", [None, ...])
def test_without_an_answer_it_says_what_is_asked_for(number, nothing):
    verdict = check(number, nothing, **GIVEN.get(number, {}))
    assert verdict.right is None
    assert str(verdict) == f"{number}: not answered yet; hand in {EXERCISES[number].asked}"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (0.5, "hand in the function itself, not float 0.5"),
        (lambda student: 0, "TypeError"),
        (lambda s, t, T: None.missing, "AttributeError"),
        (lambda s, t, T: "0.1 nats", "numbers are expected"),
        (lambda s, t, T: s, "the shape (6, 5), expected is ()"),
        (lambda s, t, T: torch.tensor(float("nan")), "not finite"),
        (lambda s, t, T: 1e9, "1e+09 is too large"),
    ],
)
def test_what_is_no_answer_is_told_apart(answer, told):
    assert told in str(check("03.1", answer))


def test_an_unknown_exercise_and_what_it_lacks_are_named():
    with pytest.raises(InputError, match=r"03\.9 has no check; .* 00\.2, 00\.3, 01\.1"):
        check("03.9", 1)
    with pytest.raises(InputError, match=r'check\("04\.2", answer, positions=positions\)'):
        check("04.2", 1)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_notebook_hands_in_what_is_checked(path):
    """Each check has an exercise of its number, each notebook two of them and one that is open, and its cell says so."""
    cells = nbformat.read(path, as_version=4).cells
    (text,) = [cell.source.split("## Exercises")[1] for cell in cells if "## Exercises" in cell.source]
    posed = {f"{path.stem[:2]}.{number}" for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)}
    (handed_in,) = [cell for cell in cells if "from igkd.check import check" in cell.source]
    checked = re.findall(r'check\("([\d.]+)", \.\.\.', handed_in.source)
    assert checked == sorted(number for number in EXERCISES if number[:2] == path.stem[:2])
    assert len(checked) >= 2
    assert posed > set(checked)
    # What it printed holds in every profile, so it is compared word for word.
    printed = "".join(shown.text for shown in handed_in.outputs)
    assert printed == "".join(f"{number}: not answered yet; hand in {EXERCISES[number].asked}\n" for number in checked)
