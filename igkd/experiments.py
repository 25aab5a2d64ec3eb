"""The runs behind each notebook, in each profile.

An experiment is a function of a `Plan` that lists `Planned` runs; the labels become the columns of the table that
notebooks work with.
"""

from dataclasses import dataclass

from igkd.controls import VARIANTS
from igkd.errors import InputError
from igkd.models import BLOCKS_REMOVED
from igkd.runs import ARMS, RECIPES, Architecture, Method, Recipe, Run, SignalSpec, Subset, arm


def one_at_a_time(alphas, temperatures, overlay_probs, gammas) -> tuple[tuple[str, Method], ...]:
    """Arms with the constants to try on the validation split: one ingredient at a time, KD's two each with each."""
    kd = [("KD", Method(alpha=alpha, temperature=t)) for alpha in alphas for t in temperatures]
    ig = [("IG", Method(overlay_prob=p)) for p in overlay_probs]
    return (*kd, *ig, *(("AT", Method(gamma=gamma)) for gamma in gammas))


@dataclass(frozen=True)
class Profile:
    """How large a study is.

    Attributes
    ----------
    name : str
    dataset : {"digits", "cifar10"}
    take : pair of int or None
        Training and test images to keep (stratified); None keeps all.
    teacher : Recipe or None
        How the teacher is trained; None takes the one shipped in ``weights/``.
    blocks_removed : int
        Cut of the student.
    recipe : Recipe
        How students are trained.
    n_steps : int
        Integration steps of the IG maps.
    num_pairs : int
        Seeds of the arms that the claims compare: Student, KD+IG, KD+IG+AT.
    num_seeds : int
        Seeds of all other arms and controls.
    num_subsets : int
        Random subsets of the Monte Carlo runs.
    sweep : tuple of int
        Blocks removed of the networks that show what compression costs, the cheapest training first.
    num_sweep_seeds : int
    recipe_cut : int
        Blocks removed of the students that are trained with the paper's recipe.
    num_recipe_seeds : int
    other_n_steps : int or None
        Integration steps with which `n_steps` are compared.
    search : tuple of (arm, Method)
        What is tried on the validation split, see `one_at_a_time`.
    tuned : Method
        The constants that the search chose, by validation accuracy (of equal points the first); by default those of
        the laptop profile.
    """

    name: str
    take: tuple[int, int] | None
    recipe: Recipe
    num_pairs: int
    num_subsets: int
    dataset: str = "cifar10"
    teacher: Recipe | None = None
    blocks_removed: int = 5
    n_steps: int = 8  # the paper's 50 take six times as long; notebook 02 asks whether a student notices
    num_seeds: int = 5
    sweep: tuple[int, ...] = BLOCKS_REMOVED[::-1]
    num_sweep_seeds: int = 1
    recipe_cut: int = 5
    num_recipe_seeds: int = 0
    other_n_steps: int | None = None
    search: tuple[tuple[str, Method], ...] = ()
    tuned: Method = Method(alpha=0.5, temperature=4.0, overlay_prob=0.25, gamma=1000.0)


PROFILES = {
    "demo": Profile(
        "demo",
        take=(480, 450),
        recipe=RECIPES["demo"],
        num_pairs=3,
        num_subsets=4,
        dataset="digits",
        teacher=RECIPES["demo_teacher"],
        blocks_removed=15,
        num_seeds=2,
        sweep=(17, 15, 13),
        recipe_cut=15,
        other_n_steps=2,
        search=one_at_a_time((0.01, 0.5, 0.9), (1.0, 4.0), (0.1, 0.5), (0.8, 1000.0)),
        tuned=Method(alpha=0.5, temperature=1.0, overlay_prob=0.1),
    ),
    "laptop": Profile(
        "laptop",
        take=(4000, 10_000),
        recipe=RECIPES["laptop"],
        num_pairs=5,
        num_subsets=5,
        num_recipe_seeds=5,
        other_n_steps=50,
        search=one_at_a_time((0.01, 0.1, 0.5, 0.9), (1.0, 2.5, 4.0), (0.1, 0.25, 0.5), (0.8, 30.0, 1000.0)),
    ),
    "paper": Profile(
        "paper",
        take=None,
        recipe=RECIPES["fast"],
        num_pairs=10,
        num_subsets=10,
        teacher=RECIPES["teacher"],
        num_sweep_seeds=2,
        recipe_cut=15,
        num_recipe_seeds=3,
    ),
}
SEARCHED = ("alpha", "temperature", "overlay_prob", "gamma")
VALIDATION = Subset(validation=0.2)  # the training images without those on which constants are chosen


@dataclass(frozen=True)
class Planned:
    """A run with the labels under which a notebook shows it."""

    experiment: str
    labels: dict
    run: Run


@dataclass(frozen=True)
class Plan:
    """What the runs of a profile have in common once the images and the teacher are known.

    Attributes
    ----------
    profile : Profile
    data : str
        Fingerprint of the images.
    teacher_key : str
        Key of the teacher's run.
    """

    profile: Profile
    data: str
    teacher_key: str

    def student(
        self,
        method: Method,
        seed: int,
        *,
        subset: Subset = Subset(),
        split: str = "test",
        blocks_removed: int | None = None,
        variant: str = "described",
        n_steps: int | None = None,
        recipe: Recipe | None = None,
    ) -> Run:
        """A student of the profile, or one that differs from it in what is given.

        Raises
        ------
        InputError
            If there is no such variant of the signals.
        """
        if variant not in VARIANTS:
            raise InputError(f"no variant {variant!r} of the signals; choose one of: {', '.join(VARIANTS)}")
        profile, signals = self.profile, None
        if method.uses_teacher:
            signals = SignalSpec(self.teacher_key, variant, n_steps or profile.n_steps)
        network = Architecture(profile.blocks_removed if blocks_removed is None else blocks_removed)
        return Run(self.data, subset, network, method, recipe or profile.recipe, signals, seed, split)


def teacher_run(data: str, recipe: Recipe) -> Run:
    """Training of a teacher on all training images."""
    return Run(data, Subset(), Architecture(normalize=True), Method(), recipe, None, 0)


def _item(plan: Plan, experiment: str, name: str, seed: int, labels=None, method=None, **changes) -> Planned:
    """One seed of an arm, with what else it is shown under, and `changes` as `Plan.student` takes them."""
    run = plan.student(method or ARMS[name], seed, **changes)
    return Planned(experiment, {"arm": name} | (labels or {}) | {"seed": seed}, run)


def _pair(plan: Plan, experiment: str, seed: int, labels=None, **changes) -> list[Planned]:
    """One seed of the plain student and of the paper's method; the arguments are those of `_item`."""
    return [_item(plan, experiment, name, seed, labels, **changes) for name in ("Student", "KD+IG")]


def _arms(plan: Plan, names, seeds) -> list[Planned]:
    return [_item(plan, "arms", name, seed) for seed in seeds for name in names]


def arms(plan: Plan) -> list[Planned]:
    """The plain student and the paper's method, with shared seeds."""
    return _arms(plan, ("Student", "KD+IG"), range(plan.profile.num_pairs))


def factorial(plan: Plan) -> list[Planned]:
    """All eight arms, those that the claims compare with more seeds."""
    grid = plan.profile
    more = _arms(plan, ("Student", "KD+IG", "KD+IG+AT"), range(grid.num_seeds, grid.num_pairs))
    return _arms(plan, tuple(ARMS), range(grid.num_seeds)) + more


_STUDENT, _KD, _IG, _BOTH = ("Student", ""), ("KD", "described"), ("IG", "described"), ("KD+IG", "described")
#: What the controls are compared for, declared before they are run: question, (arm, variant), its reference.
CONTRASTS = (
    ("gain as described", _BOTH, _STUDENT),
    ("gain as released", ("KD+IG", "released"), _STUDENT),
    ("released against described", ("KD+IG", "released"), _BOTH),
    ("gain of KD", _KD, _STUDENT),
    ("gain of permuted logits", ("KD", "permuted"), _STUDENT),
    ("alignment of the logits", ("KD", "permuted"), _KD),
    ("gain of IG", _IG, _STUDENT),
    ("gain without a map", ("IG", "dimming"), _STUDENT),
    *(("content of the map", ("IG", variant), _IG) for variant in ("other_image", "noise", "dimming")),
)


def controls(plan: Plan) -> list[Planned]:
    """The arms of `CONTRASTS`, see `igkd.controls.VARIANTS`; all arms of one seed before the next seed."""
    compared = dict.fromkeys(each for _, *pair in CONTRASTS for each in pair)
    return [
        _item(plan, "controls", name, seed, {"variant": variant}, variant=variant or "described")
        for seed in range(plan.profile.num_seeds)
        for name, variant in compared
    ]


def monte_carlo(plan: Plan) -> list[Planned]:
    """Two arms on stratified random 80 % of the training images; arms with the same seed share the subset."""
    seeds = range(plan.profile.num_subsets)
    return [item for seed in seeds for item in _pair(plan, "monte_carlo", seed, subset=Subset(0.8, seed))]


def sweep(plan: Plan) -> list[Planned]:
    """Networks of several sizes; one seed of all before the next seed, cheap networks first."""
    of = [(seed, {"blocks_removed": cut}) for seed in range(plan.profile.num_sweep_seeds) for cut in plan.profile.sweep]
    return [item for seed, cut in of for item in _pair(plan, "sweep", seed, cut, **cut)]


def steps(plan: Plan) -> list[Planned]:
    """Overlays alone with maps of the profile's number of integration steps and of another."""
    grid = plan.profile
    return [
        _item(plan, "steps", "IG", seed, {"n_steps": n_steps}, n_steps=n_steps)
        for seed in range(grid.num_seeds if grid.other_n_steps else 0)
        for n_steps in (grid.n_steps, grid.other_n_steps)
    ]


def search(plan: Plan) -> list[Planned]:
    """One ingredient at a time on the validation split, one seed a point, as in the paper.

    The plain student has more seeds, because single points are read against the scatter of its seeds.
    """
    points = [(*point, 0) for point in plan.profile.search]
    points[:0] = [("Student", Method(), seed) for seed in range(plan.profile.num_seeds if points else 0)]
    of = {"subset": VALIDATION, "split": "validation"}
    return [
        _item(plan, "search", name, seed, {constant: getattr(m, constant) for constant in SEARCHED}, m, **of)
        for name, m, seed in points
    ]


def tuned(plan: Plan) -> list[Planned]:
    """Arms with the constants that the search chose; attention transfer only if it chose a weight."""
    best = plan.profile.tuned
    names = ("Student", "KD", "IG", "KD+IG") + ("AT", "KD+IG+AT") * bool(best.gamma)
    return [
        _item(plan, "tuned", name, seed, method=arm(name, best))
        for seed in range(plan.profile.num_seeds)
        for name in names
    ]


def paper_recipe(plan: Plan) -> list[Planned]:
    """The plain student and the paper's method with the paper's 100 epochs of Adam."""
    seeds, of = range(plan.profile.num_recipe_seeds), {"blocks_removed": plan.profile.recipe_cut}
    return [item for seed in seeds for item in _pair(plan, "paper_recipe", seed, recipe=RECIPES["paper"], **of)]


def shown(plan: Plan) -> list[Planned]:
    """The students whose networks the notebooks show, not only their accuracy; their weights are in the repository."""
    return [item for item in factorial(plan) if item.labels["seed"] == 0]


#: The teacher's own notebook.
TEACHER_NOTEBOOK = "01"
#: Which experiments each notebook declares, besides the profile's own teacher.
NOTEBOOKS = {
    "00": (arms,),
    TEACHER_NOTEBOOK: (),
    "02": (steps,),
    "03": (arms, search, tuned, paper_recipe),
    "04": (factorial, search),
    "05": (monte_carlo,),
    "06": (factorial,),
    "07": (sweep,),
    "08": (controls,),
}
#: All experiments in the order of doing: what the paper claims and what its signals contribute before all else.
ORDER = (arms, controls, factorial, monte_carlo, sweep, steps, search, tuned, paper_recipe)
#: Notebooks that measure time, so that nothing runs beside them.
TIMED = {"02", "07"}
