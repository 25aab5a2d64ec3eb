"""The parts of README.md that are made from the repository: notebooks, measured times, state of the study."""

import json
import re
from pathlib import Path

import pandas as pd

from igkd.claims import ledger
from igkd.engine import Study
from igkd.experiments import PROFILES
from igkd.notebooks import find_notebooks
from igkd.published import headline
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
    parts = {"notebooks": notebooks, "profiles": profiles, "claims": claims, "state": state}
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + parts[found[2]](root) + found[3],
        text,
        flags=re.DOTALL,
    )


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


def claims(root: Path) -> str:
    """The verdict on each claim, from the records of the laptop profile, the largest that is recorded."""
    study = Study("laptop", device="cpu", root=root, log=lambda line: None)
    lines = ["| | the paper says | published | here | pairs of runs | verdict |", "|---|---|---|---|---|---|"]
    for each in ledger(study):
        cells = (
            each.claim.number,
            each.claim.says,
            each.published,
            str(each),
            each.n or "–",
            f"**{each.verdict}**: {each.why}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def state(root: Path) -> str:
    """What is recorded so far, one line a kind of run."""
    records = [Record.from_json(path.read_text()) for path in sorted((root / "records").glob("*/*.json"))]
    published = headline().query("version == '2506.14440'").set_index("quantity").value
    lines = []
    for record in records:
        if record.run.signals is None and record.run.architecture.blocks_removed == 0:
            done, epochs = record.outcome, record.run.recipe.num_epochs
            lines.append(
                f"- Teacher: {done['accuracy']:.2%} on {done['n_test']:,} test images after {epochs} epochs on "
                f"{done['n_train']:,} training images, 1 run (published: {published['teacher_accuracy']}% with 50,000 "
                "images). Shipped in `weights/`."
            )
    students = pd.DataFrame(
        [
            {
                "cut": record.run.architecture.blocks_removed,
                "width": record.run.architecture.width,
                "n_train": record.outcome["n_train"],
                "split": record.run.split,
            }
            for record in records
            if record.run.architecture.blocks_removed
        ]
    )
    if not students.empty:
        for (cut, width, n_train, split), group in students.groupby(["cut", "width", "n_train", "split"]):
            narrowed = f" and width {width:g}" if width != 1 else ""
            lines.append(
                f"- Students with {cut} of 19 blocks removed{narrowed}, {n_train:,} training images, scored on the {split} "
                f"images: {len(group)} runs."
            )
    full_size = PROFILES["paper"]
    arms = [
        path
        for path in (root / "records" / "arms").glob("*.json")
        if Record.from_json(path.read_text()).run.recipe == full_size.recipe
    ]
    if not arms:
        lines.append("- The full-size arms at 4.12x are declared in the `paper` profile and not yet recorded.")
    return "\n".join(lines) + "\n"
