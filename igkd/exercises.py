"""Tells a student whether the answer to an exercise of the notebooks is right, and if not, which way to look.

``print(check("03.1", kd_loss))`` in a notebook; exercises that are not in `EXERCISES` are open. Each is a function that
returns the answer as numbers, the truth, and hints: ``{hint: what comes out of the mistake}``.
"""

import copy
import inspect
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy import integrate, stats
from statsmodels.stats.power import TTestIndPower, TTestPower
from torch.nn import functional as F

from igkd.errors import InputError
from igkd.losses import distillation_loss


class Hint(Exception):
    """The answer cannot be compared with the truth; the text says why."""


# Mistakes that are made in several exercises.
NO_SOFTMAX = "a softmax is missing: logits are no probabilities yet"
NO_FACTOR = "that is a cross-entropy, and it lacks the factor that makes up for the temperature"
ONE_ARM = "the spread is that of the runs of one arm; here it is the differences of pairs that vary"


def check(exercise: str, answer, **given) -> str:
    """Is this the right answer?

    Parameters
    ----------
    exercise : str
        Its number, for example ``"03.1"``: the first exercise of notebook 03.
    answer
        What the exercise asks for. ``...`` or None: not answered yet.
    **given
        What the check needs of the notebook, as in the cell below its exercises.

    Raises
    ------
    InputError
        If there is no check of this number, or something else is given than it needs.
    """
    if exercise not in EXERCISES:
        raise InputError(f"exercise {exercise} has no check; those that have one are {', '.join(sorted(EXERCISES))}")
    asked, judge, rtol = EXERCISES[exercise]
    needed = list(inspect.signature(judge).parameters)[1:]
    if set(given) != set(needed):
        besides = ", ".join(f"{name}={name}" for name in needed) or "nothing"
        raise InputError(f"the check of {exercise} needs, besides the answer, {besides}")
    if answer is None or answer is ...:
        return f"{exercise}: not answered yet; hand in {asked}"
    try:
        hint = _compare(*judge(answer, **given), rtol)
    except Hint as raised:
        hint = str(raised)
    return f"{exercise}: not right: {hint}" if hint else f"{exercise}: right"


def _compare(answer, truth, hints: dict, rtol: float) -> str | None:
    """None if the answer is the truth, else the hint of the mistake that it is equal to.

    A tuple among `hints` are several ways to make a mistake. One that does not show in these numbers does no harm,
    because the truth is looked at first.
    """
    found, truth = _numbers(answer).squeeze(), _numbers(truth)

    def equals(other: np.ndarray) -> bool:
        atol = rtol * np.abs(np.nan_to_num(other)).max()
        return found.shape == other.shape and np.allclose(found, other, rtol=0, atol=atol, equal_nan=True)

    if equals(truth):
        return None
    for hint, values in hints.items():
        if any(equals(_numbers(value)) for value in (values if isinstance(values, tuple) else (values,))):
            return hint
    if equals(-truth):
        return "the sign is the other way round"
    if found.shape != truth.shape:
        expected = f"numbers of the shape {truth.shape} are" if truth.ndim else "a single number is"
        return f"{expected} expected, not numbers of the shape {found.shape}"
    if truth.ndim or np.isnan(found):
        return "the shape is right, the numbers are not; work a small case by hand"
    return f"{found:.4g} is too {'large' if found > truth else 'small'}"


def _numbers(value) -> np.ndarray:
    try:
        return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, dtype=float)
    except (TypeError, ValueError) as error:
        raise Hint(f"numbers are expected, not {type(value).__name__} {str(value)[:60]!r}") from error


def _call(function, *arguments):
    """What a function that was handed in makes of copies of the arguments."""
    if not callable(function):
        raise Hint(f"hand in the function itself, not {type(function).__name__}")
    try:
        return function(*copy.deepcopy(arguments))
    except Exception as error:  # whatever a student's function may raise
        raise Hint(f"the function stops with {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _planned(by_seed: pd.DataFrame, solve: Callable) -> tuple[float, dict]:
    """What a power analysis of KD+IG against Student in pairs finds, and what the wrong test or spread would find.

    `solve` takes a power analysis of statsmodels and a standard deviation.
    """
    if lacking := sorted({"KD+IG", "Student"} - set(by_seed)):
        raise Hint(f"the table has no runs of {' and '.join(lacking)}; train them, or open a profile that has them")
    arms = by_seed[["KD+IG", "Student"]].dropna()
    pairs, pooled = arms.eval("`KD+IG` - Student").std(), arms.var().mean() ** 0.5
    return solve(TTestPower(), pairs), {
        "that is for runs that are not compared in pairs": solve(TTestIndPower(), pooled),
        "the spread is that of the pairs, but the test is not the paired one": solve(TTestIndPower(), pairs),
        ONE_ARM: tuple(solve(TTestPower(), sd) for sd in (*arms.std(), pooled)),
    }


def _pairs_needed(answer, runs: pd.DataFrame):
    by_seed = runs.pivot(index="seed", columns="arm", values="accuracy")
    truth, hints = _planned(by_seed, lambda test, sd: np.ceil(test.solve_power(0.003 / sd, alpha=0.05, power=0.8)))
    return answer, truth, hints | {"0.3 points are not 0.3: accuracies here are fractions": 2}


def _soften(answer):
    logits, temperature = 4 * _normal(3, 5, 10), 2.5
    soft = logits / temperature
    hints = {
        "a temperature above 1 should bring the classes nearer to each other": (logits * temperature).softmax(1),
        "one image's output does not add up to 1; what does the temperature divide?": logits.softmax(1) / temperature,
        "the shares add up to 1 over the images; they should over the classes of one image": soft.softmax(0),
        NO_SOFTMAX: (soft, soft.exp(), soft / soft.sum(1, keepdim=True)),
    }
    return _call(answer, logits, temperature), soft.softmax(1), hints


def _entropy_of_soft_outputs(answer, logits: torch.Tensor):
    def entropy(temperature: float) -> float:
        return stats.entropy((logits.double() / temperature).softmax(1).numpy(), axis=1).mean()

    hints = {
        "that is in bits": entropy(20) / np.log(2),
        "that is the entropy at a temperature of 1": entropy(1),
        "the temperature divides the logits, it does not multiply them": entropy(1 / 20),
        NO_SOFTMAX: np.nan,  # the logarithm of a negative number
    }
    return answer, entropy(20), hints


def _trapezoid(answer):
    inner, outer, x, baseline = _normal(0, 6, 8), _normal(1, 8), _normal(2, 6), 0.3 * _normal(3, 6)

    def f(points: torch.Tensor) -> torch.Tensor:
        return torch.tanh(points @ inner) @ outer

    def ig(n: int, start: torch.Tensor = baseline, rule=integrate.trapezoid) -> np.ndarray:
        points = (start + torch.linspace(0, 1, n)[:, None] * (x - start)).requires_grad_()
        (gradients,) = torch.autograd.grad(f(points).sum(), points)
        return rule(gradients.numpy(), dx=1 / (n - 1), axis=0) * (x - start).numpy()

    hints = {
        "that is the mean gradient on the path; what else stands in the formula?": ig(4) / (x - baseline).numpy(),
        "do your weights add up to 1? A constant gradient should come out as it is": ig(4) * 3 / 4,
        "n_points counts the points, both ends among them, not the intervals": ig(5),
        "the ends of the path count half in the trapezoid rule": ig(4, rule=lambda y, dx, axis: y.mean(axis)),
        "the path starts at 0, not at the baseline": ig(4, torch.zeros(6)),
        "the mean gradient is multiplied by x; by what in the formula?": ig(4) / (x - baseline).numpy() * x.numpy(),
        "attributions have a sign; only the map takes absolute values": np.abs(ig(4)),
    }
    return _call(answer, f, x, baseline, 4), ig(4), hints


def _seen(answer):
    image, ig_map = _normal(0, 3, 6, 8).sigmoid(), 0.2 + 0.1 * _normal(1, 6, 8).square()
    scaled = (ig_map - ig_map.min()) / (ig_map.max() - ig_map.min())

    def both(picture: torch.Tensor, mirrored: torch.Tensor | None = None) -> torch.Tensor:
        return torch.stack([picture, picture.flip(-1) if mirrored is None else mirrored])

    seen = (image + scaled) / 2
    hints = {
        "the map is laid over as it is; which range has it, and which has the image?": both((image + ig_map) / 2),
        "the least value of the map should become 0": both((image + ig_map / ig_map.max()) / 2),
        "the image is mirrored, and its map stays where it is": both(seen, (image.flip(-1) + scaled) / 2),
        "nothing is mirrored where mirror is True": both(seen, seen),
        "a mirror exchanges left and right, not top and bottom": both(seen, seen.flip(-2)),
        "image and map are averaged, so that the sum stays in [0, 1]": both(2 * seen),
    }
    return [_numbers(_call(answer, image, ig_map, mirror)) for mirror in (False, True)], both(seen), hints


def _kd_loss(answer):
    student, teacher, temperature = 2 * _normal(0, 6, 5), 2 * _normal(1, 6, 5), 3.0
    soft_student, p = student / temperature, (teacher / temperature).softmax(1)
    truth, squared = distillation_loss(student, teacher, temperature), temperature**2
    weak, hard = (truth / squared, truth / temperature), squared * distillation_loss(student, teacher, 1.0)
    cross_entropy = -(p * soft_student.log_softmax(1)).sum(1).mean()
    raw = [F.kl_div(soft_student, p, reduction="batchmean"), -(p * soft_student).sum(1).mean()]
    raw += [-(teacher / temperature * soft_student.log_softmax(1)).sum(1).mean()]
    hints = {
        "its gradient shrinks as the temperature grows; which factor makes up for that?": weak,
        "whose probabilities weigh the logarithms?": distillation_loss(teacher, student, temperature),
        "the mean is over images and classes; a divergence is a sum over classes": truth / student.shape[1],
        "the loss of a batch is the mean over its images": truth * len(student),
        "the temperature divides the logits of both before the softmax": hard,
        "that is a cross-entropy; it is not 0 where student and teacher agree": squared * cross_entropy,
        NO_FACTOR: cross_entropy,
        NO_SOFTMAX: (*raw, *(squared * value for value in raw), np.nan),
    }
    return _call(answer, student, teacher, temperature), truth, hints


def _gain(answer):
    rng = np.random.default_rng(0)
    seeds = {"Student": range(6), "KD": range(6), "KD+IG": range(1, 5)}
    rows = [(arm, seed, 0.9 + 0.01 * rng.random()) for arm, shared in seeds.items() for seed in shared]
    runs = pd.DataFrame(rows, columns=["arm", "seed", "accuracy"])
    best, mean = (getattr(runs.groupby("arm").accuracy, name)() for name in ("max", "mean"))
    truth = 100 * runs.pivot(index="seed", columns="arm", values="accuracy").eval("`KD+IG` - Student").mean()
    hints = {
        "that is best against best; the more runs, the better the best": 100 * (best["KD+IG"] - best["Student"]),
        "that takes in seeds that only one of the arms has": 100 * (mean["KD+IG"] - mean["Student"]),
        "that is a fraction; points are asked for": truth / 100,
    }
    return _call(answer, runs), truth, hints


def _weight(answer):
    share, hard, attention = 0.2, 1.6, 0.004
    truth = share * hard / ((1 - share) * attention)
    hints = {
        "that is its share of the cross-entropy; the sum has the attention term in it, too": share * hard / attention,
        "that gives attention the share of the cross-entropy": (1 - share) * hard / (share * attention),
        "which of the two gradients does the weight make larger?": 1 / truth,
        "that makes both equal, whatever the share": hard / attention,
    }
    return _call(answer, share, hard, attention), truth, hints


def _found_with_ten_pairs(answer, by_seed: pd.DataFrame):
    truth, hints = _planned(by_seed, lambda test, sd: 100 * sd * test.solve_power(None, 10, alpha=0.05, power=0.8))
    return answer, truth, hints | {"that is a fraction; points are asked for": truth / 100}


def _sign_flip_p(answer):
    rng, n = np.random.default_rng(0), 7
    shared = rng.normal(0.9, 0.004, n)
    a, b = shared + rng.normal(0.001, 0.0015, n), shared + rng.normal(0, 0.0005, n)

    def p(kind: str) -> float:
        return stats.permutation_test((a, b), lambda x, y: x.mean() - y.mean(), permutation_type=kind).pvalue

    truth = p("samples")
    hints = {
        "a difference in the other direction counts, too": truth / 2,
        "flips that come out as far as the runs themselves count, too": truth - 2 / 2**n,
        "what is flipped stays within its pair": p("independent"),
        "that is the t-test": stats.ttest_rel(a, b).pvalue,
    }
    return _call(answer, a, b), truth, hints


def _balanced(answer):
    counts = np.array([[30, 4, 0, 6], [10, 70, 0, 5], [0, 0, 0, 0], [1, 2, 2, 9]])
    right, of_class, answered, occurs = np.diag(counts), counts.sum(1), counts.sum(0), counts.sum(1) > 0
    hints = {
        "that is plain accuracy: a class with many images counts for more": right.sum() / counts.sum(),
        "that divides by the answers (precision)": ((right / answered).mean(), (right / answered)[occurs].mean()),
        "a class without images counts as one that is always wrong": (right[occurs] / of_class[occurs]).sum() / 4,
        "a class without images leaves 0 / 0: what should become of it?": np.nan,
    }
    return _call(answer, counts), (right[occurs] / of_class[occurs]).mean(), hints


def _speedup(answer):
    rng, drift = np.random.default_rng(0), np.linspace(1, 1.6, 10)
    student, teacher = (milliseconds * drift * rng.uniform(0.95, 1.05, 10) for milliseconds in (4, 6))
    teacher[[0, 4]] *= 12, 3  # the first call sets PyTorch up, the other was disturbed by something else
    steady = teacher[1:] / student[1:]
    hints = {
        "the first round is not left out": (np.median(teacher / student), teacher.mean() / student.mean()),
        "one disturbed call moves a mean": (steady.mean(), teacher[1:].mean() / student[1:].mean()),
        "the machine slows down: compare within each round": np.median(teacher[1:]) / np.median(student[1:]),
        "that is student over teacher": np.median(1 / steady),
    }
    return _call(answer, teacher, student), np.median(steady), hints


def _least_loss(answer):
    logits, temperature = 3 * _normal(0, 40, 5) + torch.arange(5), 2.5
    soft = (logits / temperature).softmax(1).numpy()
    own, squared = stats.entropy(soft, axis=1).mean(), temperature**2
    truth = squared * (stats.entropy(soft.mean(0)) - own)
    hints = {
        "the distillation loss has a factor that goes with the temperature": truth / squared,
        "that is a cross-entropy; the teacher's own uncertainty is no fault of the student": truth + squared * own,
        NO_FACTOR: truth / squared + own,
        NO_SOFTMAX: np.nan,
        "a student that gives all classes the same does worse than it must": squared * (np.log(5) - own),
    }
    return _call(answer, logits, temperature), truth, hints


#: Number -> what to hand in; the function, which takes the answer and by keyword what else of the notebook it needs;
#: how far numbers may be from the truth, as a share of it.
EXERCISES: dict[str, tuple[str, Callable, float]] = {
    "00.2": ("the number of pairs of runs", _pairs_needed, 0.01),
    "00.3": ("a function soften(logits, temperature)", _soften, 1e-4),
    "01.3": ("the mean entropy in nats, to three decimals", _entropy_of_soft_outputs, 5e-4),  # it is close to ln K
    "02.2": ("a function ig(f, x, baseline, n_points)", _trapezoid, 1e-4),
    "02.3": ("a function seen(image, ig_map, mirror)", _seen, 1e-4),
    "03.1": ("a function kd_loss(student_logits, teacher_logits, temperature)", _kd_loss, 1e-4),
    "03.2": ("a function gain(runs)", _gain, 1e-4),
    "04.4": ("a function weight(share, hard, attention)", _weight, 1e-4),
    "05.3": ("the difference in points", _found_with_ten_pairs, 0.01),
    "05.4": ("a function sign_flip_p(a, b)", _sign_flip_p, 1e-4),
    "06.3": ("a function balanced(confusion)", _balanced, 1e-4),
    "07.2": ("a function speedup(teacher, student)", _speedup, 1e-4),
    "08.1": ("a function least_loss(teacher_logits, temperature)", _least_loss, 1e-4),
}
