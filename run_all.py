#!/usr/bin/env python3
"""Reproduce the paper: train what is missing, execute the notebooks, end with one table.

Executed copies are written to build/<profile>/notebooks/. Finished runs are never repeated, so the same command goes
on where an earlier one stopped. Exit codes: 0 all went well, 1 something failed, 2 bad input, 130 stopped with Ctrl-C.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from igkd.__main__ import OneLineParser, exit_code
from igkd.errors import InputError, TrainingError
from igkd.notebooks import Execution, Notebook, check_parameters, execute_all, find_notebooks, publish
from igkd.progress import Status, duration

REPOSITORY = Path(__file__).resolve().parent
NOTEBOOKS = REPOSITORY / "notebooks"
LATENCY_NOTEBOOK = "07"


def main() -> int:
    """Run the command line."""
    options = parse_arguments()
    return exit_code("run_all.py", lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks for."""
    notebooks = select(find_notebooks(NOTEBOOKS), options.only, options.start)
    if options.list:
        return list_notebooks(notebooks)
    # Notebooks and the default place of the data are relative to the repository.
    for name in {"IGKD_DATA", "IGKD_IMAGENET"} & set(os.environ):
        os.environ[name] = absolute(os.environ[name])
    options.data = absolute(options.data)
    os.chdir(REPOSITORY)
    if options.check:
        return show_check(options)
    if options.publish:
        return publish_notebooks(notebooks, options.profile)
    if options.verify_figures:
        return show_figures_check()
    return with_study(notebooks, options)


def parse_arguments() -> argparse.Namespace:
    """The command line; bad usage ends the program with one line and code 2."""
    parser = OneLineParser(prog="run_all.py", description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--profile", default="demo", metavar="demo|laptop|paper", help="how large (default: demo)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="only these notebooks, for example 01 03")
    parser.add_argument("--from", dest="start", metavar="NN", help="only this notebook and those after it")
    parser.add_argument("--data", default="", help="CIFAR-10 or your own images: a folder, an .npz file, or 'download'")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs and notebooks at once (default: one a processor core; a GPU: 1)"
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="train on this machine (default) or with Ray"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="with --engine ray: of the cluster's head (default: start one here)"
    )
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter of the notebooks",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="forget what is recorded and train it again, all of it or that of the --only notebooks "
        "(records of the laptop and paper profiles are files of the repository)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="list the notebooks")
    action.add_argument("--plan", action="store_true", help="runs done and to do, time and disk that they need")
    action.add_argument("--why", action="store_true", help="for each run to do, what differs from the nearest record")
    action.add_argument("--check", action="store_true", help="check Python, packages, kernel, device, disk and data")
    action.add_argument("--runs-only", action="store_true", help="train what is missing, without notebooks")
    action.add_argument(
        "--publish",
        action="store_true",
        help="copy outputs, figures and times of this profile's execution into the repository",
    )
    action.add_argument("--verify", type=int, metavar="N", help="train N recorded runs again and compare")
    action.add_argument("--verify-figures", action="store_true", help="compare figures/ with the records that are here")
    parser.add_argument(
        "--budget", type=seconds, metavar="9m", help="with --runs-only: start no run after 90s, 9m or 1h"
    )
    options = parser.parse_args()
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; give 1 or more")
    if options.verify is not None and options.verify < 1:
        parser.error(f"--verify is {options.verify}; give 1 or more")
    for name in {name for name, _ in options.parameters} & {"profile", "data", "device"}:
        parser.error(f"{name} is no parameter for -p; give --{name}")
    if options.budget is not None and not options.runs_only:
        parser.error("--budget goes with --runs-only")
    looking = (
        options.list
        or options.plan
        or options.why
        or options.check
        or options.publish
        or options.verify is not None
        or options.verify_figures
    )
    if options.address and options.engine != "ray":
        parser.error("--address goes with --engine ray")
    if options.engine == "ray" and looking:
        parser.error("--engine ray goes with training: alone or with --runs-only")
    if options.parameters and (looking or options.runs_only):
        parser.error("-p goes with executing notebooks")
    if options.force and looking:
        parser.error("--force goes with training: alone or with --runs-only")
    return options


def seconds(text: str) -> float:
    """Seconds of a duration such as 90s, 9m or 1h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 9m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def absolute(data: str) -> str:
    """A path that means the same in every folder; no data and the word ``download`` stay as they are."""
    # Not by pathlib, which refuses a user that is not known and links that go round; whoever reads it says so better.
    return data if data in ("", "download") else os.path.realpath(os.path.expanduser(data))


def select(notebooks: list[Notebook], only: list[str] | None, start: str | None) -> list[Notebook]:
    """The notebooks that were asked for, in their order."""
    if not notebooks:
        raise InputError(f"there are no notebooks NN_topic.ipynb in {NOTEBOOKS}; get them from the repository")
    chosen = notebooks if only is None else [named(notebooks, text) for text in only]
    first = notebooks[0] if start is None else named(notebooks, start)
    selected = [each for each in notebooks if each in chosen and each.number >= first.number]
    if not selected:
        raise InputError(f"no notebook of {', '.join(only)} comes from {start} on; leave out --from or --only")
    return selected


def named(notebooks: list[Notebook], text: str) -> Notebook:
    """The notebook of which the number, with one digit or two, or the whole name was given."""
    for each in notebooks:
        if text in (each.name, each.path.name) or (text and text.zfill(2) == each.number):
            return each
    numbers = ", ".join(each.number for each in notebooks)
    raise InputError(f"there is no notebook {shlex.quote(text)}; there are {numbers}")


def list_notebooks(notebooks: list[Notebook]) -> int:
    """Print names and titles."""
    width = max(len(notebook.name) for notebook in notebooks)
    for notebook in notebooks:
        print(f"{notebook.name:<{width}}  {notebook.title}")
    return 0


def show_check(options: argparse.Namespace) -> int:
    """Print each finding as it is made."""
    from igkd.doctor import check

    healthy = True
    for finding in check(options.profile, options.data or None, options.device):
        print(f"{'ok     ' if finding.ok else 'PROBLEM'}  {finding.name}: {finding.detail}", flush=True)
        if not finding.ok:
            print(f"         fix: {finding.fix}")
        healthy &= finding.ok
    return 0 if healthy else 1


def show_figures_check() -> int:
    """Print for each figure whether it fits the records."""
    from igkd.runs import Store
    from igkd.verify import verify_figures

    store = Store(REPOSITORY / "records", REPOSITORY / "build", REPOSITORY / "weights")
    return show_checks(verify_figures(REPOSITORY / "figures", store))


def show_verification(study, count: int) -> int:
    """Print for each run that is trained again whether it comes out the same."""
    import numpy as np

    from igkd.verify import verify_runs

    return show_checks(verify_runs(study, count, np.random.default_rng()))


def show_checks(checks) -> int:
    """Print each check as it is made; 1 if one does not hold."""
    failed = 0
    for check in checks:
        word = {True: "holds", False: "FAILS", None: "open"}[check.holds]
        print(f"{word:<5}  {check.name}: {check.detail}", flush=True)
        failed += check.holds is False
    return 1 if failed else 0


def publish_notebooks(notebooks: list[Notebook], profile: str) -> int:
    """Give the notebooks the outputs of their executed copies; copy the figures and the measured times."""
    build = REPOSITORY / "build" / profile
    if not (build / "figures").is_dir():
        raise InputError(f"there are no figures of the {profile} profile in build/; execute the notebooks first")
    for notebook in notebooks:
        publish(notebook, build / "notebooks" / notebook.path.name, profile)
        print(f"{notebook.name}: has the outputs of the {profile} profile")
    copies = [(path, REPOSITORY / "figures") for path in sorted((build / "figures").iterdir())]
    measured = [path for name in ("run_all", "latency") for path in sorted(build.glob(f"{name}-*.json"))]
    copies += [(path, REPOSITORY / "bench") for path in measured]
    for path, folder in copies:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    print(f"{len(copies)} figures and measurements copied to figures/ and bench/")
    if profile != "demo":  # whose networks every reader trains
        publish_weights(profile)
    return 0


def publish_weights(profile: str) -> None:
    """Copy the weights of the students that the notebooks show, if they are those of the records."""
    from igkd.engine import Study
    from igkd.experiments import shown
    from igkd.models import load_weights, state_digest

    study = Study(profile, device="cpu")
    for item in shown(study.plan):
        path, record = study.store.weights_path(item.run.key), study.store.find(item.run.key)
        if not path.exists() or record is None:
            continue
        name = f"{profile}-{item.labels['arm']}-{item.run.architecture.blocks_removed}-removed.safetensors"
        if state_digest(load_weights(path, len(record.outcome["per_class_accuracy"]))) == record.outcome["weights"]:
            shutil.copyfile(path, study.store.shipped / name)
            print(f"weights/{name}: run {item.run.key}")
        else:
            print(f"{name} is not copied: the weights of run {item.run.key} here are not those of its record")


def with_study(notebooks: list[Notebook], options: argparse.Namespace) -> int:
    """Everything that needs the runs of the profile."""
    parameters = {}
    if not (options.plan or options.why or options.runs_only or options.verify is not None):
        from igkd.kernels import prepare

        prepare()  # first, because it takes longest
        given = {"profile": options.profile, "data": options.data, "device": options.device} | dict(options.parameters)
        parameters = {notebook: check_parameters(notebook, given) for notebook in notebooks}
    from igkd.engine import PROGRESS, Study  # after the cheap checks: torch takes seconds to import

    with (
        tempfile.TemporaryDirectory() as folder,
        Status(Path(folder) / "progress", sys.stderr) as status,
        ExitStack() as at_end,
    ):
        study = Study(options.profile, options.data, options.device, log=status.say, jobs=options.jobs)
        if options.data:
            study.images  # noqa: B018 - data that was named must be usable, even where all is recorded
        numbers = [notebook.number for notebook in notebooks]
        study.plan  # noqa: B018 - a missing data set or teacher is said before anything runs
        if options.plan:
            return show_plan(study, numbers)
        if options.why:
            return show_reasons(study, numbers)
        if options.verify is not None:
            return show_verification(study, options.verify)
        if options.engine == "ray":
            from igkd.cluster import connected

            at_end.enter_context(connected(study, options.address))
        if options.force:
            study.images.train_labels  # noqa: B018 - without the data, what is forgotten could not be trained again
            forget(study, numbers)
        os.environ[PROGRESS] = str(status.file)
        if options.runs_only:
            return train_runs(study, numbers, options, status)
        return run_notebooks(study, notebooks, parameters, options, status)


def show_plan(study, numbers: list[str]) -> int:
    """Print what there is to do."""
    from igkd.outlook import outlook

    found, source = outlook(study, numbers)
    rows = [("notebook", "runs done", "to do", "training")]
    rows += [(number, str(each.done), str(each.missing), estimate(each.seconds)) for number, each in found.items()]
    total = [each.seconds for each in found.values()]
    rows.append(
        (
            "all",
            str(sum(each.done for each in found.values())),
            str(sum(each.missing for each in found.values())),
            estimate(None if None in total else sum(total)),
        )
    )
    print(table(rows))
    print(f"time on this machine: {source}")
    needed = sum(each.disk for each in found.values())
    print(f"disk: about {needed / 1e6:,.0f} MB needed, {shutil.disk_usage(REPOSITORY).free / 1e6:,.0f} MB free")
    return 0


def estimate(duration_in_seconds: float | None) -> str:
    """Minutes in words."""
    if duration_in_seconds is None:
        return "?"
    return f"{duration_in_seconds / 60:.1f} min"


def show_reasons(study, numbers: list[str]) -> int:
    """Print why each missing run is missing."""
    from igkd.outlook import reasons

    print("\n".join(reasons(study, numbers)) or "every run is recorded")
    return 0


def forget(study, numbers: list[str]) -> None:
    """Remove what the notebooks declare and measured; teachers, which all need, are their own notebook's."""
    from igkd.experiments import TEACHER_NOTEBOOK

    keys = {item.run.key for item in study.planned(numbers)}
    if TEACHER_NOTEBOOK not in numbers:
        keys -= {item.run.key for item in study.planned([TEACHER_NOTEBOOK])}
    recorded = keys & study.store.keys()
    for key in keys:  # of one without a record there may be a checkpoint
        study.store.forget(key)
    if LATENCY_NOTEBOOK in numbers:
        study.latency_files[0].unlink(missing_ok=True)
    study.log(f"forgot {len(recorded)} records; they are trained again")


def train_runs(study, numbers: list[str], options: argparse.Namespace, status: Status) -> int:
    """Train what is missing, without notebooks."""
    status.begin("training")
    before = study.store.keys()
    try:
        study.complete(numbers, options.budget)
    except TrainingError as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        status.say(f"stopped; finished runs are kept. Go on with: {command(options)}")
        return 130
    finally:
        here = study.store.keys()
        wanted = {item.run.key for item in study.planned(numbers)}
        status.say(
            f"{len(wanted & (here - before))} runs trained, {len(wanted & before)} were recorded, "
            f"{len(wanted - here)} to do"
        )
    return 0


def run_notebooks(
    study, notebooks: list[Notebook], parameters: dict, options: argparse.Namespace, status: Status
) -> int:
    """Train what the notebooks declare, execute them, and print the table."""
    from igkd.experiments import TIMED
    from igkd.outlook import needed_by, shared_out

    if not study.has_images:
        status.say(
            "CIFAR-10 is not here: what records hold is drawn; cells that need images are skipped (README, Data)"
        )
    copies = REPOSITORY / "build" / options.profile / "notebooks"  # beside figures/, as in the repository
    numbers = [notebook.number for notebook in notebooks]
    started, before = time.monotonic(), study.store.keys()
    finished: dict[Notebook, Execution] = {}
    trained: dict[Notebook, int] = {}
    at_once, failed = 1, False
    try:
        if not study.has_images:
            at_once = study.jobs  # nothing is trained; a notebook that needs a run that is not recorded says so
        # Notebooks with changed parameters may need other runs than the profile's; each then trains its own.
        elif not options.parameters:
            status.begin("training")
            try:
                study.complete(numbers)
                at_once = study.jobs
            except (TrainingError, OSError) as error:
                status.say(f"run_all.py: {error}")
                failed = True
        new = study.store.keys() - before
        shares = shared_out(study, numbers)
        trained = {each: len({item.run.key for item in shares[each.number]} & new) for each in notebooks}
        timed = [each for each in notebooks if each.number in TIMED]
        # Those that measure come first: the first notebook shows what the others measured.
        for group, beside in ((timed, 1), ([each for each in notebooks if each not in timed], at_once)):
            here = study.store.keys()
            status.begin(", ".join(each.name for each in group[:beside]))
            with closing(execute_all(group, copies, parameters, REPOSITORY, beside, study.has_images)) as results:
                for notebook, result in results:
                    finished[notebook] = result
                    trained[notebook] += len(study.store.keys() - here)
                    here = study.store.keys()
                    left = [each.name for each in group if each not in finished]
                    status.begin(", ".join(left[:beside]))
                    status.say(
                        f"{notebook.name}: {result.status} in {duration(result.seconds)}"
                        + (f"; {result.error}" if result.error else "")
                    )
    except KeyboardInterrupt:
        left = [each for each in notebooks if each not in finished]
        status.say(f"stopped; finished runs are kept. Go on with: {command(options, left)}")
        return 130
    seconds = time.monotonic() - started
    rows = [("notebook", "seconds", "trained", "recorded", "figures", "status")]
    for each in notebooks:
        result, needed = finished[each], {item.run.key for item in needed_by(study, each.number)}
        counts = (trained[each], len(needed & before), result.figures)
        rows.append((each.name, f"{result.seconds:.0f}", *map(str, counts), result.status))
    status.say("\n" + table(rows))
    status.say(
        "trained: runs of this call, each counted once; recorded: runs that the notebook opens and that were there"
    )
    status.say(ledger_line(study))
    failed |= any(result.error for result in finished.values())
    if not failed and len(notebooks) == len(find_notebooks(NOTEBOOKS)):
        write_timing(study, rows, seconds)
    status.say(f"{duration(seconds)} in all; executed copies are in {copies.relative_to(REPOSITORY)}/")
    return 1 if failed else 0


def ledger_line(study) -> str:
    """Write the ledger of the claims and say in a line what is in it."""
    from igkd.claims import write_ledger

    verdicts = list(write_ledger(study).verdict)
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    ledger = (study.figures / "ledger.html").relative_to(REPOSITORY)
    return f"claims, on the data of the {study.profile.name} profile: {counts}; see {ledger}"


def write_timing(study, rows: list[tuple[str, ...]], seconds: float) -> None:
    """Keep how long a whole execution took: one file for executions that trained, one for those that read records."""
    header, *lines = rows
    measured = [dict(zip(header, [name, *map(int, numbers), outcome])) for name, *numbers, outcome in lines]
    kind = "trained" if any(line["trained"] for line in measured) else "recorded"
    content = {
        "profile": study.profile.name,
        "machine": study.compute.describe(),
        "jobs": study.jobs,
        "seconds": round(seconds),
        "notebooks": measured,
    }
    path = study.figures.parent / f"run_all-{study.profile.name}-{kind}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


def command(options: argparse.Namespace, left: list[Notebook] | None = None) -> str:
    """The command that goes on; without --force, which would train finished runs again."""
    words = ["python", "run_all.py", "--profile", options.profile]
    if left is not None:
        words += ["--only", *(notebook.number for notebook in left)]
    for name, value in (("--data", options.data), ("--device", options.device)):
        if value not in ("", "auto"):
            words += [name, value]
    if options.engine != "local":
        words += ["--engine", options.engine]
    if options.address:
        words += ["--address", options.address]
    if options.jobs:
        words += ["--jobs", str(options.jobs)]
    for name, value in options.parameters:
        words += ["-p", name, value]
    if options.runs_only:
        words.append("--runs-only")
        words += ["--only", *options.only] if options.only else []
        words += ["--from", options.start] if options.start else []
    return shlex.join(words)


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns side by side, the first flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        first.ljust(widths[0]) + "".join(f"  {text:>{width}}" for text, width in zip(others, widths[1:]))
        for first, *others in rows
    )


if __name__ == "__main__":
    sys.exit(main())
