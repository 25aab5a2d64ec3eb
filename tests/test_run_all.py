"""run_all.py as a program in a small repository of its own."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import nbformat
import pandas as pd
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from igkd.records import write_atomically
from small import ROOT, wait
from test_study import digits, record, study_of, with_teacher

PARAMETERS = 'profile = "demo"\ndata = ""\ndevice = "auto"\nn_steps = 8  # of the integral\nlr = 0.1'
RUN_ALL = runpy.run_path(str(ROOT / "run_all.py"))
KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
TRAIN_ONE = """
from dataclasses import replace
from igkd.runs import Recipe, Subset
from igkd.study import Study
study = Study(profile, data, device, log=lambda line: None)
item = study.planned(["03"])[1]
study.ensure([replace(item, run=replace(item.run, subset=Subset(0.05), recipe=Recipe(1, 8, one_cycle=False)))])
"""
START = """import os, sys
print(sys.executable, [profile, n_steps, lr], os.path.realpath(os.environ['IGKD_IMAGENET']), sep='\\n')"""
LONG = "import os, time\nopen('kernel', 'w').write(str(os.getpid()))\ntime.sleep(600)"


def write_notebook(path, title, *code, parameters=PARAMETERS):
    cells = [new_markdown_cell(f"# {title}"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells + [new_code_cell(text) for text in code], metadata=KERNEL), path)
    return path


def small_repository(root):
    """The program in a folder; it has the notebooks that a test writes there."""
    shutil.copytree(ROOT / "igkd", root / "igkd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_all.py", root)
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = small_repository(tmp_path_factory.mktemp("with {braces}"))
    write_notebook(root / "notebooks" / "00_start.ipynb", "Start here", START)
    write_notebook(root / "notebooks" / "01_broken.ipynb", "Broken", "raise ValueError('on purpose')", "print('never')")
    write_notebook(root / "notebooks" / "02_trains.ipynb", "Trains", TRAIN_ONE)
    write_notebook(root / "notebooks" / "03_long.ipynb", "Long", LONG)
    write_atomically(root / "records" / "arms" / "0123456789abcdef.json", b'{"run": ')  # it was damaged
    return root


def run_all(root, *arguments):
    environment = {name: value for name, value in os.environ.items() if name not in ("IGKD_DATA", "IGKD_IMAGENET")}
    environment["IGKD_IMAGENET"] = root.name  # from where it is started
    command = [sys.executable, root / "run_all.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root.parent, env=environment)


def test_executes_and_goes_on_after_a_failure(repository):
    done = run_all(repository, "--only", "0", "1", "02", "-p", "n_steps", "5", "-p", "lr", "1e-3")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert {"00_start: ok", "01_broken: failed: ValueError: on purpose", "02_trains: ok"} <= set(lines)
    build = repository / "build" / "demo"
    first, broken = (nbformat.read(build / "notebooks" / name, 4) for name in ("00_start.ipynb", "01_broken.ipynb"))
    said = first.cells[-1].outputs[0].text.splitlines()  # parameters have the types of the notebook's
    assert said == [sys.executable, "['demo', 5, 0.001]", str(repository)]  # and paths mean the same
    assert [shown.ename for cell in broken.cells for shown in cell.get("outputs", ())] == ["ValueError"]
    assert len(list((build / "records").glob("*/*.json"))) == 1  # with other parameters a notebook trains its own


def test_bad_input_is_one_line_that_names_it(repository):
    for arguments, named in (
        ("-p n_steps many", "'many'"),
        ("-p profile laptop", "--profile"),
        ("--only 17", "17"),
        ("-p n_steps 5 --runs-only", "--runs-only"),
        ("-p n_steps 5 --jobs 1", "--jobs"),  # notebooks with other parameters train their own runs
        ("--plan --force", "--force"),
        ("--runs-only --forc", "--forc"),  # of which --force would delete records
        ("--publish --only 03", "03_long.ipynb"),
        ("--profile paper --plan --data ~nobody-here/x.npz", "~nobody-here/x.npz"),
        ("--profile paper --plan", "0123456789abcdef.json"),
    ):
        done = run_all(repository, *arguments.split())
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
        assert named in done.stderr


def start(*command, **options):
    """A program that heeds Ctrl-C, although a shell's background jobs, and so what tests start there, ignore it."""
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, *command], **options)


def test_ctrl_c_in_a_terminal_reaches_the_trainings_too(tmp_path):
    """A terminal sends it to all processes of the command at once."""
    write_notebook(small_repository(tmp_path) / "notebooks" / "00_start.ipynb", "Start", START)
    study = study_of(tmp_path)
    with_teacher(study)
    options = ["--runs-only", "--only", "00", "--jobs", "2"]
    process = start(tmp_path / "run_all.py", *options, start_new_session=True)
    # An unfinished training keeps its state from the first epoch on, so both are training.
    wait(process, lambda: len(list(study.store.scratch.glob("checkpoints/*.pt"))) == 2)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    assert len(started) >= 2 and not psutil.wait_procs(started, timeout=30)[1]


def test_ctrl_c_stops_the_kernel(repository):
    pid_file = repository / "kernel"
    process = start(repository / "run_all.py", "--only", "03", "-p", "lr", "0.2", cwd=repository)
    wait(process, lambda: pid_file.exists() and pid_file.read_text())
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1].startswith("run_all.py: stopped")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.fixture
def study(tmp_path):
    """A demo study in which all runs of three notebooks but one are recorded, a minute each."""
    study = study_of(tmp_path)
    missing = study.planned(["00"])[-1].run.key
    for item in study.planned(["00", "01", "03"]):
        if item.run.key != missing:
            study.store.add(record(item.run, seconds=60.0), item.experiment)  # 40 images
    return study


def test_the_plan_counts_and_reckons_from_recorded_speed(study, capsys):
    RUN_ALL["plan"](study, ["00"])
    said = capsys.readouterr().out.splitlines()[-1].split()
    assert " ".join(said) == "arms 5 of 6 recorded, about 12.0 min on one core or GPU"  # 480 images
    shutil.rmtree(study.store.root)
    RUN_ALL["plan"](study, ["00"])
    assert "6 of unknown length" in capsys.readouterr().out  # nothing with this network is recorded


def test_force_forgets_what_its_notebooks_trained_and_measured_and_nothing_else(study):
    teacher, measured = study.teacher_runs()[0].run.key, study.figures.parent / "latency-demo.json"
    measured.write_text("{}")
    RUN_ALL["forget"](study, ["03"])
    assert study.store.keys() == {teacher} and measured.exists()  # the teacher has a notebook of its own
    RUN_ALL["forget"](study, ["01", "07"])
    assert study.store.keys() == set() and not measured.exists()


def test_a_run_trained_again_is_equal_and_a_changed_record_is_noticed(tmp_path, capsys):
    study, (item,) = digits(tmp_path, 1, 1)
    study.planned = lambda numbers: [item]
    study.ensure([item])
    assert RUN_ALL["verify"](study, ["03"], 1) == 0
    assert "equal bit for bit" in capsys.readouterr().out
    kept = study.store.find(item.run.key)
    changed = kept.outcome | {"weights": "0" * 16, "accuracy": kept.outcome["accuracy"] + 0.01}
    study.store.add(replace(kept, outcome=changed), item.experiment)
    assert RUN_ALL["verify"](study, ["03"], 1) == 1
    assert "-1.00%" in capsys.readouterr().out


def test_a_run_trained_again_is_judged_by_the_seeds_of_its_own_experiment(tmp_path):
    """Arms of one name are in several experiments, with fewer images say; three equal seeds allow no change."""
    study, items = digits(tmp_path, 1, *[1] * 6)
    for item in items[3:]:
        items[item.run.seed] = replace(item, experiment="tuned")
    for item in items:
        study.store.add(record(item.run, accuracy={"arms": 1.0, "tuned": 0.0}[item.experiment]), item.experiment)
    study.planned = lambda numbers: items
    assert RUN_ALL["verify"](study, ["03"], 1) == 1


def test_equal_tables_are_published_as_equal_text():
    tables = [pd.DataFrame({"a": [1.5]}).style for _ in range(2)]  # each with a random name and a place in memory
    shown = [{"text/html": table.to_html(), "text/plain": repr(table)} for table in tables]
    outputs = [RUN_ALL["steady"](new_output("display_data", data), 3) for data in shown]
    assert shown[0] != shown[1] and outputs[0] == outputs[1]
    assert outputs[0] != RUN_ALL["steady"](new_output("display_data", shown[0]), 3, 1)  # two tables of one cell


def test_published_notebooks_have_outputs_and_no_trace_of_the_execution(tmp_path):
    small_repository(tmp_path)
    path = write_notebook(tmp_path / "notebooks" / "00_start.ipynb", "Start", "1 + 1")
    source, done = nbformat.read(path, 4), nbformat.read(path, 4)
    for number, cell in enumerate(done.cells[1:]):
        cell.metadata["papermill"], cell.execution_count = {"duration": 1.0}, number + 7
    done.cells[-1].outputs = [new_output("execute_result", {"text/plain": "2"}, execution_count=9)]
    done.cells.insert(2, new_code_cell("data = '/somewhere/else'", metadata={"tags": ["injected-parameters"]}))
    (tmp_path / "build" / "demo" / "figures").mkdir(parents=True)
    copy = write_notebook(tmp_path / "build" / "demo" / "notebooks" / path.name, "Start")
    nbformat.write(done, copy)
    assert run_all(tmp_path, "--publish").returncode == 0
    published = nbformat.read(path, 4)
    assert published.metadata.pop("profile") == "demo"
    shown = published.cells[-1].outputs[0]
    assert shown.data == {"text/plain": "2"} and shown.execution_count == published.cells[-1].execution_count == 2
    for cell in published.cells[1:]:
        cell.execution_count, cell.outputs = None, []
    assert published == source

    done.cells[-1].execution_count, before = None, path.read_bytes()  # it stopped before its end
    nbformat.write(done, copy)
    refused = run_all(tmp_path, "--publish")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1) and path.read_bytes() == before
