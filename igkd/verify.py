"""Do the records hold? Some of them trained again, and the figures compared with the records that are here."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

from igkd.engine import Study, describe
from igkd.errors import InputError
from igkd.experiments import Planned
from igkd.runs import Record, Run, Store, records_digest
from igkd.training import takes_long, train

CONFIDENCE = 0.99  # of the interval in which another machine's accuracy is expected


@dataclass(frozen=True)
class Check:
    """One thing that was compared; `holds` is None where the records are not enough to judge it."""

    name: str
    holds: bool | None
    detail: str


def verify_runs(study: Study, count: int, generator: np.random.Generator) -> Iterator[Check]:
    """Train a few recorded runs of a study again and compare.

    On the same kind of machine with the same versions the weights are equal bit for bit. Elsewhere the accuracy must
    differ by no more than that of two seeds does, judged by the recorded runs that differ in their seed alone.

    Parameters
    ----------
    study : Study
    count : int
        How many, drawn at random from the study's recorded runs (without those that take many minutes).
    generator : numpy.random.Generator

    Raises
    ------
    InputError
        If nothing is recorded that could be trained again.
    """
    recorded = study.store.keys()
    items = [item for item in study.planned() if item.run.key in recorded and not takes_long(study.work(item.run))]
    if not items:
        raise InputError(f"no run of the {study.profile.name} profile is recorded; run_all.py trains them")
    for position in generator.choice(len(items), min(count, len(items)), replace=False):
        yield _again(study, items[position], items)


def _again(study: Study, item: Planned, items: list[Planned]) -> Check:
    record = study.store.find(item.run.key)
    with tempfile.TemporaryDirectory() as folder:
        aside = Store(Path(folder), Path(folder), Path(folder))
        again = train(
            item.run, study.images, aside, study.compute, study.signals(item.run), study.teacher_digest(item.run)
        )
    name = f"{describe(item)} ({item.run.key})"
    if again.outcome["weights"] == record.outcome["weights"]:
        return Check(name, True, "equal bit for bit")
    siblings = [study.store.find(other.run.key) for other in items if _unseeded(other.run) == _unseeded(item.run)]
    return compare(name, record, again, [other.outcome["accuracy"] for other in siblings])


def _unseeded(run: Run) -> Run:
    """What runs that differ in their seed alone have in common; Monte Carlo runs draw their images by it, too."""
    return replace(run, seed=0, subset=replace(run.subset, seed=0))


def compare(name: str, record: Record, again: Record, accuracies: list[float]) -> Check:
    """Compare two trainings of one run whose weights differ; `accuracies` are those of all recorded seeds."""
    change = again.outcome["accuracy"] - record.outcome["accuracy"]
    here, there = again.provenance, record.provenance
    differs = f"differs by {100 * change:+.2f} points"
    # Some records are from when long trainings were compiled, and say of the others that they were not.
    recorded = {name: value for name, value in there["machine"].items() if (name, value) != ("compiled", False)}
    if (here["machine"], here["versions"]) == (recorded, there["versions"]):
        return Check(name, False, f"{differs} on the same kind of machine and versions")
    if len(accuracies) < 3:
        return Check(name, None, f"{differs}; too few seeds are recorded to judge it")
    # The difference of two independent runs has twice the variance of one.
    limit = stats.t.ppf(0.5 + CONFIDENCE / 2, len(accuracies) - 1) * np.std(accuracies, ddof=1) * 2**0.5
    # Records older than this field may be of the same kind of machine or of another one.
    unknown = "generation" in here["machine"] and "generation" not in there["machine"]
    where = "on a processor whose generation is not recorded" if unknown else "on another machine or versions"
    return Check(name, bool(abs(change) <= limit), f"{differs} {where}; seeds explain {100 * limit:.2f}")


def verify_figures(folder: Path, store: Store) -> Iterator[Check]:
    """Compare what each figure says that it was drawn from with the records that are here.

    Parameters
    ----------
    folder : path
        Of PNG files that `igkd.figures.save` wrote.
    store : Store
    """
    for path in sorted(Path(folder).glob("*.png")):
        with Image.open(path) as picture:
            stamp, keys = picture.text.get("Description", ""), picture.text.get("Records", "").split()
        if not keys:
            # A stamp without records is of published values or of a measurement; one that names records needs them.
            holds = bool(stamp) and "records" not in stamp
            yield Check(path.name, holds, stamp if holds else f"it does not list its records ({stamp}); draw it again")
            continue
        found = {key: store.find(key) for key in keys}
        missing = [key for key, record in found.items() if record is None]
        if missing:
            yield Check(path.name, False, f"{len(missing)} of its {len(keys)} records are not here, first {missing[0]}")
            continue
        rows = [{"key": key, "accuracy": record.outcome["accuracy"]} for key, record in found.items()]
        digest = records_digest(pd.DataFrame(rows))
        stated = re.search(r"records ([0-9a-f]{12})$", stamp)
        holds = stated is not None and stated[1] == digest
        detail = f"{len(keys)} records, {digest}"
        yield Check(path.name, holds, detail if holds else f"{detail}; the figure says: {stamp}")
