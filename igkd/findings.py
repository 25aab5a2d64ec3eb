"""What follows from public files and our records and is not in the paper, as sentences with their numbers."""

import numpy as np
import pandas as pd

from igkd import experiments, published, shift, statistics
from igkd.cost import read_measurement
from igkd.engine import Study
from igkd.errors import MissingImages
from igkd.losses import fitted_loss
from igkd.methods import Recipe
from igkd.models import compression_factor

#: What an attention loss of 8x8 maps is at most (`igkd.losses.attention_loss`).
ATTENTION_LIMIT = 2 / 64


def findings(study: Study) -> list[str]:
    """All sentences for which the records of a study are enough.

    Parameters
    ----------
    study : Study
        Its images are not needed.
    """
    return [
        *_of_published_runs(),
        *_of_published_logs(),
        *_of_attention(study),
        *_of_maps(study),
        *_of_tuned_arms(study),
        *_of_recipes(study),
        *_of_all_images(Study("paper", study.data, "cpu", study.root, study.log)),
        *_of_steps(study),
        *_of_corruption(study),
        *_of_latency(study),
    ]


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
        by_arm = runs.pivot(index="seed", columns="arm", values="accuracy").reindex(columns=runs.arm.unique())
        gain = by_arm.drop(columns="Student").sub(by_arm["Student"], axis=0).dropna()
        found.append(gain.melt(value_name="gain", ignore_index=False).assign(recipe=_recipe(declared[0].run.recipe)))
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
        recipe, ``mean_reference`` with the profile's; paired by seed, ``p_holm`` over the arms.
    """
    own, paper = gains.recipe.unique()
    named = gains.assign(arm=gains.arm + gains.recipe)
    arms = gains.arm.unique()
    pairs = [(arm + paper, arm + own) for arm in arms]
    return statistics.compare_pairs(named, pairs, pair_by="seed", value="gain").assign(arm=arms)


def _recipe(recipe: Recipe) -> str:
    schedule = "one cycle of" if recipe.one_cycle else "constant"
    return f"{recipe.num_epochs} epochs, {schedule} {recipe.optimizer.upper() if recipe.optimizer == 'sgd' else 'Adam'}"


def _of_published_runs() -> list[str]:
    accuracy = 100 * published.ablation_runs().pivot_table(index="arm", values="accuracy", aggfunc=["mean", "max"])
    mean, best = (accuracy.loc["KD+IG", name] - accuracy.loc["Student", name] for name in ("mean", "max"))
    variance = published.monte_carlo_summary().set_index("arm").variance_ddof1
    return [
        f"The ten published runs of KD+IG are {float(mean.iloc[0]):.2f} points ahead of the ten of Student in the mean and "
        f"{float(best.iloc[0]):.2f} in the best run; the abstract's gain is of best against best (notebook 03).",
        f"In the published Monte Carlo sample KD+IG varies more than Student: {variance['KD+IG'] / variance['Student']:.1f} "
        "times the variance (notebook 05).",
    ]


def _of_published_logs() -> list[str]:
    ranges = [
        f"{row.least:.3f} to {row.most:.3f} for {row.arm}, where aligned logits leave {row.aligned:.3f} at most and "
        f"those of other images as much as the log if the teacher's highest logit exceeds the others by "
        f"{row.gap_from:.1f} to {row.gap_to:.1f}"
        for row in distillation_left(published.training_logs()).itertuples()
    ]
    return [
        f"Two published training logs leave a distillation loss of {'; '.join(ranges)}. That is by a closed form with "
        "its assumptions (notebook 08); what is published of the teacher's confidence, on some test images of cats, "
        f"suggests {published_gap():.1f}, and with a far more confident teacher neither kind would fit. The paper "
        "describes signals of the image itself; the released code, as it stands, draws images and stored signals in "
        "separate orders. Both are trained here."
    ]


def _of_attention(study: Study) -> list[str]:
    full = [item for item in experiments.factorial(study.plan) if item.labels["arm"] == "KD+IG+AT"]
    epochs = study.epochs(full)
    if epochs.filter(like="gradient_norms.").empty:
        return []
    shares = gradient_shares(epochs)
    return [
        f"With the paper's weight, gamma = {full[0].run.method.gamma:g}, attention transfer has "
        f"{shares[shares.term == 'attention'].share.mean():.2%} of the sum of the gradient norms in KD+IG+AT "
        f"({shares.key.nunique()} seeds, notebook 04)."
    ]


def _of_maps(study: Study) -> list[str]:
    runs = study.table(experiments.controls(study.plan))
    runs["arm"] = (runs.arm + " " + runs.variant).str.strip()
    family = [(f"{arm[0]} {arm[1]}", " ".join(other).strip()) for _, arm, other in experiments.contrasts(study.plan)]
    found = statistics.compare_recorded(runs[["arm", "seed", "accuracy"]], family, pair_by="seed").set_index("arm")
    own = found[(found.index == "IG described")].iloc[0]
    others = found[found.reference == "IG described"]
    if others.n.min() < 2:
        return []
    differing = others[others.p_holm < 0.05]
    names = ", ".join(
        f"{name.split()[1].replace('_', ' ')} {100 * row.difference:+.1f}" for name, row in differing.iterrows()
    )
    told = {0: "None", 1: "One"}.get(len(differing), len(differing))
    return [
        f"{_here(study)}, laying IG maps over a tenth of the images changes the accuracy by {_corrected(own)} "
        f"({own.n} pairs). "
        f"{told} of {len(others)} controls in place of the map (maps "
        "of other images, noise, plain dimming, other attributions) can be told from it after Holm's correction"
        + (f": {names} points" if len(differing) else "")
        + " (notebook 08)."
    ]


def _of_tuned_arms(study: Study) -> list[str]:
    runs = study.table(experiments.tuned(study.plan))
    if runs.empty:
        return []
    asked = [pair for _, *pair in experiments.fair_contrasts(study.plan)]
    found = statistics.compare_recorded(runs, asked, pair_by="seed").set_index(["arm", "reference"])
    shown = (("KD", "Student"), ("KD+IG", "KD"), ("KD+IG+AT", "KD+AT"))
    alone, added, last = (found.loc[pair] for pair in shown)
    if min(alone.n, added.n, last.n) < 2:
        return []
    best = runs.groupby("arm").accuracy.mean().sort_values(ascending=False)
    return [
        f"{_here(study)} and with constants chosen on held-out images, KD alone changes the accuracy by "
        f"{_corrected(alone)}. The overlay beside KD changes it by {_corrected(added)}, beside KD and attention by "
        f"{_corrected(last)} ({last.n} pairs; this last contrast was added when the others were known). The best arm in "
        f"the mean is {best.index[0]} ({best.iloc[0]:.1%}), Student has {best['Student']:.1%} (notebook 08)."
    ]


def _of_recipes(study: Study) -> list[str]:
    gains = recipe_gains(study)
    if gains.seed.nunique() < 2:
        return []
    own, paper = gains.recipe.unique()
    ours, theirs = (
        statistics.spread(*(each for _, each in of_recipe.groupby("arm").gain)).estimate
        for _, of_recipe in gains.groupby("recipe", sort=False)
    )
    changes = "; ".join(
        f"{row.arm} {100 * row.mean_reference:+.2f} and {100 * row.mean:+.2f}, a change of {_corrected(row)}"
        for row in recipe_changes(gains).itertuples()
    )
    return [
        f"{_here(study)}, the gains over the plain student with our recipe ({own}) and with the paper's ({paper}) are: "
        f"{changes}. From seed to seed a gain scatters by {100 * ours:.1f} points with ours and by {100 * theirs:.1f} with "
        f"the paper's, which needs {(theirs / ours) ** 2:.0f} times as many runs to see a gain of the same size "
        f"({gains.seed.nunique()} seeds, notebook 03)."
    ]


def _of_all_images(study: Study) -> list[str]:
    try:
        gains = sweep_gains(study)
    except MissingImages:  # nothing of this size is recorded
        return []
    sentences = []
    for cut, found in gains.groupby("blocks_removed") if len(gains) else ():
        if cut == study.profile.blocks_removed:
            continue  # it has a sentence of its own
        changes = "; ".join(f"{row.arm} {_corrected(row)} ({row.n} pairs)" for row in found.itertuples())
        sentences.append(
            f"With all {study.images.n_train:,} training images at {compression_factor(cut):.0f}x, against the plain "
            f"student: {changes} (notebook 07)."
        )
    return sentences + _of_the_papers_size(study)


def _of_the_papers_size(study: Study) -> list[str]:
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
        f"KD+IG less Student: {_points(gain)} ({gain.n} pairs of {study.profile.num_seeds} that C1 asks for; published "
        f"{100 * (theirs['KD+IG'] - theirs['Student']):+.2f})"
        if gain.n >= 2
        else "Single runs do not tell them apart"
    )
    return [
        f"With all {study.images.n_train:,} training images at {compression_factor(study.profile.blocks_removed):.2f}x, "
        f"the size of C1, after {study.profile.recipe.num_epochs} epochs: {levels}. {decided}. The published means are of "
        f"{summary.n.max()} runs with 100 epochs and as many images (notebook 03)."
    ]


def _of_steps(study: Study) -> list[str]:
    runs = study.table(experiments.steps(study.plan))
    if runs.empty:
        return []
    runs["arm"] = runs.n_steps.astype(str)
    few, many = sorted({study.profile.n_steps, study.profile.other_n_steps})
    found = statistics.compare_recorded(runs, [(str(many), str(few))], pair_by="seed").iloc[0]
    if found.n < 2:
        return []
    return [
        f"{_here(study)}, maps of {many} integration steps instead of {few} change the accuracy by {_points(found)} "
        f"({found.n} pairs, notebook 02)."
    ]


def _of_corruption(study: Study) -> list[str]:
    seen = shift.kept(study, experiments.factorial(study.plan), "robustness")
    if seen.empty:
        return []
    seen["kind"] = seen.condition.str.split(" ").str[0]
    accuracy = seen.groupby(["arm", "seed", "kind"], sort=False).accuracy.mean().unstack(["arm", "kind"])
    gain = (accuracy["IG"] - accuracy["Student"]).dropna()
    kinds = gain.drop(columns=shift.CLEAN)
    more = statistics.compare(kinds.mean(axis=1), gain[shift.CLEAN], paired=True)
    most = kinds.mean().idxmax()
    return [
        f"On corrupted test images ({', '.join(kinds)}) the overlay changes the accuracy of the same students by "
        f"{100 * kinds.mean().mean():+.2f} points, on clean ones by {100 * gain[shift.CLEAN].mean():+.2f}: a difference of "
        f"{_points(more)} ({len(gain)} seeds). It gains most where the {most} changes ({100 * kinds[most].mean():+.2f}), as an "
        "augmentation that dims images would (notebook 06)."
    ]


def _of_latency(study: Study) -> list[str]:
    path = study.root / "bench" / f"latency-{study.profile.name}.json"
    if not path.exists():
        return []
    steady, machine = read_measurement(path, "steady_state")
    first, _ = read_measurement(path, "first_calls")
    ratio = steady[(steady.blocks_removed == 5) & (steady.width == 1) & (steady.batch_size == 1)].ratio.iloc[0]
    calls = first.pivot(index="blocks_removed", columns="order", values="milliseconds").T
    orders = (calls[0] / calls[5]).round(1)
    return [
        "How much faster the student at 4.12x is depends on what is timed: teacher / student is "
        + " and ".join(f"{value:g} with the {order}" for order, value in orders.items())
        + f" in single first calls, as the released code measures, and {ratio:.2f} in the steady state of one image "
        f"({machine['name']}, {machine['threads']} threads, notebook 07)."
    ]


def _here(study: Study) -> str:
    return f"At {study.profile.blocks_removed} of 19 blocks removed and {study.profile.take[0]:,} training images"


def _points(found) -> str:
    """A difference with its interval in percentage points."""
    return f"{100 * found.difference:+.2f} points [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def _corrected(found) -> str:
    """As `_points`, with the p-value over the contrast's family; the interval is for one comparison."""
    return f"{_points(found)}, p = {found.p_holm:.2g} after Holm's correction"
