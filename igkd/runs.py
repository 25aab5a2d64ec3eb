"""The description of one training (`Run`), its parts, the eight arms, and the recipes."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, fields

import numpy as np
import torch

from igkd.errors import InputError

#: Raised whenever a change of the code changes the results of a training; part of every key.
TRAINING_VERSION = 2

# Streams of random numbers: one for each purpose, so that switching one ingredient on does not move another's.
WEIGHTS, SHUFFLE, AUGMENTATION, DROPOUT, SIGNALS = range(5)


def stream(seed: int, purpose: int, part: int = 0) -> torch.Generator:
    """The random numbers of one purpose in one part of a run: an epoch, or for `SIGNALS` a kind of signal."""
    spread = np.random.SeedSequence([seed, purpose, part]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(spread >> 1))


def digest(content) -> str:
    """First 16 hex digits of a SHA-256 over what is written as JSON, keys sorted."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


#: What the numbers of a description may be: in words, as a test, and the fields. An infinite number is in no range.
RANGES = (
    ("from 0 to 1", lambda value: 0 <= value <= 1, "alpha overlay_prob overlay_weight"),
    ("above 0", lambda value: value > 0, "temperature lr"),
    ("of 0 or more", lambda value: value >= 0, "seed blocks_removed gamma weight_decay padding cutout"),
    ("from 0 to less than 1", lambda value: 0 <= value < 1, "validation"),
    ("above 0 and up to 1", lambda value: 0 < value <= 1, "fraction"),
    ("of 1 or more", lambda value: value >= 1, "max_exponent num_epochs batch_size n_steps"),
)


class _Checked:
    """Refuses numbers with which a training would fail only later, or would mean something else than it says."""

    def __post_init__(self):
        declared = {field.name: field.type for field in fields(self)}
        for words, fits, names in RANGES:
            for name in (name for name in names.split() if name in declared):
                value, whole = getattr(self, name), declared[name] is int
                # True and numpy's integers would not come back from the JSON of a record as they were.
                number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
                if not (number and math.isfinite(value) and fits(value)):
                    raise InputError(f"{name} is {value!r}; give a {'whole ' * whole}number {words}")
                # 1 and 1.0 are the same number, so they must be the same text in the key.
                object.__setattr__(self, name, declared[name](value))


@dataclass(frozen=True)
class Subset(_Checked):
    """Which training images a training sees.

    Attributes
    ----------
    fraction : float
        Share of the images that are left after `validation`, in (0, 1], the same for every class.
    seed : int
        Draws the fraction.
    validation : float
        Share of the training images that is held out first, in [0, 1): the same images for every seed and fraction.

    Raises
    ------
    InputError
        If a value is out of its range.
    """

    fraction: float = 1.0
    seed: int = 0
    validation: float = 0.0


@dataclass(frozen=True)
class Architecture(_Checked):
    """Which network (see `igkd.models.MobileNetV2`).

    Attributes
    ----------
    blocks_removed : int
        How many of the 19 entries of ``features`` are left out at the end; 0 is the teacher.
    normalize : bool
        Whether the input is standardised by the data set's channel means and deviations. In the paper the teacher's is,
        the students' is not.

    Raises
    ------
    InputError
        If `blocks_removed` is below 0.
    """

    blocks_removed: int = 0
    normalize: bool = False

    @property
    def name(self) -> str:
        """In a few words, for tables and figures."""
        return f"{self.blocks_removed} removed" if self.blocks_removed else "teacher"


@dataclass(frozen=True)
class Method(_Checked):
    """What the student learns from besides the labels.

    The loss is ``alpha * KD + (1 - alpha) * cross-entropy + gamma * AT`` (see `igkd.losses`).

    Attributes
    ----------
    alpha : float
        Weight of the distillation loss; 0 switches it off.
    temperature : float
    overlay_prob : float
        Share of the training images that get an IG map laid over them; 0 switches it off.
    gamma : float
        Weight of attention transfer; 0 switches it off.
    overlay_weight : float
        Weight of the map in the overlaid image.
    max_exponent : float
        The map is raised to a power drawn log-uniformly from 1 to this.

    Raises
    ------
    InputError
        If a number is out of its range: `alpha`, `overlay_prob` and `overlay_weight` are 0 to 1, `temperature` is above
        0, `gamma` is 0 or more, `max_exponent` is 1 or more.
    """

    alpha: float = 0.0
    temperature: float = 1.0
    overlay_prob: float = 0.0
    gamma: float = 0.0
    overlay_weight: float = 0.5
    max_exponent: float = 2.0

    @property
    def uses_teacher(self) -> bool:
        """Whether any of the three ingredients is switched on."""
        return bool(self.alpha or self.overlay_prob or self.gamma)


#: Those of the full 2 x 2 x 2 factorial, in the paper's order.
DESIGN = ("Student", "KD", "IG", "AT", "KD+IG", "KD+AT", "IG+AT", "KD+IG+AT")
_OF_INGREDIENT = {"KD": ("alpha", "temperature"), "IG": ("overlay_prob",), "AT": ("gamma",)}


def arm(name: str, constants: Method) -> Method:
    """The arm of this name, which takes those of the constants that its ingredients have."""
    used = [each for ingredient in name.split("+") for each in _OF_INGREDIENT.get(ingredient, ())]
    return Method(**{each: getattr(constants, each) for each in used})


#: The arms with the paper's constants; further ones may follow.
ARMS = {name: arm(name, Method(alpha=0.01, temperature=2.5, overlay_prob=0.1, gamma=0.8)) for name in DESIGN}

_OPTIMIZERS = {"adam": "Adam", "sgd": "SGD", "muon": "Muon"}


@dataclass(frozen=True)
class Recipe(_Checked):
    """How the weights are fitted.

    Attributes
    ----------
    num_epochs : int
    batch_size : int
    optimizer : {"adam", "sgd", "muon"}
        SGD is with Nesterov momentum 0.9. With Muon (see `igkd.optimizers`) it fits only what Muon does not.
    lr : float
        Of Adam and SGD: constant, or the peak of the one-cycle schedule.
    one_cycle : bool
        Linear warm-up over the first fifth of the steps, then linear decay to 0 (Smith & Topin 2018).
    weight_decay : float
        Of Adam and SGD, on the weights of convolutions and of the classifier, not on batch norm and biases.
    padding : int
        Pixels of zero border from which random crops are taken.
    scales : tuple of (scale, until)
        Images are scaled down to this part of their height and width until this share of the steps is done; the first
        pair whose share is not yet done counts.
    cutout : int
        Side in pixels of the square that is blackened in every image; 0 switches it off.

    Raises
    ------
    InputError
        If the optimizer is unknown or a number is out of its range: `num_epochs` and `batch_size` are 1 or more, `lr`
        is above 0, `weight_decay`, `padding` and `cutout` are 0 or more, in `scales` all are above 0 and up to 1.
    """

    num_epochs: int
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.05
    one_cycle: bool = True
    weight_decay: float = 5e-4
    padding: int = 4
    scales: tuple[tuple[float, float], ...] = ()
    cutout: int = 0

    def __post_init__(self):
        if self.optimizer not in _OPTIMIZERS:
            raise InputError(f"no optimizer {self.optimizer!r}; choose one of: {', '.join(_OPTIMIZERS)}")
        super().__post_init__()
        # In a record's JSON they are lists.
        object.__setattr__(self, "scales", tuple((float(scale), float(until)) for scale, until in self.scales))
        if not all(0 < number <= 1 for pair in self.scales for number in pair):
            raise InputError(f"scales are {self.scales}; give pairs of numbers above 0 and up to 1")

    @property
    def name(self) -> str:
        """In a few words."""
        rate = "in one cycle" if self.one_cycle else "at a constant rate"
        return f"{self.num_epochs} epochs, {_OPTIMIZERS[self.optimizer]} {rate}, batches of {self.batch_size}"


#: What each ingredient gained in trials on held-out images, one seed each (docs/log.md).
RECIPES = {
    "paper": Recipe(num_epochs=100, optimizer="adam", lr=1e-3, one_cycle=False, weight_decay=0.0),
    # Muon: +2.3 points over SGD in 8 epochs, for 4 % more seconds. In 4 epochs padding 2: +1.9 over 4; lr 0.15: +0.7
    # over 0.05 with padding 4, +0.1 with 2. 20 of 32 pixels at first: 0.4 of the seconds of a step, as accurate as 24;
    # 16 before them: an eighth of all seconds, -0.1. 14 epochs: +0.5 over 11.
    "fast": Recipe(num_epochs=14, optimizer="muon", lr=0.15, padding=2, scales=((0.5, 0.4), (0.625, 0.85))),
    "teacher": Recipe(num_epochs=42, optimizer="muon", lr=0.15, padding=3, scales=((0.625, 0.55),), cutout=8),
    "laptop": Recipe(22, batch_size=32, optimizer="muon", lr=0.15, padding=1, scales=((0.5, 0.35), (0.625, 0.8))),
    # On its test images, 3 seeds: 94 % right instead of 90 with 7 epochs of SGD, in half the seconds. Its teacher keeps
    # SGD: it learns too little in so few steps of Muon.
    "demo": Recipe(5, batch_size=48, optimizer="muon", lr=0.15, padding=1, scales=((0.5, 0.5),)),
    "demo_teacher": Recipe(num_epochs=7, batch_size=32, padding=1),
}


@dataclass(frozen=True)
class SignalSpec(_Checked):
    """Which signals of which teacher a student learns from.

    Attributes
    ----------
    teacher : str
        Key of the teacher's run.
    variant : str
        What becomes of the signals, see `igkd.controls.VARIANTS`.
    n_steps : int
        Integration steps of the IG maps.
    baseline : str
        See `igkd.attribution.make_baseline`.

    Raises
    ------
    InputError
        If `n_steps` is less than 1.
    """

    teacher: str
    variant: str = "described"
    n_steps: int = 50
    baseline: str = "mean"


@dataclass(frozen=True)
class Run(_Checked):
    """The frozen description of one training. Two equal runs are the same experiment.

    Attributes
    ----------
    data : str
        Fingerprint of the image set.
    subset : Subset
        Which training images.
    architecture : Architecture
    method : Method
    recipe : Recipe
    signals : SignalSpec or None
        None if the method uses no teacher.
    seed : int
        Of initial weights, order, crops, overlays and whose signals are taken; arms with the same seed share all of
        them.
    split : {"test", "validation"}
        On which images the final accuracy is measured.

    Raises
    ------
    InputError
        If the parts contradict each other, or the seed is no whole number of 0 or more.
    """

    data: str
    subset: Subset
    architecture: Architecture
    method: Method
    recipe: Recipe
    signals: SignalSpec | None
    seed: int
    split: str = "test"

    def __post_init__(self):
        super().__post_init__()
        if self.split not in ("test", "validation"):
            raise InputError(f"no split {self.split!r}; choose test or validation")
        if self.split == "validation" and not self.subset.validation:
            raise InputError("the run is scored on held-out images but holds none out; set Subset.validation")
        if self.method.uses_teacher and self.signals is None:
            raise InputError("the method learns from a teacher but the run names none; set signals")

    @property
    def key(self) -> str:
        """16 hex digits: a hash of the description and of the training code's version."""
        return digest([TRAINING_VERSION, dataclasses.asdict(self)])

    @classmethod
    def from_dict(cls, fields: dict) -> "Run":
        """Inverse of `dataclasses.asdict`."""
        parts = {"subset": Subset, "architecture": Architecture, "method": Method, "recipe": Recipe}
        built = {name: kind(**fields[name]) for name, kind in parts.items()}
        signals = SignalSpec(**fields["signals"]) if fields["signals"] else None
        return cls(**(fields | built | {"signals": signals}))
