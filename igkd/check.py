"""Tells a student whether the answer to an exercise of the notebooks is right, and if not, which way to look.

``print(check("03.1", kd_loss))`` in a notebook; exercises that are not in `EXERCISES` are open. The truth is computed
when it is asked for, by the library, SciPy or a closed form, from the tables that a notebook hands in or from numbers
of fixed generators. It is compared with the answer, and then so is what comes out of each mistake that is easily made.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.nn import functional as F

from igkd import costs, other_images, published, statistics
from igkd.attribution import quadrature
from igkd.augment import rescale
from igkd.errors import InputError
from igkd.losses import attention_map, distillation_loss
from igkd.methods import ARMS, Method
from igkd.models import Architecture


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer; as text one line.

    Attributes
    ----------
    exercise : str
        Its number, that of the notebook first.
    right : bool or None
        None if there is no answer yet.
    said : str
    """

    exercise: str
    right: bool | None
    said: str

    def __str__(self) -> str:
        return f"{self.exercise}: {self.said}"


@dataclass(frozen=True)
class Exercise:
    """An exercise with a check.

    Attributes
    ----------
    asked : str
        What to hand in.
    judge : callable
        Takes the answer, and by keyword what else of the notebook it needs; raises `Wrong` with a hint.
    """

    asked: str
    judge: Callable[..., None]


class Wrong(Exception):
    """An answer is wrong; its text is the hint."""


EXERCISES: dict[str, Exercise] = {}


def check(exercise: str, answer, **given) -> Verdict:
    """Is this the right answer?

    Parameters
    ----------
    exercise : str
        Its number, for example ``"03.1"``: the first exercise of notebook 03.
    answer
        What the exercise asks for. ``...`` or None: not answered yet.
    **given
        What the check needs of the notebook, as in the cell below its exercises.

    Returns
    -------
    Verdict

    Raises
    ------
    InputError
        If there is no check of this number, or something else is given than it needs.
    """
    if exercise not in EXERCISES:
        raise InputError(f"exercise {exercise} has no check; those that have one are {', '.join(sorted(EXERCISES))}")
    asked, judge = EXERCISES[exercise].asked, EXERCISES[exercise].judge
    try:
        inspect.signature(judge).bind(answer, **given)
    except TypeError as error:
        needed = [f"{name}={name}" for name in list(inspect.signature(judge).parameters)[1:]]
        call = ", ".join([f'check("{exercise}", answer', *needed]) + ")"
        raise InputError(f"the check of {exercise} is called as {call} ({error})") from error
    if answer is None or answer is ...:
        return Verdict(exercise, None, f"not answered yet; hand in {asked}")
    try:
        judge(answer, **given)
    except Wrong as wrong:
        return Verdict(exercise, False, f"not right: {wrong}")
    return Verdict(exercise, True, "right")


def _exercise(number: str, asked: str):
    def register(judge: Callable[..., None]) -> Callable[..., None]:
        EXERCISES[number] = Exercise(asked, judge)
        return judge

    return register


# -- how answers are compared ----------------------------------------------------------------------


def _result(function, *arguments):
    """What a function that was handed in makes of copies of the arguments."""
    if not callable(function):
        raise Wrong(f"hand in the function itself, not {_described(function)}")
    try:
        return function(*copy.deepcopy(arguments))
    except Exception as error:  # whatever a student's function may raise
        told = (str(error).splitlines() or [""])[0]
        raise Wrong(f"the function stops with {type(error).__name__}: {told}") from error


def _compare(answer, truth, slips: Mapping[str, object], rtol: float = 1e-4) -> None:
    """Raise `Wrong` unless the answer is the truth, with the hint of the slip that it is equal to.

    Parameters
    ----------
    answer, truth : array_like or Tensor
    slips : mapping of str to array_like or Tensor
        Hint -> what comes out of a mistake; a tuple if there are several ways to make it. One that does not show in
        these numbers does no harm, because the truth is looked at first.
    rtol : float
        Relative to the largest number of what is compared with.
    """
    found, truth = _numbers(answer), _numbers(truth)
    if truth.ndim == 0 and found.size == 1:
        found = found.reshape(())

    def equals(other: np.ndarray) -> bool:
        tolerance = rtol * np.abs(np.nan_to_num(other)).max()
        return found.shape == other.shape and np.allclose(found, other, rtol=0, atol=tolerance, equal_nan=True)

    if equals(truth):
        return
    for hint, values in slips.items():
        if any(equals(_numbers(value)) for value in (values if isinstance(values, tuple) else (values,))):
            raise Wrong(hint)
    if found.shape != truth.shape:
        raise Wrong(f"the answer has the shape {found.shape}, expected is {truth.shape}")
    if not np.isfinite(found).all():
        raise Wrong("the answer is not finite")
    if truth.ndim:
        differ = ~np.isclose(found, truth, rtol=0, atol=rtol * np.abs(truth).max())
        raise Wrong(f"{differ.sum()} of {truth.size} numbers are others; work a small case by hand")
    raise Wrong(f"{found:.4g} is too {'large' if found > truth else 'small'}")


def _numbers(value) -> np.ndarray:
    try:
        return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=float)
    except (TypeError, ValueError) as error:
        raise Wrong(f"numbers are expected, not {_described(value)}") from error


def _expect(answer, kind: type) -> None:
    if not isinstance(answer, kind):
        raise Wrong(f"hand in {kind.__name__}(...), not {_described(answer)}")


def _described(value) -> str:
    return "a function" if callable(value) else f"{type(value).__name__} {value!r}".splitlines()[0][:60]


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- 00 · start here -------------------------------------------------------------------------------


@_exercise("00.2", "the number of pairs of runs")
def _pairs_needed(answer, runs: pd.DataFrame) -> None:
    by_seed = runs.pivot(index="seed", columns="arm", values="accuracy")[["KD+IG", "Student"]].dropna()
    pairs, points = by_seed["KD+IG"] - by_seed["Student"], 0.003
    arms = statistics.spread(by_seed["KD+IG"], by_seed["Student"]).estimate
    slips = {
        "0.3 points are not 0.3: accuracies here are fractions": statistics.runs_needed(0.3, pairs.std(), paired=True),
        "that many runs are needed where arms are not compared in pairs":
            statistics.runs_needed(points, arms, paired=False),
        "the spread is that of the pairs, but the test is the one for runs that are no pairs":
            statistics.runs_needed(points, pairs.std(), paired=False),
        "the test is the paired one, but the spread is that of single runs, not of differences":
            statistics.runs_needed(points, arms, paired=True),
    }  # fmt: skip
    _compare(answer, statistics.runs_needed(points, pairs.std(), paired=True), slips, rtol=0.01)


@_exercise("00.3", "a function soften(logits, temperature)")
def _soften(answer) -> None:
    logits, temperature = 4 * _normal(3, 5, 10), 2.5
    slips = {
        "a temperature above 1 makes the output sharper here; it should bring the classes nearer to each other":
            (logits * temperature).softmax(1),
        "the output of one image does not add up to 1; what is it that the temperature divides?":
            logits.softmax(1) / temperature,
        "the shares add up to 1 over the images; they should over the classes of one image":
            (logits / temperature).softmax(0),
        "the temperature has no effect": logits.softmax(1),
    }  # fmt: skip
    _compare(_result(answer, logits, temperature), (logits / temperature).softmax(1), slips)


# -- 01 · teacher ----------------------------------------------------------------------------------


@_exercise("01.1", "the number of blocks removed")
def _half_the_operations(answer) -> None:
    table = costs.sizes().set_index("blocks removed")
    halved = table.index[table["MAC ratio"] >= 2].min()
    slips = {
        "there the parameters are halved; multiplications are counted in another column":
            table.index[table["compression factor"] >= 2].min(),
        "there they have fallen by half, but not for the first time": tuple(table.index[table["MAC ratio"] >= 2]),
    }  # fmt: skip
    _compare(answer, halved, slips)


@_exercise("01.3", "the mean entropy in nats, to three decimals")
def _entropy_of_soft_outputs(answer, logits: Tensor) -> None:
    def soft(temperature: float) -> np.ndarray:
        return (logits.double() / temperature).softmax(1).numpy()

    entropies = stats.entropy(soft(20), axis=1)
    slips = {
        "that is in bits": entropies.mean() / np.log(2),
        "that is the entropy at a temperature of 1": stats.entropy(soft(1), axis=1).mean(),
        "the temperature divides the logits, it does not multiply them": stats.entropy(soft(1 / 20), axis=1).mean(),
        "that is the sum over the images": entropies.sum(),
        "that is the entropy of all outputs mixed, or of a teacher that knows nothing; look at single images":
            (stats.entropy(soft(20).mean(0)), np.log(logits.shape[1])),
    }  # fmt: skip
    # What is left lies in the small difference from ln K.
    _compare(answer, entropies.mean(), slips, rtol=5e-4)


# -- 02 · integrated gradients ---------------------------------------------------------------------


@_exercise("02.2", "a function ig(f, x, baseline, n_points)")
def _trapezoid(answer) -> None:
    inner, outer, x, baseline = _normal(0, 6, 8), _normal(1, 8), _normal(2, 6), 0.3 * _normal(3, 6)
    n_points = 4

    def f(points: Tensor) -> Tensor:
        return torch.tanh(points @ inner) @ outer

    def gradients(nodes, start: Tensor = baseline) -> np.ndarray:
        points = (start + torch.as_tensor(nodes)[:, None] * (x - start)).requires_grad_()
        return torch.autograd.grad(f(points).sum(), points)[0].numpy()

    def rule(name: str) -> np.ndarray:
        nodes, weights = quadrature(name, n_points)
        return weights @ gradients(nodes) * rise

    rise, evenly = (x - baseline).numpy(), np.linspace(0, 1, n_points)
    mean = integrate.trapezoid(gradients(evenly), evenly, axis=0)
    finer = np.linspace(0, 1, n_points + 1)
    slips = {
        "that is the mean gradient on the path; what else stands in the formula?": mean,
        "do your weights add up to 1? A constant gradient should come out as it is": rule("riemann_trapezoid"),
        "both ends of the path count in full; that is no trapezoid": gradients(evenly).mean(0) * rise,
        "that is the gradient at the image alone, not along the path": gradients([1.0])[0] * rise,
        "that is a rectangle rule: one end of the path is left out": (rule("riemann_left"), rule("riemann_right")),
        "that is a midpoint rule": rule("riemann_middle"),
        "n_points counts the points, both ends among them, not the intervals":
            integrate.trapezoid(gradients(finer), finer, axis=0) * rise,
        "the path starts at 0, not at the baseline":
            integrate.trapezoid(gradients(evenly, torch.zeros(6)), evenly, axis=0) * x.numpy(),
        "attributions have a sign; without it they do not add up to f(x) - f(baseline)": np.abs(mean * rise),
    }  # fmt: skip
    _compare(_result(answer, f, x, baseline, n_points), mean * rise, slips)


@_exercise("02.3", "a function seen(image, ig_map, mirror)")
def _seen(answer) -> None:
    image, ig_map = _normal(0, 3, 6, 8).sigmoid(), 0.2 + 0.1 * _normal(1, 6, 8).square()
    scaled, highest = rescale(ig_map[None])[0], ig_map / ig_map.max()

    def mirrored(picture: Tensor) -> Tensor:
        return picture.flip(-1)

    unmoved = {
        "the map is laid over as it is; which range has it, and which has the image?": (image + ig_map) / 2,
        "the least value of the map should become 0": (image + highest) / 2,
        "image and map are added; a bright pixel would leave the range from 0 to 1": image + scaled,
        "the image is multiplied by the map, not averaged with it": image * scaled,
    }
    moved = {
        "the image is mirrored, and its map stays where it is": (mirrored(image) + scaled) / 2,
        "the map is mirrored, and its image stays where it is": (image + mirrored(scaled)) / 2,
        "nothing is mirrored where mirror is True": (image + scaled) / 2,
        "up and down are interchanged; a mirror interchanges left and right": ((image + scaled) / 2).flip(-2),
    }
    _compare(_result(answer, image, ig_map, False), (image + scaled) / 2, unmoved)
    _compare(_result(answer, image, ig_map, True), mirrored((image + scaled) / 2), moved)


# -- 03 · distillation -----------------------------------------------------------------------------


@_exercise("03.1", "a function kd_loss(student_logits, teacher_logits, temperature)")
def _kd_loss(answer) -> None:
    student, teacher, temperature = 2 * _normal(0, 6, 5), 2 * _normal(1, 6, 5), 3.0
    log_q, log_p = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    truth = distillation_loss(student, teacher, temperature)
    cross_entropy = -(log_p.exp() * log_q).sum(1).mean()
    slips = {
        "its gradient shrinks as the temperature grows; which factor makes up for that?": truth / temperature**2,
        "one factor T is not enough: the chain rule brings 1 / T, and the two softmaxes differ by 1 / T as well":
            truth / temperature,
        "the divergence has a direction: whose probabilities weigh the logarithms?":
            distillation_loss(teacher, student, temperature),
        "the mean is over images and classes; a divergence is a sum over classes": truth / student.shape[1],
        "that is the sum over the batch, so it grows with the batch size": truth * len(student),
        "that is a cross-entropy; it is not 0 where student and teacher agree": temperature**2 * cross_entropy,
        "torch's kl_div takes the logarithm of the first distribution, and here it gets something else":
            temperature**2 * F.kl_div(log_q.exp(), log_p.exp(), reduction="batchmean"),
        "the temperature acts on the teacher alone":
            temperature**2 * F.kl_div(student.log_softmax(1), log_p, reduction="batchmean", log_target=True),
        "the temperature acts on the student alone":
            temperature**2 * F.kl_div(log_q, teacher.log_softmax(1), reduction="batchmean", log_target=True),
        "the softmax is over the images; it should be over the classes":
            distillation_loss(student.T, teacher.T, temperature) * student.shape[1] / len(student),
    }  # fmt: skip
    _compare(_result(answer, student, teacher, temperature), truth, slips)


@_exercise("03.2", "a function gain(runs)")
def _gain(answer) -> None:
    rng = np.random.default_rng(0)
    seeds = {"Student": range(6), "KD": range(6), "KD+IG": range(1, 5)}
    runs = pd.DataFrame(
        [(arm, seed, 0.9 + 0.01 * rng.random()) for arm, shared in seeds.items() for seed in shared],
        columns=["arm", "seed", "accuracy"],
    )
    by_arm = runs.groupby("arm").accuracy
    pairs = runs.pivot(index="seed", columns="arm", values="accuracy").eval("`KD+IG` - Student").dropna()
    truth = 100 * statistics.compare_arms(runs, family=["KD+IG"], pair_by="seed").difference[0]
    slips = {
        "that is best against best; the more runs, the better the best of them":
            100 * (by_arm.max()["KD+IG"] - by_arm.max()["Student"]),
        "that is the gain of the luckiest pair": 100 * pairs.max(),
        "that takes in seeds that only one of the arms has": 100 * (by_arm.mean()["KD+IG"] - by_arm.mean()["Student"]),
        "that is a fraction; points are asked for": truth / 100,
        "the sign: which arm is it that should be ahead?": -truth,
    }  # fmt: skip
    _compare(_result(answer, runs), truth, slips)


@_exercise("03.3", "a Method")
def _lighter_map(answer) -> None:
    _expect(answer, Method)
    kd_ig = ARMS["KD+IG"]
    wanted = replace(kd_ig, overlay_weight=0.2)
    if answer == wanted:
        return
    if not answer.overlay_prob:
        raise Wrong("no image gets a map, so the weight of the map has no effect")
    if answer.overlay_prob == wanted.overlay_weight:
        raise Wrong("overlay_prob is the share of the images that get a map, not the map's weight")
    if answer.overlay_weight == 1 - wanted.overlay_weight:
        raise Wrong("that is the weight that the image should have")
    if not answer.alpha:
        raise Wrong("that is IG; KD+IG learns from soft targets too")
    others = [name for name, value in asdict(answer).items() if value != asdict(wanted)[name]]
    raise Wrong(f"compare with ARMS['KD+IG']; look at: {', '.join(others)}")


# -- 04 · attention transfer -----------------------------------------------------------------------


@_exercise("04.2", "the weight gamma")
def _weight_of_the_sum(answer, positions: int) -> None:
    gamma = ARMS["AT"].gamma
    slips = {
        "that is the other way round: is a sum larger or smaller than a mean?": gamma * positions,
        "a map has rows and columns": gamma / positions**0.5,
        "that is the most that the term adds to the loss, not its weight": 2 * gamma / positions,
        "with the same weight the sum would count for more than the mean": gamma,
    }
    _compare(answer, gamma / positions, slips, rtol=0.01)


@_exercise("04.4", "a function attention(activation)")
def _attention(answer) -> None:
    activation = _normal(0, 4, 5, 3, 6)
    squares = activation.square().mean(1).flatten(1)
    slips = {
        "absolute values instead of squares": F.normalize(activation.abs().mean(1).flatten(1), dim=1),
        "the channels are averaged before they are squared, so that opposite signs cancel":
            F.normalize(activation.mean(1).square().flatten(1), dim=1),
        "the map has not the length 1: its size still counts": (squares, activation.square().sum(1).flatten(1)),
        "the entries add up to 1; it is their squares that should": F.normalize(squares, p=1, dim=1),
        "each image has its own length; here the whole batch has one": squares / squares.norm(),
        "each image has its own length; here each position has one over the batch": F.normalize(squares, dim=0),
        "flatten the positions: (B, C, H, W) becomes (B, H * W)": attention_map(activation).view(4, 3, 6),
        "averaged over the positions; the map should keep them and lose the channels":
            F.normalize(activation.square().mean((2, 3)), dim=1),
    }  # fmt: skip
    _compare(_result(answer, activation), attention_map(activation), slips)


# -- 05 · Monte Carlo ------------------------------------------------------------------------------


@_exercise("05.3", "the difference in points")
def _found_with_ten_pairs(answer, by_seed: pd.DataFrame) -> None:
    pairs = by_seed["KD+IG"] - by_seed["Student"]
    arms = statistics.spread(by_seed["KD+IG"], by_seed["Student"]).estimate
    truth = 100 * statistics.minimal_detectable_difference(10, pairs.std(), paired=True)
    error = 100 * pairs.std() / 10**0.5
    half_the_time = "a true difference of that size would be found only half of the time"
    slips = {
        "that is a fraction; points are asked for": truth / 100,
        half_the_time: (stats.t.ppf(0.975, 9) * error, stats.norm.ppf(0.975) * error),
        "that is the standard error of the mean": error,
        "that is for runs that are not compared in pairs":
            100 * statistics.minimal_detectable_difference(10, arms, paired=False),
        "the spread is that of the pairs, but the test is the one for runs that are no pairs":
            100 * statistics.minimal_detectable_difference(10, pairs.std(), paired=False),
        f"that is for the {len(pairs)} pairs recorded here, not for 10":
            100 * statistics.minimal_detectable_difference(len(pairs), pairs.std(), paired=True),
    }  # fmt: skip
    _compare(answer, truth, slips, rtol=0.01)


@_exercise("05.4", "a function paired_p(a, b)")
def _paired_p(answer) -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0.9, 0.004, 7)
    a, b = shared + rng.normal(0.001, 0.0015, 7), shared + rng.normal(0, 0.0005, 7)
    truth = stats.ttest_rel(a, b)
    z = (a - b).mean() / ((a - b).std() / len(a) ** 0.5)
    slips = {
        "that is Welch's test or its like, for independent runs: it does not know which runs share a seed":
            (stats.ttest_ind(a, b, equal_var=False).pvalue, stats.ttest_ind(a, b).pvalue),
        "that is one-sided: a difference in the other direction would count too":
            (truth.pvalue / 2, 1 - truth.pvalue / 2),
        "the spread of a few pairs is not known exactly; the normal distribution takes it to be":
            2 * stats.norm.sf(abs(truth.statistic)),
        "NumPy's std divides by n unless told otherwise": 2 * stats.t.sf(abs(z), len(a) - 1),
        "the degrees of freedom are those of n pairs":
            (2 * stats.t.sf(abs(truth.statistic), 2 * len(a) - 2), 2 * stats.t.sf(abs(truth.statistic), len(a))),
        "that is the statistic; how often would chance give one as large?": truth.statistic,
    }  # fmt: skip
    _compare(_result(answer, a, b), truth.pvalue, slips, rtol=1e-3)


# -- 06 · ImageNet subset --------------------------------------------------------------------------


@_exercise("06.2", "a weight for each class, as a dict or a Series by class name")
def _weights_for_a_tie(answer) -> None:
    table = published.imagenet_subset().query("metric == 'class_accuracy'")
    per_class = table.pivot(index="class_name", columns="arm", values="computed")
    difference = 100 * (per_class["KD+IG"] - per_class["Student"])
    if not isinstance(answer, dict | pd.Series):
        raise Wrong("hand in a dict or a Series with a weight for each class name")
    weights = pd.Series(answer)
    if set(weights.index) != set(difference.index):
        raise Wrong(f"weights are needed for {', '.join(difference.index)}")
    weights = pd.Series(_numbers(weights), weights.index)
    if not (weights >= 0).all() or not weights.sum():
        raise Wrong("weights are numbers of images: none is negative, and not all are 0")
    images = table[table.arm == "Student"].set_index("class_name").images
    shares = weights / weights.sum()
    if np.allclose(shares, shares.mean()):
        raise Wrong("equal weights are balanced accuracy: KD+IG is ahead")
    if np.allclose(shares, (images / images.sum())[shares.index]):
        raise Wrong("the numbers of images are plain accuracy: Student is ahead")
    lead = float((difference * shares).sum())
    if abs(lead) > 0.05:
        raise Wrong(f"with these weights {'KD+IG' if lead > 0 else 'Student'} is {abs(lead):.2f} points ahead")


@_exercise("06.3", "a function balanced(confusion)")
def _balanced(answer) -> None:
    counts = np.array([[30, 4, 0, 6], [10, 70, 0, 5], [0, 0, 0, 0], [1, 2, 2, 9]])
    right, occurs = np.diag(counts), counts.sum(1) > 0
    slips = {
        "that is plain accuracy: a class with many images counts for more": right.sum() / counts.sum(),
        "that divides by the number of answers of a class (precision), not by that of its images":
            ((right[occurs] / counts.sum(0)[occurs]).mean(), (right / counts.sum(0)).mean()),
        "a class without images counts as one that is always wrong": (right[occurs] / counts.sum(1)[occurs]).sum() / 4,
        "a class without images leaves 0 / 0: what should become of it?": np.nan,
    }  # fmt: skip
    with np.errstate(invalid="ignore"):
        found = _result(answer, counts)
    _compare(found, other_images.measures(counts)["balanced_accuracy"], slips)


# -- 07 · compression sweep ------------------------------------------------------------------------


@_exercise("07.2", "a function speedup(teacher, student)")
def _speedup(answer) -> None:
    rng = np.random.default_rng(0)
    drift = np.linspace(1, 1.6, 10)
    student = 4 * drift * rng.uniform(0.95, 1.05, 10)
    teacher = 6 * drift * rng.uniform(0.95, 1.05, 10)
    teacher[0] *= 12  # sets PyTorch up
    teacher[4] *= 3  # disturbed by something else
    steady = teacher[1:] / student[1:]
    slips = {
        "that is the ratio of first calls, in which the teacher pays for the set-up": teacher[0] / student[0],
        "the first round is not left out": (
            np.median(teacher / student),
            np.median(teacher) / np.median(student),
            teacher.mean() / student.mean(),
            (teacher / student).mean(),
        ),
        "one disturbed call moves a mean": (steady.mean(), teacher[1:].mean() / student[1:].mean()),
        "the machine slows down during the rounds: compare within each round, then take the middle":
            np.median(teacher[1:]) / np.median(student[1:]),
        "the quickest call alone depends on luck": teacher[1:].min() / student[1:].min(),
        "that is student over teacher": np.median(1 / steady),
    }  # fmt: skip
    _compare(_result(answer, teacher, student), np.median(steady), slips)


@_exercise("07.3", "an Architecture")
def _width_of_equal_operations(answer) -> None:
    _expect(answer, Architecture)
    if answer.blocks_removed != 1 or answer.width == 1:
        raise Wrong("narrow all layers, and leave out the head alone: Architecture(1, width)")
    cut, narrowed = costs.sizes([Architecture(5), answer]).to_dict("records")
    ratio = narrowed["million MACs"] / cut["million MACs"]
    if abs(ratio - 1) <= 0.02:
        return
    if abs(narrowed["parameters"] / cut["parameters"] - 1) <= 0.05:
        raise Wrong("that width has the parameters of the cut student, not its operations")
    raise Wrong(f"it has {'more' if ratio > 1 else 'fewer'} operations than the cut student")


# -- 08 · controls ---------------------------------------------------------------------------------


@_exercise("08.1", "a function least_loss(teacher_logits, temperature)")
def _least_loss(answer) -> None:
    logits, temperature = 3 * _normal(0, 40, 5) + torch.arange(5), 2.5
    soft = (logits / temperature).softmax(1).numpy()
    apart = stats.entropy(soft.mean(0)) - stats.entropy(soft, axis=1).mean()
    hard = logits.softmax(1).numpy()
    of_mean_logits = (logits.mean(0) / temperature).softmax(0).numpy()
    slips = {
        "the distillation loss has a factor that goes with the temperature": apart,
        "that is the least cross-entropy; the teacher's own uncertainty is no fault of the student":
            temperature**2 * stats.entropy(soft.mean(0)),
        "soft targets are taken at a temperature":
            temperature**2 * (stats.entropy(hard.mean(0)) - stats.entropy(hard, axis=1).mean()),
        "the best single target is a mean of probabilities, not of logits": (
            temperature**2 * stats.entropy(soft, of_mean_logits, axis=1).mean(),
            temperature**2 * (stats.entropy(of_mean_logits) - stats.entropy(soft, axis=1).mean()),
        ),
        "a student that gives all classes the same does worse than it must":
            temperature**2 * (np.log(5) - stats.entropy(soft, axis=1).mean()),
        "a loss is not negative; which of the two entropies is larger?": -(temperature**2) * apart,
    }  # fmt: skip
    _compare(_result(answer, logits, temperature), temperature**2 * apart, slips)


@_exercise("08.2", "a function whose_map(labels, seed)")
def _whose_map(answer) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), (3, 5, 8, 14)))
    everyone = np.arange(len(labels))
    orders = []
    for seed in (0, 0, *range(1, 30)):
        order = _numbers(_result(answer, labels, seed))
        if order.shape != labels.shape or not np.isin(order, everyone).all():
            raise Wrong("for each image the index of the one whose map it gets is expected")
        order = order.astype(int)
        if (labels[order] != labels).any():
            raise Wrong("some images get the map of another class")
        if len(set(order)) < len(order):
            raise Wrong("some maps are used more than once, others not at all")
        if (order == everyone).any():
            raise Wrong("some images keep their own map")
        orders.append(order)
    if (orders[0] != orders[1]).any():
        raise Wrong("the same seed gives another order the second time")
    if all((order == orders[0]).all() for order in orders):
        raise Wrong("all seeds give the same order")
