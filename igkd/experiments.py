"""The grid of runs behind each notebook, in each profile.

An experiment is a list of `Planned` runs; the labels become the columns of the table that notebooks work with.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from igkd.errors import InputError
from igkd.images import Subset
from igkd.methods import ARMS, RECIPES, Method, Recipe, method
from igkd.models import BLOCKS_REMOVED, Architecture
from igkd.runs import Run, SignalSpec
from igkd.variants import ATTRIBUTIONS, MAP_CONTROLS, VARIANTS


@dataclass(frozen=True)
class Sweep:
    """Which networks are trained to see what compression costs.

    Attributes
    ----------
    cuts : tuple of int
        Blocks removed at full width, the cheapest training first.
    arms : tuple of str
        Of the cut networks; those that a claim compares first.
    num_seeds : int
    share : float
        Of the training images; below 1 each seed draws its own.
    """

    cuts: tuple[int, ...]
    arms: tuple[str, ...]
    num_seeds: int
    share: float = 1.0


@dataclass(frozen=True)
class Tuning:
    """What is tried on the validation split before the method is compared with strong baselines.

    Distillation is tried with the profile's ``alphas`` and ``temperatures``, overlays with its ``overlay_probs``,
    attention transfer with its ``gammas``.

    Attributes
    ----------
    overlay_weights, max_exponents : tuple of float
    smoothings : tuple of float
        Strengths of label smoothing.
    cutouts : tuple of int
        Sides, pixels.
    num_seeds : int
        Runs a point, of which the mean decides.
    families : tuple of str
        Keys of `FAMILIES`.
    """

    overlay_weights: tuple[float, ...]
    max_exponents: tuple[float, ...]
    smoothings: tuple[float, ...]
    cutouts: tuple[int, ...]
    num_seeds: int
    families: tuple[str, ...] = ("KD", "IG", "AT", "Online KD", "Label smoothing", "Cutout")


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
    other_n_steps : int
        Those with which they are compared.
    num_seeds : int
        Repetitions of every arm.
    alphas, temperatures, overlay_probs, gammas : tuple of float
        Grid of the search on the validation split.
    num_subsets : int
        Random subsets of the Monte Carlo runs.
    compared : tuple of (int, float)
        Blocks removed and share of the training images of the networks for which recipes are compared.
    num_recipe_seeds : int
        Repetitions of every arm with the paper's recipe instead of the profile's.
    num_controls : int
        Seeds of the controls and of what was tuned.
    tuning : Tuning
    sweep : Sweep
        Networks of the compression sweep.
    control_variants : tuple of str
        Variants of the signals among the controls.
    """

    name: str
    dataset: str
    take: tuple[int, int] | None
    teacher: Recipe | None
    blocks_removed: int
    recipe: Recipe
    n_steps: int
    other_n_steps: int
    num_seeds: int
    alphas: tuple[float, ...]
    temperatures: tuple[float, ...]
    overlay_probs: tuple[float, ...]
    gammas: tuple[float, ...]
    num_subsets: int
    compared: tuple[tuple[int, float], ...]
    num_recipe_seeds: int
    num_controls: int
    tuning: Tuning
    sweep: Sweep
    control_variants: tuple[str, ...] = tuple(variant for variant in VARIANTS if variant != "online")


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "demo",
            "digits",
            (480, 450),
            teacher=RECIPES["demo"],
            blocks_removed=15,
            recipe=RECIPES["demo"],
            n_steps=8,
            other_n_steps=2,
            num_seeds=3,
            alphas=(0.01, 0.5, 0.9),
            temperatures=(1.0, 4.0),
            overlay_probs=(0.1, 0.5),
            gammas=(0.8, 1000.0),
            num_subsets=4,
            compared=((17, 1.0),),
            num_recipe_seeds=0,
            num_controls=1,
            tuning=Tuning((0.5,), (2.0,), (), (6,), num_seeds=1, families=("KD", "IG", "Cutout")),
            control_variants=("described", "released", "permuted", "other_image", "noise", "dimming"),
            sweep=Sweep(
                cuts=(17, 15, 13),
                arms=("Student", "KD+IG"),
                num_seeds=1,
            ),
        ),
        Profile(
            "laptop",
            "cifar10",
            (2000, 10_000),
            teacher=None,
            blocks_removed=17,
            recipe=replace(RECIPES["fast"], batch_size=32),
            n_steps=8,
            other_n_steps=50,
            num_seeds=10,
            alphas=(0.01, 0.5, 0.9),
            temperatures=(1.5, 2.5, 4.0),
            overlay_probs=(0.1, 0.25, 0.5),
            gammas=(0.8, 30.0, 1000.0),
            num_subsets=10,
            compared=((17, 1.0),),
            num_recipe_seeds=10,
            num_controls=10,
            tuning=Tuning((0.25, 0.5), (1.0, 2.0), (0.01, 0.1, 0.3), (4, 8, 16), num_seeds=3),
            # About 42 minutes of one core for 38 runs, reckoned from single steps of each network: 35 for 16 epochs of
            # 500 images, 7 for scoring 10,000 (the IG maps, which other notebooks share, not counted).
            sweep=Sweep(
                cuts=BLOCKS_REMOVED[::-1],
                arms=("Student", "KD+IG"),
                num_seeds=2,
                share=0.25,
            ),
        ),
        Profile(
            "paper",
            "cifar10",
            None,
            teacher=replace(RECIPES["fast"], num_epochs=20),
            blocks_removed=5,
            recipe=RECIPES["fast"],
            # The paper's 50 take six times as long, hours on a processor; notebook 02 asks whether a student notices.
            n_steps=8,
            other_n_steps=50,
            num_seeds=10,
            alphas=(0.0005, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.9),
            temperatures=(1.5, 2.0, 2.5, 3.0, 4.0),
            overlay_probs=(0.05, 0.1, 0.25, 0.5),
            gammas=(0.1, 0.8, 10.0, 100.0, 1000.0),
            num_subsets=10,
            # A tenth is what two processor cores train a teacher on with the recipe of 100 epochs in an hour or two.
            compared=((17, 1.0), (0, 0.1), (5, 1.0), (0, 1.0)),
            num_recipe_seeds=3,
            num_controls=10,
            tuning=Tuning((0.25, 0.5), (1.0, 2.0, 4.0), (0.01, 0.05, 0.1, 0.2), (4, 8, 12, 16), num_seeds=1),
            sweep=Sweep(
                cuts=BLOCKS_REMOVED[::-1],
                arms=("Student", "KD+IG", "KD", "IG"),
                num_seeds=5,
            ),
        ),
    )
}
VALIDATION = 0.2  # share of the training images on which constants are chosen


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
    second_teacher_key : str
        Key of the run of another teacher.
    accuracy : callable
        The recorded accuracy of the run with this key, None if it is not recorded: for experiments whose constants
        another experiment decides.
    """

    profile: Profile
    data: str
    teacher_key: str
    second_teacher_key: str
    accuracy: Callable[[str], float | None] = field(default=lambda key: None, compare=False)

    def student(
        self,
        method: Method,
        seed: int,
        *,
        subset: Subset = Subset(),
        split: str = "test",
        architecture: Architecture | None = None,
        variant: str = "described",
        n_steps: int | None = None,
    ) -> Run:
        """A student of the profile, or with another network or number of integration steps than the profile's."""
        network = architecture or Architecture(self.profile.blocks_removed)
        signals = None
        if method.uses_teacher:
            signals = SignalSpec(self.teacher_key, variant, n_steps or self.profile.n_steps)
        return Run(self.data, subset, network, method, self.profile.recipe, signals, seed, split)


def profile(name: str) -> Profile:
    """The profile of this name."""
    if name not in PROFILES:
        raise InputError(f"no profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]


def teacher_run(data: str, recipe: Recipe, seed: int = 0) -> Run:
    """Training of a teacher on all training images."""
    return Run(data, Subset(), Architecture(normalize=True), Method(), recipe, None, seed)


def steps(plan: Plan) -> list[Planned]:
    """Overlays alone with maps of the profile's number of integration steps and of another."""
    return [
        Planned(
            "steps", {"arm": "IG", "n_steps": n_steps, "seed": seed}, plan.student(ARMS["IG"], seed, n_steps=n_steps)
        )
        for seed in range(plan.profile.num_controls)
        for n_steps in (plan.profile.n_steps, plan.profile.other_n_steps)
    ]


def arms(plan: Plan, names=("Student", "KD", "IG", "KD+IG")) -> list[Planned]:
    """The arms with shared seeds; useful first: all arms of one seed before the next seed."""
    return [
        Planned("arms", {"arm": name, "seed": seed}, plan.student(ARMS[name], seed))
        for seed in range(plan.profile.num_seeds)
        for name in names
    ]


def search(plan: Plan) -> list[Planned]:
    """One-ingredient searches on the validation split, one seed a point, as in the paper.

    The plain student has all seeds of the profile, because the gains of all points are taken from it.
    """
    grid = plan.profile
    subset = Subset(validation=VALIDATION)
    points = [("Student", method(), seed) for seed in range(grid.num_seeds)]
    points += [("KD", Method(alpha=alpha, temperature=t), 0) for alpha in grid.alphas for t in grid.temperatures]
    points += [("IG", Method(overlay_prob=p), 0) for p in grid.overlay_probs]
    points += [("AT", Method(gamma=gamma), 0) for gamma in grid.gammas]
    return [
        Planned(
            "search",
            {
                "arm": name,
                "alpha": m.alpha,
                "temperature": m.temperature,
                "overlay_prob": m.overlay_prob,
                "gamma": m.gamma,
                "seed": seed,
            },
            plan.student(m, seed, subset=subset, split="validation"),
        )
        for name, m, seed in points
    ]


def factorial(plan: Plan) -> list[Planned]:
    """All eight arms."""
    return arms(plan, tuple(ARMS))


def attention_weights(plan: Plan) -> list[Planned]:
    """Attention transfer alone at several weights, on the validation split; gamma 0 is the plain student."""
    subset = Subset(validation=VALIDATION)
    return [
        Planned(
            "attention_weights",
            {"arm": "AT" if gamma else "Student", "gamma": gamma, "seed": seed},
            plan.student(Method(gamma=gamma), seed, subset=subset, split="validation"),
        )
        for seed in range(plan.profile.num_seeds)
        for gamma in (0.0, *plan.profile.gammas)
    ]


def monte_carlo(plan: Plan) -> list[Planned]:
    """Four arms on stratified random 80 % of the training images; arms with the same seed share the subset."""
    return [
        Planned("monte_carlo", {"arm": name, "seed": seed}, plan.student(ARMS[name], seed, subset=Subset(0.8, seed)))
        for seed in range(plan.profile.num_subsets)
        for name in ("Student", "KD", "KD+IG", "KD+IG+AT")
    ]


def recipes(plan: Plan) -> list[Planned]:
    """The profile's recipe against the paper's, without a teacher: what fewer epochs cost or gain.

    The uncut network is trained with `RECIPES["teacher"]` too. At least two seeds each.
    """
    own, paper, teacher = plan.profile.recipe, _paper_recipe(plan), RECIPES["teacher"]
    return [
        Planned(
            "recipes",
            {"arm": "Student", "blocks_removed": cut, "recipe": recipe.name, "seed": seed},
            Run(plan.data, Subset(share), Architecture(cut, normalize=cut == 0), Method(), recipe, None, seed),
        )
        for seed in range(max(2, plan.profile.num_recipe_seeds))
        for cut, share in plan.profile.compared
        for recipe in (own, *([teacher] if cut == 0 else []), paper)
    ]


def recipe_arms(plan: Plan) -> list[Planned]:
    """The arms with the paper's recipe, of the seeds that also have the profile's: do arms differ alike under both?"""
    paper = _paper_recipe(plan)
    return [
        Planned("recipes", item.labels | {"recipe": paper.name}, replace(item.run, recipe=paper))
        for item in arms(plan)
        if item.labels["seed"] < plan.profile.num_recipe_seeds
    ]


def second_teacher(plan: Plan) -> list[Planned]:
    """The training of the second teacher, in the profile that is of its images."""
    run = teacher_run(plan.data, RECIPES["teacher"])
    if run.key != plan.second_teacher_key or not second_teacher_arms(plan):
        return []
    return [Planned("teacher", {"arm": "Second teacher", "seed": run.seed}, run)]


def second_teacher_arms(plan: Plan) -> list[Planned]:
    """The arms with signals of a second teacher, of the seeds of `recipe_arms`."""
    return [
        Planned(
            "second_teacher",
            item.labels | {"teacher": "second"},
            replace(item.run, signals=replace(item.run.signals, teacher=plan.second_teacher_key)),
        )
        for item in arms(plan)
        if item.run.signals and item.labels["seed"] < plan.profile.num_recipe_seeds
    ]


def _paper_recipe(plan: Plan) -> Recipe:
    """With the crops of the profile's own recipe, which depend on the images."""
    return replace(RECIPES["paper"], padding=plan.profile.recipe.padding)


# Distillation with the logits of other images pulls, on average over the order, as one target for all images does: the
# gradient of T^2 KL(p || softmax(z / T)) is T (softmax(z / T) - p), linear in p, and the mean p of a teacher of balanced
# classes is nearly uniform. So KD's own alpha and T with uniform logits have permuted KD's strength at every z, and
# what is left between the two arms is that each image keeps its own wrong target. Label smoothing is the case T = 1. For
# small z both gradients are (z - mean z) / K whatever T is, so alpha is the same; for large z that of T = 2.5 is up to
# 2.5 times larger, and for ten classes and alpha = 0.01 the loss is least at a margin of 6.5 over the other logits
# instead of 6.9, where label smoothing of strength 0.014 would have it.
LABEL_SMOOTHING = Method(alpha=ARMS["KD"].alpha, temperature=1.0)

_STUDENT = ("Student", "")
_COMPARED = ("KD", "IG", "KD+IG", "KD+IG+AT")
_IN_PLACE_OF_IG = (*MAP_CONTROLS, *ATTRIBUTIONS)
#: What the controls are compared for, declared before they are run: question, (arm, variant), its reference.
CONTRASTS = (
    *(("gain as described", (name, "described"), _STUDENT) for name in _COMPARED),
    *(("gain as released", (name, "released"), _STUDENT) for name in _COMPARED),
    ("gain without a map", ("IG", "dimming"), _STUDENT),
    *(("content of the map", ("IG", variant), ("IG", "described")) for variant in _IN_PLACE_OF_IG),
    ("gain of permuted logits", ("KD", "permuted"), _STUDENT),
    ("alignment of the logits", ("KD", "permuted"), ("KD", "described")),
    ("crop of the logits", ("KD", "released"), ("KD", "permuted")),
    ("permuted logits against uniform ones", ("KD", "permuted"), ("KD", "uniform")),
    ("gain of label smoothing", ("Label smoothing", "uniform"), _STUDENT),
)


def controls(plan: Plan) -> list[Planned]:
    """The arms of `contrasts`, see `igkd.variants.VARIANTS`; all arms of one seed before the next seed."""
    compared = [(*_STUDENT, ARMS["Student"])]
    compared += [(name, variant, ARMS[name]) for variant in ("described", "released") for name in _COMPARED]
    compared += [("IG", variant, ARMS["IG"]) for variant in _IN_PLACE_OF_IG]
    compared += [("KD", variant, ARMS["KD"]) for variant in ("permuted", "uniform")]
    compared += [("Label smoothing", "uniform", LABEL_SMOOTHING)]
    return [
        Planned("controls", {"arm": name, "variant": variant, "seed": seed}, plan.student(m, seed, variant=variant))
        for seed in range(plan.profile.num_controls)
        for name, variant, m in compared
        if variant in ("", *plan.profile.control_variants)
    ]


def contrasts(plan: Plan) -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Those of `CONTRASTS` whose arms the profile trains: the family over which p-values are corrected."""
    trained = {(item.labels["arm"], item.labels["variant"]) for item in controls(plan)}
    return [each for each in CONTRASTS if {each[1], each[2]} <= trained]


#: Ways of training that are tuned, each by itself, with the variant of the teacher's signals that it takes.
FAMILIES = {
    "KD": "described",
    "IG": "described",
    "AT": "described",
    "Online KD": "online",
    "Label smoothing": "uniform",
    "Cutout": "described",
}


def _tried(profile: Profile, family: str) -> list[Method]:
    """The constants of one family that are tried on the validation split."""
    grid = profile.tuning
    if family in ("KD", "Online KD"):
        return [Method(alpha=alpha, temperature=t) for alpha in profile.alphas for t in profile.temperatures]
    if family == "IG":
        return [
            Method(overlay_prob=p, overlay_weight=weight, max_exponent=exponent)
            for p in profile.overlay_probs
            for weight in grid.overlay_weights
            for exponent in grid.max_exponents
        ]
    if family == "AT":
        return [Method(gamma=gamma) for gamma in profile.gammas]
    if family == "Label smoothing":
        return [replace(LABEL_SMOOTHING, alpha=strength) for strength in grid.smoothings]
    return [Method(cutout=side) for side in grid.cutouts]


def _set(method: Method) -> dict:
    """The constants that are not those of the plain student."""
    default = Method()
    return {name: value for name, value in vars(method).items() if value != getattr(default, name)}


def tuning(plan: Plan) -> list[Planned]:
    """Every family's constants on the validation split: the same seeds and the same images for all."""
    grid = plan.profile.tuning
    points = [("Student", "described", method())]
    points += [(family, FAMILIES[family], m) for family in grid.families for m in _tried(plan.profile, family)]
    subset = Subset(validation=VALIDATION)
    return [
        Planned(
            "tuning",
            {"arm": family, "seed": seed} | _set(m),
            plan.student(m, seed, subset=subset, split="validation", variant=variant),
        )
        for seed in range(grid.num_seeds)
        for family, variant, m in points
    ]


def chosen(plan: Plan) -> dict[str, Method]:
    """For each family the constants with the highest mean accuracy on the validation split, of equals the first.

    Empty as long as a run of `tuning` is missing.
    """
    found: dict[str, dict[Method, list[float]]] = {}
    for item in tuning(plan):
        accuracy = plan.accuracy(item.run.key)
        if accuracy is None:
            return {}
        found.setdefault(item.labels["arm"], {}).setdefault(item.run.method, []).append(accuracy)
    # All points of a family have as many runs, so the sums are ordered as the means are.
    return {family: max(tried, key=lambda m: sum(tried[m])) for family, tried in found.items()}


#: What the tuned ways of training are compared for: question, arm, its reference. All were declared before the runs but
#: the last two, which were added when the laptop's results were known, because a reader asked whether the overlay adds
#: to KD and attention. They enter the correction all the same.
FAIR_CONTRASTS = (
    *(("gain over the plain student", arm, "Student") for arm in (*FAMILIES, "KD+IG")),
    ("overlay beside KD", "KD+IG", "KD"),
    ("overlay beside a consistent teacher", "Online KD+IG", "Online KD"),
    ("attention beside KD and overlay", "KD+IG+AT", "KD+IG"),
    ("overlay against cutout", "IG", "Cutout"),
    ("overlay against cutout, beside KD", "KD+IG", "KD+Cutout"),
    ("overlay against label smoothing", "IG", "Label smoothing"),
    ("KD and overlay against a consistent teacher", "KD+IG", "Online KD"),
    ("gain over the plain student", "KD+IG+AT", "Student"),
    ("overlay beside KD and attention", "KD+IG+AT", "KD+AT"),
)


def fair_contrasts(plan: Plan) -> list[tuple[str, str, str]]:
    """Those of `FAIR_CONTRASTS` whose arms the profile trains: a family of its own for the correction."""
    families = {"Student", *plan.profile.tuning.families}
    return [each for each in FAIR_CONTRASTS if {*each[1].split("+"), *each[2].split("+")} <= families]


def tuned(plan: Plan) -> list[Planned]:
    """The arms of `fair_contrasts` with the constants that `tuning` chose; none until it is complete.

    An arm of several ingredients has the constants of each. All arms of one seed come before the next seed.
    """
    best = chosen(plan)
    if not best:
        return []
    arms = dict.fromkeys(arm for _, *pair in fair_contrasts(plan) for arm in pair)

    def combined(arm: str) -> Method:
        return Method(**{name: value for part in arm.split("+") for name, value in _set(best[part]).items()})

    return [
        Planned(
            "tuned",
            {"arm": arm, "seed": seed},
            plan.student(combined(arm), seed, variant=FAMILIES.get(arm.split("+")[0], "described")),
        )
        for seed in range(plan.profile.num_controls)
        for arm in arms
    ]


def sweep(plan: Plan) -> list[Planned]:
    """Networks of several sizes; one seed of all before the next seed, cheap networks first.

    Arms of one seed share the training images, for all networks.
    """
    grid = plan.profile.sweep
    return [
        Planned(
            "sweep",
            {"arm": arm, "blocks_removed": cut, "width": 1.0, "seed": seed},
            plan.student(
                ARMS[arm],
                seed,
                subset=Subset(grid.share, seed) if grid.share < 1 else Subset(),
                architecture=Architecture(cut),
            ),
        )
        for seed in range(grid.num_seeds)
        for arm in grid.arms
        for cut in grid.cuts
    ]


def shown(plan: Plan) -> list[Planned]:
    """The students whose networks the notebooks show, not only their accuracy: their weights come with the repository."""
    published_cut = [
        item for item in sweep(plan) if (item.labels["arm"], item.labels["blocks_removed"]) == ("KD+IG", 5)
    ]
    return [item for item in factorial(plan) + published_cut if item.labels["seed"] == 0]


#: The teacher's own notebook.
TEACHER_NOTEBOOK = "01"
#: Which experiments each notebook declares, besides the profile's own teacher.
NOTEBOOKS = {
    "00": (arms,),
    TEACHER_NOTEBOOK: (),
    "02": (steps,),
    "03": (arms, search),
    "04": (factorial, attention_weights),
    "05": (monte_carlo,),
    "06": (factorial,),
    "07": (sweep,),
    "08": (controls,),
}
#: Notebooks that measure time, so that nothing runs beside them.
TIMED = {"02", "07"}
