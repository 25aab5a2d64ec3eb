#!/usr/bin/env python3
"""Reproduce the paper: train what is missing, execute the notebooks, end with the ledger.

Executed copies are written to build/<profile>/notebooks/, or, with your own images, to the folder that the last line
names. Finished runs are never repeated, so the same command goes on where an earlier one stopped. Exit codes: 0 all
went well, 1 something failed, 2 bad input, 130 stopped with Ctrl-C.
"""

import argparse
import ast
import os
import re
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from igkd.errors import InputError, OneLineParser, TrainingError, exit_code

ROOT = Path(__file__).resolve().parent
#: Tag of the cells that show images or send them through a network, and of those that need what such cells make.
NEEDS_IMAGES = "needs-images"
SKIPPED = "This cell needs the images, which are not here (section Data of the README says how to get them).\n"
LATENCY_NOTEBOOK = "07"
AT_ONCE = 2  # notebooks, each with a kernel of its own


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(prog="run_all.py", description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--profile", default="demo", metavar="demo|laptop|paper", help="how large (default: demo)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="only these notebooks: 01, or by name: 03_distillation")
    parser.add_argument("--data", default="", help="CIFAR-10 or your own images: a folder, an .npz file, or 'download'")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: auto)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (default: one a processor core; a GPU: 1)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="train here (default) or with Ray")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the head of a Ray cluster (default: start one here)")
    pair = {"nargs": 2, "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", **pair, action="append", default=[], help="a parameter of the notebooks")
    parser.add_argument("--force", action="store_true", help="forget what is recorded of the notebooks, train it again")
    parser.add_argument("--budget", type=seconds, metavar="9m", help="start no run after 9m or 1h; signals come first")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--plan", action="store_true", help="what is recorded, and how long the rest takes")
    action.add_argument("--runs-only", action="store_true", help="train what is missing, without notebooks")
    action.add_argument("--verify", type=int, metavar="N", help="train N recorded runs again and compare")
    action.add_argument("--publish", action="store_true", help="copy outputs and figures into the repository")
    options = parser.parse_args()
    for name in ("jobs", "verify"):
        if (given := getattr(options, name)) is not None and given < 1:
            parser.error(f"--{name} is {given}; give 1 or more")
    looks = options.plan or options.publish or options.verify
    if looks and (options.force or options.p or options.budget is not None or options.engine == "ray"):
        parser.error("--force, -p, --budget and --engine go with training")
    if named := [name for name, _ in options.p if name in ("profile", "data", "device")]:
        parser.error(f"give {named[0]} as --{named[0]}, not with -p")
    if options.p and (options.jobs or options.engine == "ray" or options.runs_only):
        parser.error("-p goes without --jobs, --engine, --runs-only: notebooks with other parameters train their own")
    if options.address and options.engine != "ray":
        parser.error("--address goes with --engine ray")
    return options


def seconds(text: str) -> float:
    """Seconds of a duration such as 90s, 9m or 1h."""
    if not (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 9m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def main() -> int:
    """Do what the command line asks for."""
    options = arguments()
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    numbers = [path.name[:2] for path in notebooks]
    only = [text.partition("_")[0].zfill(2) for text in options.only or numbers]
    if unknown := [number for number in only if number not in numbers]:
        raise InputError(f"there is no notebook {', '.join(unknown)}; there are {', '.join(numbers)}")
    notebooks = [path for path in notebooks if path.name[:2] in only]
    # so that kernels have this igkd, wherever they start and whatever else is installed
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    given = {name: getattr(options, name) for name in ("profile", "data", "device")} | dict(options.p)
    executes = not (options.plan or options.verify or options.publish or options.runs_only)
    parameters = {path: checked(path, given) for path in notebooks if executes}
    from igkd.study import UNTIL, Study  # after the cheap checks: torch takes seconds to import

    if options.budget is not None:
        os.environ[UNTIL] = str(time.time() + options.budget)  # for the kernels of the notebooks, too
    study = Study(options.profile, options.data, options.device, jobs=options.jobs)
    if options.data:
        study.images  # noqa: B018 - data that was named must be usable, even where all is recorded
    if options.publish:
        return publish(study, notebooks)
    if options.plan:
        return plan(study, only)
    if options.verify:
        return verify(study, only, options.verify)
    if options.engine == "local":
        return reproduce(study, notebooks, parameters, options)
    from igkd.cluster import connected

    with connected(study, options.address):
        return reproduce(study, notebooks, parameters, options)


def checked(path: Path, given: dict) -> dict:
    """Parameters as values, if the notebook has them; papermill would only warn and use the defaults."""
    import papermill

    defaults, values = papermill.inspect_notebook(as_template(path)), {}
    for name, text in given.items():
        if name not in defaults:
            raise InputError(f"{path.name} has no parameter {name!r}; it has {', '.join(defaults)}")
        default, value = literal(defaults[name]["default"]), literal(text)
        values[name] = text if isinstance(default, str) else value
        if not isinstance(values[name], (int, float) if isinstance(default, float) else type(default)):
            raise InputError(f"{path.name} takes {name} like {default!r}, not {text!r}")
    return values


def as_template(path: Path) -> str:
    """The path as papermill takes it, which formats paths as templates."""
    return str(path).replace("{", "{{").replace("}", "}}")


def literal(text: str):
    """The value that Python reads in it, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def reproduce(study, notebooks: list[Path], parameters: dict, options) -> int:
    """Train what the notebooks declare, execute them, and write the ledger."""
    from igkd.experiments import TIMED
    from igkd.study import UNTIL

    numbers, failed = [path.name[:2] for path in notebooks], False
    if options.force or options.runs_only:
        study.images.train_labels  # noqa: B018 - without images nothing is forgotten: nothing can be trained
    if options.force:
        forget(study, numbers)
    if not study.has_images:
        print("CIFAR-10 is not here: what records hold is drawn; cells that need images are skipped (README, Data)")
    before = study.store.keys() | (set() if study.teacher_runs() else {study.plan.teacher_key})  # shipped, not trained
    try:
        # Notebooks with changed parameters may need other runs than the profile's; each then trains its own.
        if options.runs_only or (study.has_images and not options.p):
            study.ensure(study.planned(numbers))
    except TrainingError as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        failed, os.environ[UNTIL] = True, "0"  # the notebooks would only try again
    if not options.runs_only:
        timed = [path for path in notebooks if path.name[:2] in TIMED]  # first: notebook 00 shows what they measure
        for group, at_once in ((timed, 1), ([path for path in notebooks if path not in timed], AT_ONCE)):
            failed |= execute_all(group, at_once, study.folder / "notebooks", parameters, study.has_images)
    new, declared = study.store.keys() - before, {item.run.key for item in study.planned(numbers)}
    missing = len(declared - before - new)
    print(f"{len(new)} runs trained, {len(declared & before)} were recorded, {missing} to do")
    if not options.runs_only:
        from igkd.claims import write_ledger

        print(write_ledger(study)[["published", "here", "verdict"]].to_string())
        print(f"executed copies are in {study.folder}/notebooks/, the ledger is {study.figures}/ledger.md")
    return 1 if failed else 0


def forget(study, numbers: list[str]) -> None:
    """Remove what the notebooks declare and measured; teachers, which all need, are their own notebook's."""
    from igkd.experiments import TEACHER_NOTEBOOK

    keys = {item.run.key for item in study.planned(numbers)}
    if TEACHER_NOTEBOOK not in numbers:
        keys -= {item.run.key for item in study.planned([TEACHER_NOTEBOOK])}
    for key in keys:  # of one without a record there may be a checkpoint
        study.store.forget(key)
    if LATENCY_NOTEBOOK in numbers:
        study.latency_files[0].unlink(missing_ok=True)


def execute_all(notebooks: list[Path], at_once: int, copies: Path, parameters: dict, with_images: bool) -> bool:
    """Execute notebooks side by side; say whether one failed."""
    failed = False
    with ThreadPoolExecutor(at_once) as pool:
        running = {
            pool.submit(execute, path, copies / path.name, parameters[path], with_images): path for path in notebooks
        }
        try:
            for done in as_completed(running):
                print(f"{running[done].stem}: {done.result() or 'ok'}")
                failed |= bool(done.result())
        except BaseException:  # Ctrl-C: the threads end when their kernels do
            import psutil

            pool.shutdown(wait=False, cancel_futures=True)
            for child in psutil.Process().children(recursive=True):
                child.kill()
            raise
    return failed


def execute(source: Path, copy: Path, parameters: dict, with_images: bool = True) -> str:
    """Execute a notebook into `copy`, and say in a line what went wrong.

    Without the images, tagged cells are not executed: they say so and keep the outputs of the same profile.
    """
    import nbformat
    import papermill
    from nbformat.v4 import new_output
    from papermill.exceptions import PapermillExecutionError

    paths = as_template(source), as_template(copy)
    options = {"kernel_name": "python3", "progress_bar": False}
    options["extra_arguments"] = ["--IPKernelApp.log_level=50"]  # what it logs is not about the notebook
    if not with_images:
        options["skip_cells_with_tag"] = NEEDS_IMAGES
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        papermill.execute_notebook(*paths, parameters, **options)
        done, before = nbformat.read(copy, 4), nbformat.read(source, 4)
        same = before.metadata.get("profile") == parameters["profile"]
        kept = {cell.id: cell.get("outputs", []) for cell in before.cells if same}
        for cell in done.cells if not with_images else ():
            if NEEDS_IMAGES in cell.metadata.get("tags", ()):
                cell.outputs = [new_output("stream", name="stdout", text=SKIPPED), *kept.get(cell.id, [])]
        nbformat.write(done, copy)
    except PapermillExecutionError as error:
        return f"failed: {error.ename}: {([''] + error.evalue.strip().splitlines())[-1]}"
    except Exception as error:  # a dead kernel, a full disk, a damaged file: the other notebooks go on
        return f"failed: {type(error).__name__}: {error}"
    return ""


def plan(study, numbers: list[str]) -> int:
    """Print what is recorded of each experiment, and how long the rest takes at the speed of the records."""
    speed = {}  # recipe and network -> seconds for each image
    for record in study.store.records():
        speed[record.run.recipe, record.run.architecture] = record.provenance["seconds"] / record.outcome["n_train"]
    recorded, declared = study.store.keys(), study.planned(numbers)
    for experiment in dict.fromkeys(item.experiment for item in declared):
        runs = [item.run for item in declared if item.experiment == experiment]
        missing = [run for run in runs if run.key not in recorded]
        n = {run: study.images.n_train * run.subset.fraction * (1 - run.subset.validation) for run in missing}
        took = [
            n[run] * speed[run.recipe, run.architecture] for run in missing if (run.recipe, run.architecture) in speed
        ]
        rest = f", about {sum(took) / 60:.1f} min on one core or GPU" if took else ""
        if unknown := len(missing) - len(took):
            rest += f", {unknown} of unknown length"
        print(f"{experiment:<18} {len(runs) - len(missing):4d} of {len(runs):4d} recorded{rest}")
    return 0


def verify(study, numbers: list[str], count: int) -> int:
    """Train recorded runs again: equal bit for bit, or within what seeds scatter."""
    import numpy as np
    from scipy import stats

    from igkd.records import Store
    from igkd.training import train

    def described(item) -> tuple:
        return item.experiment, item.labels | {"seed": 0}

    recorded, failed = study.store.keys(), False
    items = [item for item in study.planned(numbers) if item.run.key in recorded]
    if not items:
        raise InputError(f"no run of the {study.profile.name} profile is recorded; run_all.py trains them")
    for at in np.random.default_rng().permutation(len(items))[:count]:
        run = items[at].run
        then, signals, digest = study.store.find(run.key), study.signals(run), study.teacher_digest(run)
        with tempfile.TemporaryDirectory() as folder:  # the weights that are here stay
            aside = Store(folder, folder, folder)
            now = train(run, study.images, aside, study.compute, signals, digest)
        change = now.outcome["accuracy"] - then.outcome["accuracy"]
        alike = study.table([item for item in items if described(item) == described(items[at])]).accuracy
        elsewhere = study.compute.describe().get("generation") != then.provenance["machine"].get("generation")
        # The difference of two independent runs has twice the variance of one. Of two seeds no spread is known.
        few, limit = len(alike) < 3, stats.t.ppf(0.995, len(alike) - 1) * alike.std() * 2**0.5
        same = now.outcome["weights"] == then.outcome["weights"]
        failed |= not same and (not elsewhere if few else abs(change) > limit)
        explained = "too few seeds to tell what they explain" if few else f"seeds explain {limit:.2%}"
        apart = f"{change:+.2%}, {explained}" + ", recorded on another processor" * elsewhere
        print(f"{run.key}: {'equal bit for bit' if same else apart}")
    return int(failed)


def steady(output, cell: int, place: int = 0):
    """The output in this place of a cell without what chance put into it: equal results are to give equal files."""
    if output.output_type == "execute_result":
        output.execution_count = cell
    for kind in [kind for kind in output.get("data", ()) if kind.startswith("text/")]:
        # pandas' name of a styled table, and where Python had it
        named = re.sub(r"\bT_[0-9a-f]{5}(?=_|\b)", f"T_{cell}_{place}", output.data[kind])
        output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", named)
    return output


def publish(study, notebooks: list[Path]) -> int:
    """Copy outputs, figures, measured times and the weights of the students shown into the repository."""
    import nbformat

    from igkd.claims import renewed
    from igkd.experiments import shown
    from igkd.records import write_atomically
    from igkd.study import SHIPPED_TEACHER

    if study.own_images:
        raise InputError("what is published is about the images of the records; leave out --data, or name those")
    figures = set()
    for path in notebooks:
        copy = study.folder / "notebooks" / path.name
        try:
            source, done = nbformat.read(path, 4), nbformat.read(copy, 4)
        except (OSError, ValueError) as error:
            raise InputError(f"{path.name} has no executed copy ({error}); execute it first") from error
        cells = [cell for cell in done.cells if "injected-parameters" not in cell.metadata.get("tags", ())]
        if [cell.source for cell in cells] != [cell.source for cell in source.cells]:
            raise InputError(f"{path.name} failed, or was edited after it was executed; execute it again")
        code = [(cell, ran) for cell, ran in zip(source.cells, cells, strict=True) if cell.cell_type == "code"]
        for number, (cell, ran) in enumerate(code, 1):
            if (cell.source and ran.execution_count is None) or any(out.output_type == "error" for out in ran.outputs):
                raise InputError(f"{path.name} was not executed to its end with the images; execute it again")
            cell.execution_count = number
            cell.outputs = [steady(output, number, place) for place, output in enumerate(ran.outputs)]
            figures.update(re.findall(r'figures\.save\(\s*\w+,\s*"([\w-]+)"', cell.source))
        source.metadata["profile"] = study.profile.name
        write_atomically(path, (nbformat.writes(source) + "\n").encode())
        print(f"{path.stem}: has the outputs of the {study.profile.name} profile")
    for path in (*study.at_laptop_size.figures.glob("*"), *study.figures.glob("*")):
        if path.stem in figures:  # those of other notebooks may be of another profile
            shutil.copy(path, ROOT / "figures")
    if study.latency_files[0].exists():
        shutil.copy(*study.latency_files)
    if not study.full_size:  # whose networks a reader trains in minutes
        return 0
    shutil.copy(study.figures / "ledger.md", ROOT / "figures")
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text("utf-8"), study), "utf-8")
    networks = {f"{study.profile.name}-{item.labels['arm']}.safetensors": item for item in shown(study.plan)}
    networks[SHIPPED_TEACHER] = study.planned_teacher()
    for name, item in networks.items():
        if (weights := study.store.weights_path(item.run.key)).exists():
            shutil.copy(weights, study.store.shipped / name)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("run_all.py", main))
