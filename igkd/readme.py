"""The parts of README.md that are made from the repository: claims, notebooks, times, state of the study, gallery."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from igkd import experiments, published, shift, statistics
from igkd.claims import ledger
from igkd.cost import read_measurement
from igkd.engine import Study
from igkd.experiments import NOTEBOOKS
from igkd.losses import fitted_loss
from igkd.notebooks import find_notebooks
from igkd.runs import Record

DATA = {"demo": "handwritten digits of scikit-learn", "laptop": "a share of CIFAR-10", "paper": "all of CIFAR-10"}


def rendered(text: str, root: Path) -> str:
    """README text with everything between its markers made anew.

    Parameters
    ----------
    text : str
    root : path
        The repository.
    """
    parts = {
        "claims": claims,
        "findings": findings,
        "notebooks": notebooks,
        "profiles": profiles,
        "benchmarks": benchmarks,
        "state": state,
        "gallery": gallery,
    }
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + parts[found[2]](root) + found[3],
        text,
        flags=re.DOTALL,
    )


def _study(profile: str, root: Path) -> Study:
    return Study(profile, device="cpu", root=root, log=lambda line: None)


def notebooks(root: Path) -> str:
    """The notebooks and their titles."""
    lines = [
        f"| [{each.name}](notebooks/{each.path.name}) | {each.title.split('·')[-1].strip()} |"
        for each in find_notebooks(root / "notebooks")
    ]
    return "\n".join(["| notebook | |", "|---|---|", *lines]) + "\n"


def profiles(root: Path) -> str:
    """The profiles with the times that `run_all.py` measured."""
    lines = ["| profile | data | notebooks | time | runs trained in it | machine |", "|---|---|---|---|---|---|"]
    for path in sorted((root / "bench").glob("run_all-*.json"), reverse=True):
        run = json.loads(path.read_text())
        measured, machine = run["notebooks"], run["machine"]
        first, last = measured[0]["notebook"][:2], measured[-1]["notebook"][:2]
        lines.append(
            f"| `{run['profile']}` | {DATA[run['profile']]} | {first} to {last} "
            f"| {run['seconds'] / 60:.1f} min | {sum(each['trained'] for each in measured)} "
            f"| {machine['name']}, {machine['threads']} threads |"
        )
    return "\n".join(lines) + "\n"


def benchmarks(root: Path) -> str:
    """What the programs in ``bench/`` measured: medians over their rounds."""
    training, attribution = (
        json.loads((root / "bench" / f"{name}.json").read_text()) for name in ("training", "attribution")
    )
    lines = ["| | a plain loop, or Captum | igkd | times faster | rounds |", "|---|---|---|---|---|"]
    for cut, rounds in pd.DataFrame(training["images_per_second"]).groupby("blocks_removed"):
        at_once = rounds.processes.iloc[0]
        lines.append(
            f"| training, {cut} blocks removed{f', {at_once} runs at once' if at_once > 1 else ''}: images a second "
            f"| {rounds.plain.median():,.0f} | {rounds.igkd.median():,.0f} | {rounds.ratio.median():.1f} | {len(rounds)} |"
        )
    measured = pd.DataFrame(attribution["measured"])
    theirs = measured[measured.side == "captum"].set_index("round")
    for n_steps, rounds in measured[measured.side == "igkd"].groupby("n_steps", sort=False):
        ours = rounds.set_index("round")
        lines.append(
            f"| IG maps of the teacher, {n_steps} steps (Captum: {theirs.n_steps.iloc[0]}): maps a second; completeness error "
            f"| {theirs.maps_per_second.median():.1f}; {theirs.error.iloc[0]:.1%} | {ours.maps_per_second.median():.1f}; "
            f"{ours.error.iloc[0]:.1%} | {(ours.maps_per_second / theirs.maps_per_second).median():.1f} | {len(ours)} |"
        )
    machine = training["machine"]
    lines += ["", f"{machine['name']}, {machine['threads']} threads, torch {training['torch']}."]
    return "\n".join(lines) + "\n"


def claims(root: Path) -> str:
    """The verdict on each claim, from the records of the laptop profile, the largest that is recorded."""
    study = _study("laptop", root)
    names = ("", "the paper says", "published", "here, as described", "n", "verdict", "here, as released")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for each in ledger(study):
        released = f"{each.released}, n = {each.released.n}: {each.released.verdict}" if each.released else "–"
        cells = (
            each.claim.number,
            each.claim.says,
            each.published,
            str(each),
            each.n or "–",
            f"**{each.verdict}**: {each.why}",
            released,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def findings(root: Path) -> str:
    """What follows from public files and our records and is not in the paper, as sentences with their numbers."""
    study = _study("laptop", root)
    sentences = [
        *_of_published_runs(),
        *_of_published_logs(),
        *_of_attention(study),
        *_of_maps(study),
        *_of_corruption(study),
        *_of_latency(root / "bench" / "latency-laptop.json"),
    ]
    return "\n".join(f"- {sentence}" for sentence in sentences) + "\n"


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
    logs = published.training_logs().set_index("arm")
    ranges = []
    for arm, log in logs[logs.alpha > 0].iterrows():
        # Neither the plain student's own loss nor the largest attention loss of 8x8 maps is distillation's.
        left = log.train_loss - logs.train_loss["Student"] - log.gamma * 2 / 64
        aligned = max(fitted_loss(gap / 4, log.alpha, log.temperature, permuted=False)["loss"] for gap in range(57))
        ranges.append(f"{left:.3f} to {log.train_loss:.3f} for {arm}, where aligned logits leave {aligned:.3f} at most")
    return [
        f"Two published training logs leave a distillation loss of {'; '.join(ranges)}; logits of other images would leave "
        "what the logs show (a closed form with its assumptions, notebook 08). The paper describes signals of the image "
        "itself; the released code, as it stands, draws images and stored signals in separate orders. Both are trained here."
    ]


def _of_attention(study: Study) -> list[str]:
    full = [item for item in experiments.factorial(study.plan) if item.labels["arm"] == "KD+IG+AT"]
    norms = study.epochs(full).filter(like="gradient_norms.")
    if norms.empty:
        return []
    share = norms["gradient_norms.attention"] / norms.sum(axis=1)
    return [
        f"With the paper's weight, gamma = {full[0].run.method.gamma:g}, attention transfer has {share.mean():.2%} of the sum "
        f"of the gradient norms in KD+IG+AT ({len(full)} seeds, notebook 04)."
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
    return [
        f"At {study.profile.blocks_removed} of 19 blocks removed and {study.profile.take[0]:,} training images, laying IG maps over "
        f"a tenth of the images changes the accuracy by {100 * own.difference:+.2f} points "
        f"[{100 * own.low:+.2f}, {100 * own.high:+.2f}] ({own.n} pairs). Of {len(others)} controls in place of the map (maps "
        "of other images, noise, plain dimming, other attributions) that differ from it after Holm's correction there "
        + {0: "is none", 1: "is one"}.get(len(differing), f"are {len(differing)}")
        + (f": {names} points" if len(differing) else "")
        + " (notebook 08)."
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
        f"{100 * more.difference:+.2f} [{100 * more.low:+.2f}, {100 * more.high:+.2f}] ({len(gain)} seeds). It gains most where "
        f"the {most} changes ({100 * kinds[most].mean():+.2f}), as an augmentation that dims images would (notebook 06)."
    ]


def _of_latency(path: Path) -> list[str]:
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


def state(root: Path) -> str:
    """What is recorded so far, of what the profiles on CIFAR-10 declare."""
    records = [Record.from_json(path.read_text()) for path in sorted((root / "records").glob("*/*.json"))]
    stated = published.headline().query("version == '2506.14440'").set_index("quantity").value
    lines = []
    for record in records:
        if record.run.signals is None and record.run.architecture.blocks_removed == 0:
            done, epochs = record.outcome, record.run.recipe.num_epochs
            lines.append(
                f"- Teacher: {done['accuracy']:.2%} on {done['n_test']:,} test images after {epochs} epochs on "
                f"{done['n_train']:,} training images, 1 run (published: {stated['teacher_accuracy']}% with 50,000 "
                "images). Shipped in `weights/`."
            )
    lines += ["", "| profile | notebook | runs | recorded of declared | seeds | blocks removed | training images |"]
    lines += ["|---" * 7 + "|"]
    for profile in ("laptop", "paper"):
        study = _study(profile, root)
        seen = set()
        for number, declared in list(NOTEBOOKS.items())[1:]:  # what the first declares, the others do too
            for experiment in declared:
                if experiment in seen:
                    continue
                seen.add(experiment)
                planned = experiment(study.plan)
                done = [record for item in planned if (record := study.store.find(item.run.key))]
                cells = (
                    f"`{profile}`",
                    number,
                    experiment.__name__.replace("_", " "),
                    f"{len(done)} of {len(planned)}",
                    _values(record.run.seed for record in done),
                    _values(record.run.architecture.blocks_removed for record in done),
                    _values(record.outcome["n_train"] for record in done),
                )
                lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "A run that several notebooks need is trained once and counted in each."]
    return "\n".join(lines) + "\n"


def _values(found: Iterable[int]) -> str:
    low_to_high = sorted(set(found))
    if len(low_to_high) > 2:
        return f"{low_to_high[0]:,} to {low_to_high[-1]:,}"
    return ", ".join(f"{value:,}" for value in low_to_high)


def gallery(root: Path) -> str:
    """All figures, small, each with the section that draws it and a link to its notebook."""
    lines, seen = [], set()
    for notebook in find_notebooks(root / "notebooks"):
        pictures, heading = [], notebook.title
        for cell in json.loads(notebook.path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                heading = ([heading] + re.findall(r"^#+ +(.+)$", source, re.MULTILINE))[-1]
                continue
            for name in re.findall(r'figures\.save\(\w+, "([\w-]+)"', source):
                if name not in seen and (root / "figures" / f"{name}.png").exists():
                    seen.add(name)
                    text = heading.split("·")[-1].strip().replace('"', "")
                    pictures.append(f'<img src="figures/{name}.png" height="150" alt="{text}" title="{text}">')
        if pictures:
            lines += [f"[{notebook.name}](notebooks/{notebook.path.name})", "", "\n".join(pictures), ""]
    return "\n".join(lines)
