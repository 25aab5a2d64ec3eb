"""The parts of README.md and docs/ that are made from the repository: claims, times, state of the study, gallery."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from igkd import experiments, published
from igkd.claims import OPEN, ledger
from igkd.costs import multiply_accumulates
from igkd.device import machine_name
from igkd.engine import SECOND_TEACHER, SHIPPED_TEACHER, Study
from igkd.experiments import NOTEBOOKS
from igkd.findings import Statement, findings, overlay_effect, published_gain
from igkd.models import MobileNetV2, count_parameters
from igkd.notebooks import find_notebooks

DATA = {"demo": "handwritten digits of scikit-learn", "laptop": "CIFAR-10", "paper": "CIFAR-10"}


def documents(root: Path) -> list[Path]:
    """The files with such parts."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def rendered(text: str, root: Path) -> str:
    """Text with everything between its markers made anew.

    Parameters
    ----------
    text : str
    root : path
        The repository.
    """
    parts = {
        "claims": claims,
        "teachers": teachers,
        "speed": speed,
        "summary": summary,
        "headlines": headlines,
        "findings": found,
        "controls": controls,
        "notebooks": notebooks,
        "profiles": profiles,
        "benchmarks": benchmarks,
        "state": state,
        "gallery": gallery,
        "nodes": nodes,
        "choices": choices,
        "floor": floor,
        "shares": shares,
        "waiting": waiting,
        "cluster": cluster,
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
    """The notebooks, their titles and how long their execution took where all runs were recorded."""
    times = {}
    for path in sorted((root / "bench").glob("run_all-*-recorded.json")):
        run = json.loads(path.read_text())
        times[run["profile"]] = {each["notebook"]: each["seconds"] for each in run["notebooks"]}
    lines = [
        f"| notebook | | {' | '.join(f'`{profile}`' for profile in times)} |",
        "|---|---" + "|---" * len(times) + "|",
    ]
    for each in find_notebooks(root / "notebooks"):
        cells = " | ".join(f"{seconds[each.name]} s" for seconds in times.values())
        lines.append(f"| [{each.name}](notebooks/{each.path.name}) | {each.title.split('·')[-1].strip()} | {cells} |")
    return "\n".join(lines) + "\n"


def profiles(root: Path) -> str:
    """The profiles, with the times that `run_all.py` measured or that follow from records."""
    lines = ["| profile | trained on | student | from records | if everything is trained |", "|---" * 5 + "|"]
    for name, profile in experiments.PROFILES.items():
        runs = {
            kind: json.loads(path.read_text())
            for kind in ("recorded", "trained")
            if (path := root / "bench" / f"run_all-{name}-{kind}.json").exists()
        }
        minutes = {
            kind: f"{run['seconds'] / 60:.1f} min ({machine_name(run['machine'])})" for kind, run in runs.items()
        }
        if "trained" not in minutes:
            minutes["trained"] = _cost(_study(name, root))
        images = ", all images" if profile.take is None else f", {profile.take[0]:,} images"
        cells = (
            f"`{name}`",
            DATA[name] + images,
            f"{profile.blocks_removed} blocks removed, {profile.recipe.num_epochs} epochs, {profile.num_seeds} seeds",
            minutes.get("recorded", "not complete"),
            minutes["trained"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cost(study: Study) -> str:
    """What all runs of a profile take, by their records, or what is left of them."""
    records = [study.store.find(item.run.key) for item in study.planned()]
    if None in records:
        return _remaining(study)
    hours = sum(record.provenance["seconds"] for record in records) / 3600
    return f"{hours:.0f} h of one core, the sum of {len(records)} records"


def benchmarks(root: Path) -> str:
    """What the programs in ``bench/`` measured: medians over their rounds."""
    training, attribution = (
        json.loads((root / "bench" / f"{name}.json").read_text()) for name in ("training", "attribution")
    )
    lines = ["| | the other | igkd | times faster | rounds |", "|---|---|---|---|---|"]
    for cut, rounds in pd.DataFrame(training["images_per_second"]).groupby("blocks_removed"):
        at_once = rounds.processes.iloc[0]
        for side, name in (("plain", "a plain loop"), ("torchdistill", "torchdistill")):
            if side not in rounds:
                continue  # it is not installed everywhere
            other = rounds[side]
            lines.append(
                f"| training, {cut} blocks removed{f', {at_once} runs at once' if at_once > 1 else ''}, against {name}: "
                f"images a second | {other.median():,.0f} | {rounds.igkd.median():,.0f} "
                f"| {(rounds.igkd / other).median():.1f} | {len(rounds)} |"
            )
    measured = pd.DataFrame(attribution["measured"])
    theirs = measured[measured.side == "captum"].set_index("round")
    rules = {"gausslegendre": "Gauss-Legendre", "riemann_middle": "midpoint"}
    for (method, n_steps), rounds in measured[measured.side == "igkd"].groupby(["method", "n_steps"], sort=False):
        ours = rounds.set_index("round")
        lines.append(
            f"| IG maps of the teacher, {n_steps} {rules[method]} steps, against Captum's "
            f"{theirs.n_steps.iloc[0]} {rules[theirs.method.iloc[0]]} steps: maps a second; completeness error "
            f"| {theirs.maps_per_second.median():.1f}; {theirs.error.iloc[0]:.1%} | {ours.maps_per_second.median():.1f}; "
            f"{ours.error.iloc[0]:.1%} | {(ours.maps_per_second / theirs.maps_per_second).median():.1f} | {len(ours)} |"
        )
    lines += ["", _machine(training)]
    return "\n".join(lines) + "\n"


def speed(root: Path) -> str:
    """What `benchmarks` says, in a sentence."""
    training, attribution = (
        json.loads((root / "bench" / f"{name}.json").read_text()) for name in ("training", "attribution")
    )
    rounds = pd.DataFrame(training["images_per_second"])
    faster = (rounds.igkd / rounds.plain).groupby(rounds.blocks_removed).median()
    measured = pd.DataFrame(attribution["measured"])
    theirs = measured[measured.side == "captum"].iloc[0]
    sides = measured[(measured.n_steps == theirs.n_steps) & (measured.method == theirs.method)]
    maps = sides.pivot(index="round", columns="side", values="maps_per_second")
    return (
        f"On {machine_name(training['machine'])}, students train {faster.min():.1f} to {faster.max():.1f} times as fast as in a "
        f"plain loop of the shape of the released code, and IG maps with the same {theirs.n_steps:.0f} steps come "
        f"{(maps.igkd / maps.captum).median():.0f} times as fast as from Captum with its defaults. All numbers, and why, are in "
        "[docs/performance.md](docs/performance.md).\n"
    )


def nodes(root: Path) -> str:
    """Completeness error of each rule of quadrature by number of nodes."""
    content = json.loads((root / "bench" / "nodes.json").read_text())
    errors = pd.DataFrame(content["errors"]).pivot(index="rule", columns="n_steps", values="error")
    lines = ["| rule | " + " | ".join(f"{n} nodes" for n in errors) + " |", "|---" * (len(errors.columns) + 1) + "|"]
    for rule in dict.fromkeys(each["rule"] for each in content["errors"]):
        lines.append(f"| {rule} | " + " | ".join(f"{error:.1%}" for error in errors.loc[rule]) + " |")
    tenths = content["mean_derivative_by_tenth_of_the_path"]
    lines += [
        "",
        f"{content['images']} training images of CIFAR-10, the shipped teacher. The mean absolute derivative in each tenth of "
        f"the path, from the baseline on: {', '.join(f'{each:.0f}' for each in tenths)}.",
    ]
    return "\n".join(lines) + "\n"


def choices(root: Path) -> str:
    """What training loses if one of the choices for processors is taken back."""
    measured = pd.DataFrame(_cpu(root)["measured"])
    lines = [
        "| blocks removed | without | images a second | of the loop as it is | kernel's share of the time | rounds |"
    ]
    lines += ["|---" * 6 + "|"]
    for cut, runs in measured.groupby("blocks_removed"):
        whole = runs[runs.without == ""].images_per_second.median()
        for without, rounds in runs.groupby("without", sort=False):
            speed = rounds.images_per_second.median()
            lines.append(
                f"| {cut} | {without or 'nothing: as it is'} | {speed:,.0f} | {speed / whole:.0%} "
                f"| {rounds.system_share.median():.0%} | {len(rounds)} |"
            )
    return "\n".join([*lines, "", _machine(_cpu(root))]) + "\n"


def floor(root: Path) -> str:
    """How long an image takes in training, and how long it would have to take."""
    content = _cpu(root)
    rates, measured = content["billions_a_second"], pd.DataFrame(content["measured"])
    lines = [
        "| blocks removed | million operations | kB | floor: operations | floor: bytes | measured | times the floor |"
    ]
    lines += ["|---" * 7 + "|"]
    for cut, needed in content["needed"].items():
        runs = measured[(measured.blocks_removed == int(cut)) & (measured.without == "")]
        seconds = 1 / runs.images_per_second.median()
        floors = needed["operations"] / rates["bfloat16_operations"] / 1e9, needed["bytes"] / rates["bytes"] / 1e9
        cells = [f"{1e3 * each:.2f} ms" for each in (*floors, seconds)]
        amounts = f"{needed['operations'] / 1e6:,.0f} | {needed['bytes'] / 1e3:,.0f}"
        lines.append(f"| {cut} | {amounts} | {' | '.join(cells)} | {seconds / max(floors):.1f} |")
    rate = ", ".join(f"{value:,.0f} billion {name.replace('_', ' ')}" for name, value in rates.items())
    return "\n".join([*lines, "", f"Rates measured in the same run, a second: {rate}. {_machine(content)}"]) + "\n"


def shares(root: Path) -> str:
    """Which operations take the time of a training."""
    by_cut = _cpu(root)["shares"]
    kinds = dict.fromkeys(kind for shares in by_cut.values() for kind in shares)
    lines = [f"| blocks removed | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for cut, shares in by_cut.items():
        lines.append(f"| {cut} | {' | '.join(f'{shares.get(kind, 0):.0%}' for kind in kinds)} |")
    return "\n".join(lines) + "\n"


def waiting(root: Path) -> str:
    """Gradients a second of a network on all cores, by how its threads wait, alone and beside a busy program."""
    measured = pd.DataFrame(_cpu(root)["waiting"])
    medians = measured.groupby(["waits", "busy"]).gradients_per_second.median().unstack()
    lines = [
        "| waits | alone: gradients a second | beside a program that keeps one core busy | rounds |",
        "|---" * 4 + "|",
    ]
    lines += [
        f"| {name} | {medians[0][name]:.1f} | {medians[1][name]:.1f} | {measured['round'].nunique()} |"
        for name in ("short", "long")
    ]
    return "\n".join(lines) + "\n"


def _cpu(root: Path) -> dict:
    return json.loads((root / "bench" / "cpu.json").read_text())


def _machine(content: dict) -> str:
    return f"{machine_name(content['machine'])}, torch {content['torch']}."


def cluster(root: Path) -> str:
    """What 10,000 runs of the paper's size would take on 100 processor cores or GPUs, reckoned from ``bench/training``."""
    study = _study("paper", root)
    recipe, student = study.profile.recipe, MobileNetV2(10, study.profile.blocks_removed)
    n_train = max(record.outcome["n_train"] for record in study.store.records())
    lines = ["| blocks removed | trained on | images a second | one run | 10,000 runs on 100 of them |"]
    lines += ["|---" * 5 + "|"]
    devices = []
    for path in sorted((root / "bench").glob("training*.json")):
        content = json.loads(path.read_text())
        devices.append(content["machine"]["device"])
        unit = "core" if devices[-1] == "cpu" else "GPU"
        for cut, rounds in pd.DataFrame(content["images_per_second"]).groupby("blocks_removed"):
            speed = (rounds.igkd / rounds.processes).median()
            seconds = n_train * recipe.num_epochs / speed
            lines.append(
                f"| {cut} | a {unit}, {content['machine']['name']} | {speed:,.0f} "
                f"| {seconds / 60:,.1f} min | {seconds * 100 / 86_400:,.1f} days |"
            )
    pixels = n_train * 32 * 32
    written = pd.Series([len(record.to_json()) for record in study.store.records()])
    none = "" if "cuda" in devices else "Nothing has been measured on a GPU yet, so this is of processor cores. "
    lines += [
        "",
        f"{none}A run is {recipe.num_epochs} epochs of {n_train:,} images at the speed of bench/training.py. "
        f"Each machine fetches the training images ({3 * pixels / 1e6:,.0f} MB) and "
        f"each kind of maps that its runs need ({2 * pixels / 1e6:,.0f} MB) once. 10,000 runs bring back "
        f"{written.mean() * 10_000 / 1e6:,.0f} MB of records and {count_parameters(student) * 4e-5:,.0f} GB of weights.",
    ]
    return "\n".join(lines) + "\n"


def claims(root: Path) -> str:
    """The verdict on each claim, from the laptop profile, the largest that is recorded whole, and what is of the paper's."""
    names = ("", "the paper says", "published", "here, as described", "n", "verdict", "here, as released")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for each, at_size in zip(ledger(_study("laptop", root)), ledger(_study("paper", root)), strict=True):
        released = f"{each.released}, n = {each.released.n}: {each.released.verdict}" if each.released else "–"
        # Of latency and of counts there is nothing in another size.
        sized = at_size.low is not None and each.verdict == OPEN
        judged = at_size if at_size.verdict != OPEN else each
        so_far = " so far" * (at_size.verdict == OPEN)
        cells = (
            each.claim.number,
            each.claim.says,
            each.published,
            f"{each}; **at the paper's size{so_far} {at_size}**" if sized else str(each),
            (f"{each.n}; {at_size.n}" + " so far" * bool(so_far) if sized else each.n) or "–",
            f"**{judged.verdict}**: {judged.why}",
            released,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def summary(root: Path) -> str:
    """What holds, what does not and how sure that is, in a few lines."""
    small, full = _study("laptop", root), _study("paper", root)
    full_size = ledger(full)
    # A claim that is open at the paper's size may be one that has no size: of latency, or of counts.
    verdicts = [
        at_size if at_size.verdict != OPEN else here for at_size, here in zip(full_size, ledger(small), strict=True)
    ]
    gain, best = published_gain()
    first, effect = full_size[0], overlay_effect(small)
    lines = [
        f"*{each.claim.says}* ({each.claim.number}): **{each.verdict}**, {each} here, "
        + (f"published {each.published}; {each.data}" if each.low is not None else "by counting")
        + (", the published times of another machine." if each.unit == "times" else ".")
        for each in verdicts[1:]
        if each.verdict != OPEN
    ]
    so_far = (
        f": KD+IG less the plain student {first}" + " so far" * (first.verdict == OPEN) if first.low is not None else ""
    )
    lines[:0] = [
        f"*{first.claim.says}* (C1): **{first.verdict}**. {first.n} of {full.profile.num_seeds} declared pairs of runs of the "
        f"paper's size are recorded{so_far}. The published gain is the best run against the best; the means of ten published "
        f"runs each are {100 * gain.difference:+.2f} points apart ({gain.test}'s p = {gain.p:.0e})."
    ]
    still_open = [each.claim.number for each in verdicts[1:] if each.verdict == OPEN]
    if still_open:
        lines.append(f"Open at the paper's size, in the table below: {', '.join(still_open)}.")
    students = small.table([item for item in experiments.arms(small.plan) if item.labels["arm"] == "Student"])
    if effect is None or students.empty:
        return "".join(f"- {line}\n" for line in lines)
    lines.append(
        f"In a much smaller setting ({small.describe_student().split(', ', 1)[1]}, {small.images.n_train:,} images, "
        f"{students.accuracy.mean():.0%} of test images right) laying maps over images changes the accuracy by "
        f"{100 * effect.estimate:+.2f} points [{100 * effect.low:+.2f}, {100 * effect.high:+.2f}]. That need not hold at 4.12x."
    )
    return "".join(f"- {line}\n" for line in lines)


def headlines(root: Path) -> str:
    """What `igkd.findings` says, a sentence each, under what it is about."""
    return _listed(root, lambda each: each.says)


def found(root: Path) -> str:
    """What `igkd.findings` says, with all numbers and reservations."""
    return _listed(root, lambda each: f"**{each.says}** {each.detail}")


def _listed(root: Path, written: Callable[[Statement], str]) -> str:
    parts = findings(_study("laptop", root)).items()
    return "\n".join(f"**{about}**\n\n" + "".join(f"- {written(each)}\n" for each in said) for about, said in parts)


def controls(root: Path) -> str:
    """How the figure of the controls is to be read."""
    study = _study("laptop", root)
    recorded = study.table(experiments.arms(study.plan))
    runs = recorded.groupby("arm").accuracy.mean().to_dict() if len(recorded) else {}
    ahead = [arm for arm in ("KD", "IG", "KD+IG") if {arm, "Student"} <= set(runs) and runs[arm] > runs["Student"]]
    finding = (
        f"Above Student in the mean, of (a), {'is' if len(ahead) == 1 else 'are'} {' and '.join(ahead)}."
        if ahead
        else "Here the arms (a) are not ahead of Student, so how much of a gain remains cannot be asked at this size."
    )
    return (
        f"{finding} Each row is an arm minus the plain student of the same seed; the black bars are published differences "
        "at 4.12x, the same in (a) and (b), because the paper's text describes the one and its code does the other. Where "
        "signals of other images (b), or nothing of the teacher (c), reach as far as the image's own (a), a gain does not "
        "need what (a) has in addition ([notebook 08](notebooks/08_controls.ipynb)).\n"
    )


def teachers(root: Path) -> str:
    """The shipped teachers beside the published one."""
    lines, study = [], _study("paper", root)
    plan = study.plan
    shipped = (
        ("Teacher", plan.teacher_key, SHIPPED_TEACHER),
        ("Second teacher", plan.second_teacher_key, SECOND_TEACHER),
    )
    for what, key, file in shipped:
        record = study.store.find(key)
        if record is None:
            continue
        done = record.outcome
        lines.append(
            f"- {what}, `weights/{file}`: {done['accuracy']:.2%} on {done['n_test']:,} test images after "
            f"{record.run.recipe.name}, on {done['n_train']:,} training images, 1 run."
        )
    lines.append(f"- The published teacher: {published.stated('teacher_accuracy')}%, with 50,000 images.")
    return "\n".join(lines) + "\n"


def state(root: Path) -> str:
    """What is recorded so far, of what the profiles on CIFAR-10 declare."""
    lines = ["| profile | notebook | runs | recorded of declared | seeds | blocks removed | training images |"]
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
                if not planned:
                    continue
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
    lines += [
        "",
        f"A run that several notebooks need is trained once and counted in each. `paper`: {_remaining(_study('paper', root))}.",
    ]
    return "\n".join(lines) + "\n"


def _remaining(study: Study) -> str:
    """What a profile has still to train, reckoned at the speed of ``bench/training``."""
    bench = json.loads((study.root / "bench" / "training.json").read_text())
    rounds = pd.DataFrame(bench["images_per_second"]).query("blocks_removed == 5")
    per_image = multiply_accumulates(MobileNetV2(10, 5), (32, 32))
    per_second = (rounds.igkd / rounds.processes).median() * per_image
    missing = {item.run.key: item.run for item in study.planned() if study.store.find(item.run.key) is None}
    days = sum(map(study.work, missing.values())) / per_second / 86_400
    return (
        f"{len(missing)} runs left: {days:,.0f} days of one core of an {bench['machine']['name']}, reckoned from 4.12x"
    )


def _values(found: Iterable[int]) -> str:
    low_to_high = sorted(set(found))
    if len(low_to_high) > 2:
        return f"{low_to_high[0]:,} to {low_to_high[-1]:,}"
    return ", ".join(f"{value:,}" for value in low_to_high)


def gallery(root: Path) -> str:
    """All figures, each under the heading of the section that draws it, by notebook."""
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
                    pictures.append(f"*{text}*\n\n![{text}](../figures/{name}.png)\n")
        if pictures:
            lines += [f"## [{notebook.name}](../notebooks/{notebook.path.name})", "", "\n".join(pictures)]
    return "\n".join(lines)
