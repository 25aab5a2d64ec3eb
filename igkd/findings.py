"""What follows from public files and our records and is not in the paper, as sentences with their numbers."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from igkd import experiments, other_images, published, statistics
from igkd.costs import read_measurement
from igkd.device import machine_name
from igkd.engine import Study
from igkd.errors import MissingImages
from igkd.losses import fitted_loss
from igkd.methods import RECIPES
from igkd.models import compression_factor

#: What an attention loss of 8x8 maps is at most (`igkd.losses.attention_loss`).
ATTENTION_LIMIT = 2 / 64
#: Training images of the paper's Monte Carlo runs: 80 % of CIFAR-10's.
PUBLISHED_MONTE_CARLO = 40_000


class Statement(NamedTuple):
    """A finding in one sentence, and what has to be known to judge it.

    Attributes
    ----------
    says : str
        With its main number.
    detail : str
        How it was found, the other numbers, what speaks against it; may be empty.
    """

    says: str
    detail: str = ""


def findings(study: Study) -> dict[str, list[Statement]]:
    """All statements for which the records are enough, under what they are about.

    Parameters
    ----------
    study : Study
        Its images are not needed. What is recorded of all training images is of the paper profile.
    """
    full = Study("paper", study.data, "cpu", study.root, study.log)
    try:
        full.plan
    except MissingImages:  # nothing of this size is recorded
        full = None
    students = study.table([item for item in experiments.arms(study.plan) if item.labels["arm"] == "Student"])
    level = "" if students.empty else f", Student at {students.accuracy.mean():.0%}"
    found = {
        "In the published numbers": [*_of_published_runs(), *_of_published_logs(full)],
        f"Here, with a small student and few images: {study.describe_student()}; {study.images.n_train:,} images to train "
        f"on{level}": [
            *_of_maps(study),
            *_of_maps_beside_logits(study),
            *_of_tuned_arms(study),
            *_of_attention(study),
            *_of_recipes(study, full),
            *_of_second_teacher(study),
            *_of_steps(study),
            *_of_corruption(study),
        ],
        "Here, with all training images": _of_all_images(full) if full else [],
        "Here, the teacher's network": _of_teacher_recipe(full) if full else [],
        "Here, speed": _of_latency(study),
    }
    return {about: sentences for about, sentences in found.items() if sentences}


def gradient_shares(epochs: pd.DataFrame) -> pd.DataFrame:
    """Each loss term's share of the sum of the gradient norms.

    Parameters
    ----------
    epochs : DataFrame
        From `Study.epochs`.

    Returns
    -------
    DataFrame
        One row a run, epoch and term: ``key``, ``epoch``, ``term``, ``share`` (a fraction).
    """
    norms = epochs.filter(like="gradient_norms.")
    long = norms.div(norms.sum(axis=1), axis=0).assign(key=epochs.key, epoch=epochs.epoch)
    long = long.melt(["key", "epoch"], var_name="term", value_name="share").dropna(subset="share")
    return long.assign(term=long.term.str.removeprefix("gradient_norms.").str.replace("_", "-"))


def published_gap() -> float:
    """By how much the published teacher's logit of the label would exceed its others.

    It is the gap whose probability of the label, all other logits being equal, is the published mean over some test
    images of one class.
    """
    stated = published.confidence().set_index("network").loc["Teacher"]
    odds = stated.label_probability / (1 - stated.label_probability)
    return float(stated.temperature * np.log(odds * 9))  # ten classes


def distillation_left(logs: pd.DataFrame) -> pd.DataFrame:
    """Which part of the final training losses of published logs distillation has.

    Neither what the plain student's loss is nor what attention transfer adds at most is distillation's.

    Parameters
    ----------
    logs : DataFrame
        `igkd.published.training_logs`.

    Returns
    -------
    DataFrame
        One row an arm with KD: ``arm``, ``least`` and ``most`` that is left for distillation (nats), ``aligned``, the
        most that aligned logits leave in a student that fits its images, at any gap (`igkd.losses.fitted_loss`), and
        ``gap_from`` and ``gap_to``, between which permuted logits leave as much as the log.
    """
    plain = logs.set_index("arm").train_loss["Student"]
    gaps = np.linspace(0, 20, 81)
    rows = []
    for log in logs[logs.alpha > 0].itertuples():
        aligned, permuted = (
            [fitted_loss(gap, log.alpha, log.temperature, permuted=kind)["loss"] for gap in gaps]
            for kind in (False, True)
        )
        least = log.train_loss - plain - log.gamma * ATTENTION_LIMIT
        near, far = np.interp([least, log.train_loss], permuted, gaps)
        row = {"arm": log.arm, "least": least, "most": log.train_loss, "aligned": max(aligned)}
        rows.append(row | {"gap_from": near, "gap_to": far})
    return pd.DataFrame(rows)


def sweep_gains(study: Study) -> pd.DataFrame:
    """What each arm of the compression sweep gains over the plain student, as far as pairs of runs are recorded.

    Returns
    -------
    DataFrame
        One row a cut and arm with at least two pairs: ``blocks_removed``, and the columns of
        `igkd.statistics.compare_recorded`, paired by seed; ``p_holm`` over the arms of a cut.
    """
    runs = study.table(experiments.sweep(study.plan))
    if runs.empty:
        return pd.DataFrame()
    pairs = [(arm, "Student") for arm in study.profile.sweep.arms if arm != "Student"]
    found = [
        statistics.compare_recorded(of_cut, pairs, pair_by="seed").assign(blocks_removed=cut)
        for cut, of_cut in runs[runs.width == 1].groupby("blocks_removed")
    ]
    return pd.concat(found).query("n >= 2").reset_index(drop=True)


def recipe_differences(study: Study) -> pd.DataFrame:
    """How far each recipe is from the paper's for networks that are trained without a teacher.

    Returns
    -------
    DataFrame
        One row a network, number of training images and recipe of which a run has one of the paper's recipe with the same
        seed beside it: ``blocks_removed``, ``n_train``, and columns of `igkd.statistics.compare_recorded`, where ``arm``
        is the recipe in words and ``reference`` the paper's. p-values are not corrected.
    """
    runs = study.table(experiments.recipes(study.plan))
    paper, found = RECIPES["paper"].name, []
    for (cut, n_train), each in runs.groupby(["blocks_removed", "n_train"]) if len(runs) else ():
        pairs = [(recipe, paper) for recipe in each.recipe.unique() if recipe != paper]
        if not pairs:
            continue
        compared = statistics.compare_recorded(each.assign(arm=each.recipe), pairs, pair_by="seed")
        found.append(compared[compared.n > 0].assign(blocks_removed=cut, n_train=n_train).drop(columns="p_holm"))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["blocks_removed", "n_train"])


def second_teacher_changes(study: Study) -> pd.DataFrame:
    """What the arms gain with a second teacher, and how far that is from their gain with the study's own.

    Returns
    -------
    DataFrame
        Columns of `igkd.statistics.compare_recorded`, paired by seed, ``p_holm`` over all rows: first each arm, whose
        name ends in ``, second teacher``, less Student, then each less the same arm with the study's teacher. No rows
        before such arms are recorded.
    """
    taught = study.table(experiments.second_teacher_arms(study.plan))
    if taught.empty:
        return pd.DataFrame(columns=["arm", "reference", "n"])
    named = {arm: f"{arm}, second teacher" for arm in taught.arm.unique()}
    runs = pd.concat([study.table(experiments.arms(study.plan)), taught.assign(arm=taught.arm.map(named))])
    pairs = [(name, "Student") for name in named.values()] + [(name, arm) for arm, name in named.items()]
    return statistics.compare_recorded(runs, pairs, pair_by="seed")


def recipe_gains(study: Study) -> pd.DataFrame:
    """What each arm gains over the plain student of the same seed, with the profile's recipe and with the paper's.

    Returns
    -------
    DataFrame
        One row a pair of runs, arm by arm: ``arm``, ``recipe`` (in words, the profile's first), ``seed``, ``gain`` (a
        fraction). Only seeds of which all arms are recorded with both recipes.
    """
    found = []
    for declared in (experiments.arms(study.plan), experiments.recipe_arms(study.plan)):
        runs = study.table(declared)
        if runs.empty:
            return pd.DataFrame(columns=["arm", "recipe", "seed", "gain"])
        declared_arms = dict.fromkeys(item.labels["arm"] for item in declared)
        by_arm = runs.pivot(index="seed", columns="arm", values="accuracy").reindex(columns=declared_arms)
        gain = by_arm.drop(columns="Student").sub(by_arm["Student"], axis=0).dropna()
        found.append(gain.melt(value_name="gain", ignore_index=False).assign(recipe=declared[0].run.recipe.name))
    gains = pd.concat(found).reset_index()
    gains = gains[gains.groupby(["arm", "seed"]).gain.transform("size") == 2]
    places = {arm: place for place, arm in enumerate(experiments.ARMS)}
    return gains.sort_values("arm", key=lambda arms: arms.map(places), kind="stable", ignore_index=True)


def recipe_changes(gains: pd.DataFrame) -> pd.DataFrame:
    """How far the gains with the paper's recipe are from those with the profile's.

    Parameters
    ----------
    gains : DataFrame
        From `recipe_gains`, with at least two seeds.

    Returns
    -------
    DataFrame
        One row an arm, with the columns of `igkd.statistics.compare_pairs`: ``mean`` is the gain with the paper's
        recipe, ``mean_reference`` with the profile's, ``reference``; paired by seed, ``p_holm`` over the arms.
    """
    own, paper = gains.recipe.unique()
    named = gains.assign(arm=gains.arm + gains.recipe)
    arms = gains.arm.unique()
    pairs = [(arm + paper, arm + own) for arm in arms]
    return statistics.compare_pairs(named, pairs, pair_by="seed", value="gain").assign(arm=arms, reference=own)


def published_gain() -> tuple[statistics.Comparison, float]:
    """KD+IG against Student in the ten published runs of each: of the means, and of the best run over the best."""
    by_arm = published.ablation_runs().groupby("arm").accuracy
    both, student = by_arm.get_group("KD+IG"), by_arm.get_group("Student")
    return statistics.compare(both, student, paired=False), float(both.max() - student.max())


def overlay_effect(study: Study) -> pd.Series | None:
    """What IG overlays change on average over the other ingredients: the row of `igkd.statistics.factorial`.

    None with fewer than two runs of an arm.
    """
    runs = study.table(experiments.factorial(study.plan))
    if runs.empty or runs.groupby("arm").size().reindex(experiments.ARMS).fillna(0).min() < 2:
        return None
    return statistics.factorial(runs, block="seed").set_index("term").loc["IG"]


def _of_published_runs() -> list[Statement]:
    gain, best = published_gain()
    effects = statistics.factorial(published.ablation_runs()).set_index("term")
    listed = "; ".join(
        f"{term} {_corrected(effects.loc[term], len(effects), 'estimate')}" for term in ("KD", "IG", "AT")
    )
    monte_carlo = published.monte_carlo_summary().set_index("arm")
    variance = monte_carlo.variance_ddof1["KD+IG"] / monte_carlo.variance_ddof1["Student"]
    means = monte_carlo["mean"]
    table13 = published.compression_sweep().query("blocks_removed == 5").set_index("arm").accuracy
    gains = gain.difference, means["KD+IG"] - means["Student"], table13["KD+IG"] - table13["Student"]
    return [
        Statement(
            f"The published runs do show a gain of KD+IG: its ten are {_points(gain)} ahead of the ten of Student in the mean.",
            f"{gain.test}'s test, p = {gain.p:.1g}. The abstract's gain is of the best run against the best, {100 * best:+.2f} "
            "(notebook 03).",
        ),
        Statement(
            f"This gain, at 4.12x, is published three times: {', '.join(f'{100 * each:+.2f}' for each in gains)} points.",
            f"In this order: the ablation ({gain.n} runs each), Monte Carlo ({monte_carlo.n['KD+IG']} runs each on 80 % of the "
            f"images), Table 13 (number of runs not stated; KD alone {100 * (table13['KD'] - table13['Student']):+.2f}). KD+IG "
            f"itself has {gain.mean:.2%} in the ablation and {table13['KD+IG']:.2%} in Table 13, with the same constants "
            "(ledger, notebook 07).",
        ),
        Statement(
            "Averaged over the eight published arms, a 2 x 2 x 2 design, KD changes the accuracy by "
            f"{100 * effects.estimate['KD']:+.2f} points, IG by {100 * effects.estimate['IG']:+.2f}, AT by "
            f"{100 * effects.estimate['AT']:+.2f}.",
            f"{listed} (notebook 04).",
        ),
        Statement(
            f"In the published Monte Carlo sample KD+IG has {variance:.1f} times the variance of Student.",
            "(Notebook 05.)",
        ),
    ]


def _of_published_logs(full: Study | None) -> list[Statement]:
    logs = published.training_logs()
    log = logs.set_index("arm").loc["KD+IG+AT"]
    kd = [item for item in experiments.arms(full.plan) if item.labels["arm"] == "KD"] if full else []
    ends = full.epochs(kd) if full else pd.DataFrame()
    ours = ""
    if len(ends) and (kd[0].run.method.alpha, kd[0].run.method.temperature) == (log.alpha, log.temperature):
        last = log.alpha * ends.groupby("key").distillation.last()
        factor = compression_factor(full.profile.blocks_removed)
        ours = f"; our own student at {factor:.2f}x, with the constants of the last, has {last.mean():.3f} (n = {len(last)})"
    listed = ", ".join(
        f"{row.least:.2f} to {row.most:.2f} ({row.arm}) where its own targets leave {row.aligned:.2f} at most"
        for row in distillation_left(logs).itertuples()
    )
    return [
        Statement(
            "The paper describes signals of the image itself; the released code, as it stands, draws images and stored signals "
            "in separate orders. Both versions are trained here.",
            "Two published training logs end with more distillation loss than a student that fits its images should have in a "
            f"closed form: {listed}{ours}. Targets of other images leave as much if the teacher is somewhat surer than it was "
            "on some published images. Two single runs are no proof, and they say nothing of the maps (notebook 08, with the "
            "assumptions).",
        )
    ]


def _of_attention(study: Study) -> list[Statement]:
    full = [item for item in experiments.factorial(study.plan) if item.labels["arm"] == "KD+IG+AT"]
    epochs = study.epochs(full)
    if epochs.filter(like="gradient_norms.").empty:
        return []
    shares = gradient_shares(epochs)
    return [
        Statement(
            f"With the paper's weight, gamma = {full[0].run.method.gamma:g}, attention transfer has "
            f"{shares[shares.term == 'attention'].share.mean():.2%} of the sum of the gradient norms in KD+IG+AT.",
            f"{shares.key.nunique()} seeds (notebook 04). In the paper's network, whose maps have fewer positions, the term can "
            f"be up to {ATTENTION_LIMIT / (2 / np.prod(study.images.size)):.0f} times as large.",
        )
    ]


def _of_maps(study: Study) -> list[Statement]:
    runs = study.table(experiments.controls(study.plan))
    effect = overlay_effect(study)
    if runs.empty or effect is None:
        return []
    runs["arm"] = (runs.arm + " " + runs.variant).str.strip()
    family = [(f"{arm[0]} {arm[1]}", " ".join(other).strip()) for _, arm, other in experiments.contrasts(study.plan)]
    found = statistics.compare_recorded(runs[["arm", "seed", "accuracy"]], family, pair_by="seed").set_index("arm")
    others = found[found.reference == "IG described"]
    if others.empty or others.n.min() < 2:
        return []
    differing = others[others.p_holm < 0.05]
    names = ", ".join(
        f"{name.split()[1].replace('_', ' ')} {100 * row.difference:+.1f}" for name, row in differing.iterrows()
    )
    told = "none" if differing.empty else len(differing)
    sd = statistics.spread(*(_paired(runs, name, "IG described") for name in others.index)).estimate
    visible = statistics.minimal_detectable_difference(int(others.n.min()), sd, paired=True, alpha=0.05 / len(found))
    return [
        Statement(
            f"Arms with IG maps less the same arms without: {_points(effect, 'estimate')} in the mean.",
            f"p = {effect.p_holm:.2g} (Holm over 7), {effect.n:.0f} runs (notebook 04).",
        ),
        Statement(
            f"Of {len(others)} controls in place of the map (maps of other images, noise, plain dimming, other attributions) "
            f"{told} can be told from it; {others.n.min()} pairs find a difference of about {100 * visible:.1f} points.",
            f"After Holm's correction over {len(found)} questions"
            + (f", less IG: {names} points" if len(differing) else "")
            + ". That is not to say that the others are equal: a smaller difference would be missed more often than in one of "
            "five studies (80 % power, notebook 08).",
        ),
    ]


def _paired(runs: pd.DataFrame, arm: str, reference: str) -> pd.Series:
    by_arm = runs[runs.arm.isin([arm, reference])].pivot(index="seed", columns="arm", values="accuracy").dropna()
    return by_arm[arm] - by_arm[reference]


def _of_maps_beside_logits(study: Study) -> list[Statement]:
    short, listed = [], []
    for name, planned, theirs in (
        ("all images", experiments.arms(study.plan), published.ablation_runs().groupby("arm").accuracy.mean()),
        (
            "random 80 % of them",
            experiments.monte_carlo(study.plan),
            published.monte_carlo_summary().set_index("arm")["mean"],
        ),
    ):
        runs = study.table(planned)
        if runs.empty:
            continue
        pairs = [("KD+IG", "KD"), ("KD+IG", "Student"), ("KD", "Student")]
        beside, both, kd = statistics.compare_recorded(runs, pairs, pair_by="seed").itertuples()
        if beside.n >= 2:
            short.append(f"{_points(beside)} with {name}")
            listed.append(
                f"With {name}, {beside.n} pairs: against Student KD+IG {100 * both.difference:+.2f}, KD "
                f"{100 * kd.difference:+.2f}; published at 4.12x, KD+IG less KD: {100 * (theirs['KD+IG'] - theirs['KD']):+.2f}."
            )
    if not listed:
        return []
    return [
        Statement(
            f"What is new in the paper is the overlay beside KD; KD+IG less KD: {', '.join(short)}.",
            f"The paper's claims compare with Student. {' '.join(listed)} Not among the questions declared beforehand "
            "(notebooks 03 and 05).",
        )
    ]


def _of_tuned_arms(study: Study) -> list[Statement]:
    runs = study.table(experiments.tuned(study.plan))
    if runs.empty:
        return []
    asked = [pair for _, *pair in experiments.fair_contrasts(study.plan)]
    found = statistics.compare_recorded(runs, asked, pair_by="seed").set_index(["arm", "reference"])
    shown = (("KD", "Student"), ("KD+IG", "KD"), ("KD+IG+AT", "KD+IG"), ("KD+IG+AT", "KD+AT"), ("KD+IG+AT", "Student"))
    rows = {pair: found.loc[pair] for pair in shown if pair in found.index}
    if not rows or min(row.n for row in rows.values()) < 2:
        return []
    listed = "; ".join(f"{arm} less {other} {_corrected(row, len(found))}" for (arm, other), row in rows.items())
    n_seeds, held_out = study.profile.tuning.num_seeds, round(experiments.VALIDATION * study.images.n_train)
    late = {("KD+IG+AT", "KD+AT"), ("KD+IG+AT", "Student")}  # declared when the others were known
    said = "; ".join(
        f"{arm} less {other} {_points(row)}{' (asked afterwards)' * ((arm, other) in late)}"
        for (arm, other), row in rows.items()
        if (arm, other) in {("KD+IG", "KD"), ("KD+IG+AT", "Student")}
    )
    return [
        Statement(
            f"With constants chosen for each ingredient by itself: {said}.",
            f"{listed} ({min(row.n for row in rows.values())} pairs; "
            f"{' and '.join(' less '.join(pair) for pair in rows if pair in late) or 'none'} asked when the others were known). "
            f"The constants come from {n_seeds} runs a point on {held_out} held-out images, too few to choose well; combinations "
            "are not tuned (notebook 08).",
        )
    ]


def _of_recipes(study: Study, full: Study | None) -> list[Statement]:
    gains = recipe_gains(study)
    n = gains.seed.nunique()
    if n < 2:
        return []
    own, paper = gains.recipe.unique()
    cut = study.profile.blocks_removed
    level, *_ = recipe_differences(study).query("blocks_removed == @cut and arm == @own").itertuples()
    larger = recipe_differences(full).query("blocks_removed == @cut") if full else pd.DataFrame()
    elsewhere = "".join(
        f" (with {row.n_train:,} images, {row.arm}: {_points_of_pairs(row)})" for row in larger.itertuples()
    )
    ours, theirs = (
        statistics.spread(of_recipe[of_recipe.arm == "KD+IG"].gain)
        for _, of_recipe in gains.groupby("recipe", sort=False)
    )
    both = gains[gains.arm == "KD+IG"].pivot(index="seed", columns="recipe", values="gain")
    visible = statistics.minimal_detectable_difference(n, float((both[paper] - both[own]).std()), paired=True)
    compared = recipe_changes(gains)
    changes = "; ".join(
        f"{row.arm} {100 * row.mean_reference:+.2f} and {100 * row.mean:+.2f}, a change of {_corrected(row, len(compared))}"
        for row in compared.itertuples()
    )
    changed = compared.arm[compared.p_holm < 0.05]
    return [
        Statement(
            f"With the paper's recipe the gain of {' and of '.join(changed)} is another than with our shorter one."
            if len(changed)
            else f"Whether our shorter recipe and the paper's lead to the same conclusion is open: {n} seeds find a change of a "
            f"gain only if it is about {100 * visible:.1f} points or larger.",
            f"With our recipe ({own}) the plain student reaches {level.mean:.1%}, with the paper's ({paper}) "
            f"{level.mean_reference:.1%}: {_points(level)}{elsewhere}. Gains over it with the one and the other: {changes}. The "
            f"gain of KD+IG scatters from seed to seed by {_range(ours)} points with ours and by {_range(theirs)} with the "
            "paper's (80 % power, notebook 03).",
        )
    ]


def _of_second_teacher(study: Study) -> list[Statement]:
    found = second_teacher_changes(study)
    own, second = (study.store.find(key) for key in (study.plan.teacher_key, study.plan.second_teacher_key))
    if found.empty or found.n.min() < 2 or not own or not second:
        return []
    gains, changes = (
        "; ".join(f"{row.arm.partition(',')[0]} {_corrected(row, len(found))}" for row in part.itertuples())
        for _, part in found.groupby(found.reference != "Student")
    )
    gained = [
        row.arm.partition(",")[0] for row in found.itertuples() if row.reference == "Student" and row.difference > 0
    ]
    ahead = f"the mean of {' and of '.join(gained)} is" if gained else "no arm is"
    different = found[(found.reference != "Student") & (found.p_holm < 0.05)].reference
    told = f"{' and '.join(different)} can be told" if len(different) else "no arm can be told"
    return [
        Statement(
            f"With signals of a second teacher {ahead} ahead of Student; {told} from the same arm with the first teacher's.",
            f"The second is the same network, trained on the same images: {second.run.recipe.name}, "
            f"{second.outcome['accuracy']:.2%}; the first: {own.run.recipe.name}, {own.outcome['accuracy']:.2%}. Less Student: "
            f"{gains}. Less the same arms with the first teacher's: {changes} ({found.n.min()} pairs, notebook 03).",
        )
    ]


def _of_teacher_recipe(full: Study) -> list[Statement]:
    """What the teacher's network reaches with few epochs."""
    found = recipe_differences(full)
    few = found[(found.blocks_removed == 0) & (found.n_train < full.images.n_train)]
    if few.empty:
        return []
    compared = "; ".join(
        f"{row.arm}: {row.mean:.1%} against {row.mean_reference:.1%}, {_points_of_pairs(row)}"
        for row in few.itertuples()
    )
    recipe = RECIPES["teacher"].name
    runs = full.table(experiments.recipes(full.plan))
    whole = runs[(runs.blocks_removed == 0) & (runs.n_train == full.images.n_train)]
    own = whole.accuracy[whole.recipe == recipe]
    reached = ""
    if len(own):
        reached = (
            f" On all {full.images.n_train:,} images the recipe chosen for it reaches {own.mean():.2%} (n = {len(own)})"
        )
        first = full.store.find(full.plan.teacher_key)
        if first:
            reached += f"; {first.run.recipe.name}: {first.outcome['accuracy']:.2%} (n = 1)"
        if RECIPES["paper"].name not in set(whole.recipe):
            reached += "; the 100 epochs were not run on them"
        reached += "."
    # The recipe that was made for this network first, if it is recorded; else whichever is.
    shown, *_ = few.sort_values("arm", key=lambda arms: arms != RECIPES["teacher"].name, kind="stable").itertuples()
    return [
        Statement(
            f"With {shown.n_train:,} images the teacher's network reaches {shown.mean:.1%} in {shown.arm}, and "
            f"{shown.mean_reference:.1%} in the paper's {shown.reference}: {_points_of_pairs(shown)}.",
            f"The paper's recipe is that of its students; its teacher is a public network, trained in another way. {compared} "
            f"(the same seeds on both sides). {recipe} (SGD on orthogonalised gradients), was chosen for this network and number "
            f"of images in a dozen trials that are not recorded, the others were not.{reached} (Notebook 03.)",
        )
    ]


def _range(found: statistics.Interval) -> str:
    return f"{100 * found.estimate:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _of_all_images(study: Study) -> list[Statement]:
    gains = sweep_gains(study)
    statements = []
    for cut, found in gains.groupby("blocks_removed") if len(gains) else ():
        if cut == study.profile.blocks_removed:
            continue  # it has a sentence of its own
        changes = "; ".join(f"{row.arm} {_corrected(row, len(found))}" for row in found.itertuples())
        theirs = published.compression_sweep().query("blocks_removed == @cut").set_index("arm").accuracy
        stated = ", ".join(f"{arm} {100 * (theirs[arm] - theirs['Student']):+.2f}" for arm in found.arm)
        told = list(found[found.p_holm < 0.05].arm)
        statements.append(
            Statement(
                f"At {compression_factor(cut):.0f}x {' and '.join(told) or 'no arm'} can be told from the plain student "
                f"({found.n.min()} pairs).",
                f"Less Student: {changes}. Published at this factor, in Table 13: {stated} (notebook 07).",
            )
        )
    return statements + _of_the_papers_size(study)


def _of_the_papers_size(study: Study) -> list[Statement]:
    runs = study.table(experiments.arms(study.plan))
    if runs.empty:
        return []
    summary = published.monte_carlo_summary().set_index("arm")
    theirs = summary["mean"]
    levels = ", ".join(
        f"{arm} {each.mean():.2%} (n = {len(each)}" + (f"; published {theirs[arm]:.2%})" if arm in theirs else ")")
        for arm, each in runs.groupby("arm", sort=False).accuracy
    )
    gain = statistics.compare_recorded(runs, [("KD+IG", "Student")], pair_by="seed").iloc[0]
    decided = (
        f"KD+IG less Student is {_points(gain)}, {gain.n} of {study.profile.num_seeds} declared pairs"
        f"{', so not yet a verdict' if gain.n < study.profile.num_seeds else ''} (published Monte Carlo means: {100 * (theirs['KD+IG'] - theirs['Student']):+.2f})"
        if gain.n >= 2
        else "single runs do not tell arms apart"
    )
    teacher, students = study.store.find(study.plan.teacher_key), runs[runs.arm == "Student"].accuracy
    to_learn = ""
    if teacher and len(students):
        ahead = teacher.outcome["accuracy"] - students.mean()
        plain = published.ablation_runs().groupby("arm").accuracy.mean()["Student"]
        stated = published.stated("teacher_accuracy") / 100
        to_learn = (
            f" Teacher less plain student: {100 * ahead:+.1f} points here, {100 * (stated - plain):+.1f} in the paper ({stated:.2%} "
            f"against {plain:.2%}, the mean of the ablation)"
            + (": from ours there is less to learn." if ahead < stated - plain else ".")
        )
    return [
        Statement(
            f"At {compression_factor(study.profile.blocks_removed):.2f}x, the network of C1, {decided}.",
            f"With {study.images.n_train:,} images and {study.profile.recipe.num_epochs} epochs: {levels}. The published means "
            f"are of {summary.n.max()} runs with 100 epochs and {PUBLISHED_MONTE_CARLO:,} images, on other test "
            f"images.{to_learn} (Notebook 03.)",
        )
    ]


def _of_steps(study: Study) -> list[Statement]:
    runs = study.table(experiments.steps(study.plan))
    if runs.empty:
        return []
    runs["arm"] = runs.n_steps.astype(str)
    few, many = sorted({study.profile.n_steps, study.profile.other_n_steps})
    found = statistics.compare_recorded(runs, [(str(many), str(few))], pair_by="seed").iloc[0]
    if found.n < 2:
        return []
    return [
        Statement(
            f"Maps of {many} integration steps instead of {few} change the accuracy by {_points(found)} ({found.n} pairs).",
            "(Notebook 02.)",
        )
    ]


def _of_corruption(study: Study) -> list[Statement]:
    seen = other_images.kept(study, experiments.factorial(study.plan), "robustness")
    if seen.empty or not {"IG", "Student"} <= set(seen.arm):
        return []
    seen["kind"] = seen.condition.str.split(" ").str[0]
    accuracy = seen.groupby(["arm", "seed", "kind"], sort=False).accuracy.mean().unstack(["arm", "kind"])
    gain = (accuracy["IG"] - accuracy["Student"]).dropna()
    if len(gain) < 2:
        return []
    kinds = gain.drop(columns=other_images.CLEAN)
    more = statistics.compare(kinds.mean(axis=1), gain[other_images.CLEAN], paired=True)
    changes = kinds.mean() - gain[other_images.CLEAN].mean()
    most = (changes * (1 if more.difference > 0 else -1)).idxmax()
    without = statistics.compare(kinds.drop(columns=most).mean(axis=1), gain[other_images.CLEAN], paired=True)
    return [
        Statement(
            f"From clean to corrupted test images IG less Student changes by {_points(more)}, most where the {most} changes.",
            f"IG less Student, corrupted ({', '.join(kinds)}): {100 * kinds.mean().mean():+.2f} points, clean: "
            f"{100 * gain[other_images.CLEAN].mean():+.2f} ({len(gain)} seeds). Without {most}, left out because it is the largest, "
            f"the difference is {_points(without)} (notebook 06).",
        )
    ]


def _of_latency(study: Study) -> list[Statement]:
    path = study.root / "bench" / f"latency-{study.profile.name}.json"
    if not path.exists():
        return []
    steady, machine = read_measurement(path, "steady_state")
    first, _ = read_measurement(path, "first_calls")
    ratio = steady[(steady.blocks_removed == 5) & (steady.width == 1) & (steady.batch_size == 1)].ratio.iloc[0]
    calls = first.pivot(index="blocks_removed", columns="order", values="milliseconds").T
    orders = (calls[0] / calls[5]).round(1)
    return [
        Statement(
            f"The teacher takes {ratio:.2f} times as long as the student at 4.12x in the steady state, and "
            + " or ".join(f"{value:g} times ({order})" for order, value in orders.items())
            + " in single first calls, as the released code measures.",
            f"Of one image at a time ({machine_name(machine)}). First calls are one measurement each: another try, and more so "
            "another machine, gives others (notebook 07).",
        )
    ]


def _points(found, estimate: str = "difference") -> str:
    """A difference with its interval in percentage points."""
    return f"{100 * getattr(found, estimate):+.2f} points [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def _points_of_pairs(found) -> str:
    """As `_points` with the number of pairs; a single one has no interval."""
    if found.n == 1:
        return f"{100 * found.difference:+.1f} points, n = 1"
    return f"{_points(found)}, n = {found.n}"


def _corrected(found, questions: int, estimate: str = "difference") -> str:
    """As `_points`, with the p-value after Holm's correction over so many questions; the interval is for one."""
    return f"{_points(found, estimate)} (p = {found.p_holm:.2g}, Holm over {questions})"
