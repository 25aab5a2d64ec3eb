"""The eight arms of the paper, their constants, and the training recipes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from igkd.errors import InputError

#: What a number may be: in words, and as a test.
Range = tuple[str, Callable[[float], bool]]
SHARE: Range = ("from 0 to 1", lambda value: 0 <= value <= 1)
POSITIVE: Range = ("above 0", lambda value: value > 0)
NOT_NEGATIVE: Range = ("of 0 or more", lambda value: value >= 0)
FROM_ONE: Range = ("of 1 or more", lambda value: value >= 1)


def check_numbers(part, **ranges: Range) -> None:
    """Refuse numbers with which a training would fail only later, or would mean something else than it says.

    Parameters
    ----------
    part : dataclass instance
    **ranges : Range
        Of its fields, by name. Those declared ``int`` must be whole; an infinite number is in no range.

    Raises
    ------
    InputError
        Names the first field that is out of its range.
    """
    declared = {field.name: field.type for field in fields(part)}
    for name, (words, fits) in ranges.items():
        value, whole = getattr(part, name), declared[name] is int
        # True and numpy's integers would not come back from the JSON of a record as they were.
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and fits(value)):
            raise InputError(f"{name} is {value!r}; give a {'whole ' * whole}number {words}")


@dataclass(frozen=True)
class Method:
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
    cutout : int
        Side in pixels of the square that is blackened in every image, a baseline of the overlay's kind without a
        teacher; 0 switches it off.

    Raises
    ------
    InputError
        If a number is out of its range: `alpha`, `overlay_prob` and `overlay_weight` are 0 to 1, `temperature` is above
        0, `gamma` and `cutout` are 0 or more, `max_exponent` is 1 or more.
    """

    alpha: float = 0.0
    temperature: float = 1.0
    overlay_prob: float = 0.0
    gamma: float = 0.0
    overlay_weight: float = 0.5
    max_exponent: float = 2.0
    # Younger than the first records: `igkd.runs` leaves it out of a run's key where it is at its default.
    cutout: int = field(default=0, metadata={"added": True})

    def __post_init__(self):
        check_numbers(
            self,
            alpha=SHARE,
            temperature=POSITIVE,
            overlay_prob=SHARE,
            gamma=NOT_NEGATIVE,
            overlay_weight=SHARE,
            max_exponent=FROM_ONE,
            cutout=NOT_NEGATIVE,
        )

    @property
    def uses_teacher(self) -> bool:
        """Whether any of the three ingredients is switched on."""
        return bool(self.alpha or self.overlay_prob or self.gamma)


def method(kd: bool = False, ig: bool = False, at: bool = False) -> Method:
    """The paper's constants for each ingredient that is on."""
    return Method(
        alpha=0.01 if kd else 0.0,
        temperature=2.5 if kd else 1.0,
        overlay_prob=0.1 if ig else 0.0,
        gamma=0.8 if at else 0.0,
    )


#: The full 2 x 2 x 2 factorial, in the paper's order.
ARMS = {
    "Student": method(),
    "KD": method(kd=True),
    "IG": method(ig=True),
    "AT": method(at=True),
    "KD+IG": method(kd=True, ig=True),
    "KD+AT": method(kd=True, at=True),
    "IG+AT": method(ig=True, at=True),
    "KD+IG+AT": method(kd=True, ig=True, at=True),
}


_OPTIMIZERS = {"adam": "Adam", "sgd": "SGD", "orthogonal_sgd": "Orthogonal-SGDM"}


@dataclass(frozen=True)
class Recipe:
    """How the weights are fitted.

    Attributes
    ----------
    num_epochs : int
    batch_size : int
    optimizer : {"adam", "sgd", "orthogonal_sgd"}
        SGD is with Nesterov momentum 0.9; orthogonal: the gradients of pointwise convolutions, most of the weights, are
        orthogonalised first (see `igkd.optimizers`).
    lr : float
        Constant, or the peak of the one-cycle schedule.
    one_cycle : bool
        Linear warm-up over the first fifth of the steps, then linear decay to 0 (Smith & Topin 2018).
    weight_decay : float
        On the weights of convolutions and of the classifier, not on batch norm and biases.
    padding : int
        Pixels of zero border from which random crops are taken.
    zero_init_residual : bool
        Whether the scale of the last batch norm of each residual branch starts at 0, so that at first a block hands on
        what it gets (Goyal et al. 2017).

    Raises
    ------
    InputError
        If the optimizer is unknown or a number is out of its range: `num_epochs` and `batch_size` are 1 or more, `lr`
        is above 0, `weight_decay` and `padding` are 0 or more.
    """

    num_epochs: int
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.05
    one_cycle: bool = True
    weight_decay: float = 5e-4
    padding: int = 4
    # Younger than the first records, as `Method.cutout` is.
    zero_init_residual: bool = field(default=False, metadata={"added": True})

    @property
    def name(self) -> str:
        """In a few words."""
        rate = "in one cycle" if self.one_cycle else "at a constant rate"
        return f"{self.num_epochs} epochs, {_OPTIMIZERS[self.optimizer]} {rate}, batches of {self.batch_size}"

    def __post_init__(self):
        if self.optimizer not in _OPTIMIZERS:
            raise InputError(f"no optimizer {self.optimizer!r}; choose one of: {', '.join(_OPTIMIZERS)}")
        check_numbers(
            self,
            num_epochs=FROM_ONE,
            batch_size=FROM_ONE,
            lr=POSITIVE,
            weight_decay=NOT_NEGATIVE,
            padding=NOT_NEGATIVE,
        )


RECIPES = {
    "paper": Recipe(num_epochs=100, optimizer="adam", lr=1e-3, one_cycle=False, weight_decay=0.0),
    "fast": Recipe(num_epochs=16),
    # For the uncut network, which `fast` leaves far behind `paper` where there are few images. The first teacher is
    # older than this recipe; its own is in the paper profile (`igkd.experiments.PROFILES`).
    "teacher": Recipe(num_epochs=16, batch_size=32, optimizer="orthogonal_sgd", lr=0.0075, zero_init_residual=True),
    "demo": Recipe(num_epochs=7, batch_size=32, padding=1),
}
