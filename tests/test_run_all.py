"""run_all.py as a program in a small repository of its own."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import venv
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from igkd import experiments
from igkd.engine import Study
from igkd.errors import InputError
from igkd.models import pack_weights
from igkd.runs import Record, write_atomically
from small import small_teacher

REPOSITORY = Path(__file__).resolve().parent.parent
PARAMETERS = 'profile = "demo"\ndata = ""\ndevice = "auto"\nn_steps = 8  # of the integral\nlr = 0.1'
RUN_ALL = runpy.run_path(str(REPOSITORY / "run_all.py"))
KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}

TRAIN_ONE = """
from dataclasses import replace
from igkd.engine import Study
from igkd.images import Subset
from igkd.methods import Recipe
study = Study(profile, data, device, log=lambda line: None)
item = study.planned(["03"])[1]
run = replace(item.run, subset=Subset(0.05), recipe=Recipe(1, 8, one_cycle=False))
study.ensure([replace(item, run=run)])
"""


def write_notebook(path, title, *code, parameters=PARAMETERS):
    cells = [new_markdown_cell(f"# {title}"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells + [new_code_cell(text) for text in code], metadata=KERNEL), path)
    return path


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with this program and notebooks that are made for the tests."""
    root = tmp_path_factory.mktemp("with {braces}")
    shutil.copytree(REPOSITORY / "igkd", root / "igkd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run_all.py", root)
    folder = root / "notebooks"
    write_notebook(
        folder / "00_start.ipynb",
        "Start here",
        "import os, sys\nprint(sys.executable, os.getcwd(), profile, n_steps, sep='\\n')",
    )
    write_notebook(folder / "01_broken.ipynb", "Broken", "raise ValueError('broken on purpose')", "print('never')")
    write_notebook(folder / "02_trains.ipynb", "Trains", TRAIN_ONE)
    write_notebook(
        folder / "03_long.ipynb",
        "Long",
        "import os, time\nopen('kernel', 'w').write(str(os.getpid()))\ntime.sleep(600)",
    )
    return root


def run_all(root, *arguments):
    environment = {name: value for name, value in os.environ.items() if name not in ("IGKD_DATA", "IGKD_IMAGENET")}
    command = [sys.executable, root / "run_all.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root.parent, env=environment)


def test_executes_and_goes_on_after_a_failure(repository):
    done = run_all(repository, "--only", "0", "1", "02", "-p", "n_steps", "5")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert {"00_start: ok", "01_broken: failed: ValueError: broken on purpose", "02_trains: ok"} <= set(lines)
    assert any(line.startswith("1 runs trained, 0 were recorded") for line in lines)
    build = repository / "build" / "demo"
    first = nbformat.read(build / "notebooks" / "00_start.ipynb", 4)
    assert first.cells[-1].outputs[0].text.split("\n")[:4] == [sys.executable, str(repository), "demo", "5"]
    broken = nbformat.read(build / "notebooks" / "01_broken.ipynb", 4)
    assert [shown.ename for cell in broken.cells for shown in cell.get("outputs", ())] == ["ValueError"]
    assert len(list((build / "records" / "arms").glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "n_step", "5"], "00_start.ipynb has no parameter 'n_step'"),
        (["-p", "n_steps", "many"], "00_start.ipynb takes n_steps like 8, not 'many'"),
        (["--only", "17"], "there is no notebook 17; there are 00, 01, 02, 03"),
        (["--profile", "huge"], "no profile 'huge'; choose one of: demo, laptop, paper"),
        (["--verify", "0"], "--verify is 0; give 1 or more"),
        (["--budget", "9"], "'9' is no duration such as 90s, 9m or 1h"),
        (["--list", "--force"], "go with training"),
        (["--address", "head:6379"], "--address goes with --engine ray"),
        (["--runs-only", "--forc"], "unrecognized arguments: --forc"),  # of which --force would delete records
        (["--publish", "--only", "03"], "03_long.ipynb has no executed copy"),
        (["--profile", "laptop", "--plan", "--data", "~nobody-here/x.npz"], "~nobody-here/x.npz is not there"),
    ],
)
def test_bad_input_is_one_line(repository, arguments, message):
    done = run_all(repository, *arguments)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert message in done.stderr


def small_repository(root):
    """A repository with one notebook that trains nothing itself, and its study."""
    shutil.copytree(REPOSITORY / "igkd", root / "igkd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run_all.py", root)
    write_notebook(root / "notebooks" / "00_start.ipynb", "Start here", "print('started')")
    return Study("demo", root=root, device="cpu", log=lambda line: None)


def heed_ctrl_c():
    """A shell's background jobs ignore the signal, and so would what these tests start there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def group(leader):
    """The processes of a group that have not ended."""
    found = []
    for each in psutil.process_iter():
        try:
            if os.getpgid(each.pid) == leader and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_ctrl_c_reaches_the_trainings_of_a_terminal_too(tmp_path):
    """A terminal sends it to all processes of the command at once."""
    study = small_repository(tmp_path)
    (teacher,) = study.teacher_runs()
    made = small_teacher(study.images)
    content = pack_weights(made.model, run=teacher.run.key, accuracy=str(made.accuracy))
    write_atomically(study.store.weights_path(teacher.run.key), content)
    study.store.add(Record(teacher.run, {"accuracy": made.accuracy}, {"seconds": 1.0}), "teacher")
    command = [sys.executable, tmp_path / "run_all.py", "--runs-only", "--only", "00", "--jobs", "2"]
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, preexec_fn=heed_ctrl_c)
        # An unfinished training keeps its state from the first epoch on, so both are training.
        while process.poll() is None and len(list(study.store.scratch.glob("checkpoints/*.pt"))) < 2:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        said.seek(0)
        text = said.read()
    assert "Traceback" not in text
    for _ in range(300):
        if not group(process.pid):
            break
        time.sleep(0.1)
    assert not group(process.pid)


def test_ctrl_c_stops_the_kernel(repository):
    pid_file = repository / "kernel"
    process = subprocess.Popen(
        [sys.executable, repository / "run_all.py", "--only", "03", "-p", "lr", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    while process.poll() is None and not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.endswith("run_all.py: stopped; finished runs are kept, and the same command goes on\n")
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_without_its_packages_it_names_the_way_into_the_environment(repository, tmp_path):
    venv.create(tmp_path, symlinks=True)
    bare = tmp_path / "bin" / "python"
    done = subprocess.run([bare, repository / "run_all.py", "--plan"], capture_output=True, text=True, cwd=repository)
    assert (done.returncode, done.stdout) == (2, "")
    advice = rf"run_all.py: [\w.]+ is missing in {bare}; run make, then source .venv/bin/activate\n"
    assert re.fullmatch(advice, done.stderr), done.stderr


@pytest.mark.parametrize(
    "raised",
    [
        "RuntimeError('operator torchvision::nms does not exist')",
        "AttributeError('partially initialized module (most likely due to a circular import)')",
    ],
)
def test_a_torchvision_of_another_torch_is_one_line(raised):
    code = f"from igkd.errors import exit_code\ndef work(): raise {raised}\nraise SystemExit(exit_code('x', work))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "torchvision does not fit torch" in done.stderr


def test_without_ray_its_engine_says_how_to_get_it(repository):
    code = (
        "import runpy, sys; sys.argv = ['run_all.py', '--engine', 'ray', '--runs-only']; sys.modules['ray'] = None\n"
        "runpy.run_path('run_all.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_all.py: Ray is not installed: pip install 'igkd[cluster]'\n"


@pytest.fixture
def study(tmp_path):
    """A demo study in which all runs of three notebooks but the last arm's are recorded, a minute each."""
    study = Study("demo", root=tmp_path, device="cpu", log=lambda line: None, jobs=1)
    for item in study.planned(["00", "01", "03"]):
        if item != study.planned(["00"])[-1]:
            outcome = {"accuracy": 0.9, "n_train": study.images.n_train}
            study.store.add(Record(item.run, outcome, {"seconds": 60.0}), item.experiment)
    return study


def test_the_plan_counts_and_reckons_from_recorded_speed(study, capsys):
    RUN_ALL["plan"](study, ["00"])
    words = "arms 11 of 12 recorded, about 1.0 min on one core or GPU".split()
    assert capsys.readouterr().out.splitlines()[-1].split() == words
    for path in study.store.root.glob("*/*.json"):
        path.unlink()
    RUN_ALL["plan"](study, ["00"])
    assert "12 of unknown length" in capsys.readouterr().out  # nothing with this network is recorded


def test_force_leaves_the_teacher_to_its_own_notebook(study):
    teacher = study.teacher_runs()[0].run.key
    RUN_ALL["forget"](study, ["03"])
    assert study.store.keys() == {teacher}
    RUN_ALL["forget"](study, ["01"])
    assert study.store.keys() == set()


def test_force_forgets_what_its_notebooks_measured_and_nothing_else(tmp_path):
    study = Study("demo", root=tmp_path, device="cpu", log=lambda line: None)
    measured = study.figures.parent / "latency-demo.json"
    measured.parent.mkdir(parents=True)
    measured.write_text("{}")
    RUN_ALL["forget"](study, ["02", "08"])
    assert measured.exists()
    RUN_ALL["forget"](study, ["07"])
    assert not measured.exists()


def test_runs_only_stops_at_its_budget(repository):
    done = run_all(repository, "--runs-only", "--only", "03", "--budget", "0s")
    assert done.returncode == 0, done.stderr
    assert "runs are left for another time" in done.stdout
    assert done.stdout.endswith(" to do\n")


def test_a_run_trained_again_is_equal_and_a_changed_record_is_noticed(tmp_path, capsys):
    study = Study("demo", device="cpu", root=tmp_path, log=lambda line: None, jobs=1)
    (item, *_) = [item for item in experiments.recipes(study.plan) if item.run.recipe.num_epochs < 100]
    study.planned = lambda numbers: [item]
    study.ensure([item])
    assert RUN_ALL["verify"](study, ["03"], 1) == 0
    assert "equal bit for bit" in capsys.readouterr().out
    kept = study.store.find(item.run.key)
    changed = kept.outcome | {"weights": "0" * 16, "accuracy": kept.outcome["accuracy"] + 0.01}
    study.store.add(replace(kept, outcome=changed), item.experiment)
    assert RUN_ALL["verify"](study, ["03"], 1) == 1
    assert "-1.00%" in capsys.readouterr().out
    study.store.forget(item.run.key)
    with pytest.raises(InputError, match="no run of the demo profile is recorded"):
        RUN_ALL["verify"](study, ["03"], 1)


def test_values_of_parameters(tmp_path):
    path = write_notebook(tmp_path / "00_x.ipynb", "X")
    values = RUN_ALL["checked"](path, {"n_steps": "16", "lr": "1e-3", "data": "123"})
    assert values == {"n_steps": 16, "lr": 0.001, "data": "123"}


def test_published_notebooks_have_outputs_and_no_trace_of_the_execution(tmp_path):
    small_repository(tmp_path)
    path = write_notebook(tmp_path / "notebooks" / "00_start.ipynb", "Start", "1 + 1")
    source = nbformat.read(path, 4)
    copy = tmp_path / "build" / "demo" / "notebooks" / path.name
    done = nbformat.read(path, 4)
    for number, cell in enumerate(done.cells):
        cell.metadata["papermill"] = {"duration": 1.0}
        if cell.cell_type == "code":
            cell.execution_count = number + 7
    done.cells[-1].outputs = [new_output("execute_result", {"text/plain": "2"}, execution_count=9)]
    done.cells.insert(2, new_code_cell("data = '/somewhere/else'", metadata={"tags": ["injected-parameters"]}))
    (tmp_path / "build" / "demo" / "figures").mkdir(parents=True)
    copy.parent.mkdir()
    nbformat.write(done, copy)
    assert run_all(tmp_path, "--publish").returncode == 0
    published = nbformat.read(path, 4)
    assert published.metadata.pop("profile") == "demo"
    assert published.cells[-1].outputs[0].data == {"text/plain": "2"}
    assert published.cells[-1].outputs[0].execution_count == published.cells[-1].execution_count == 2
    for cell in published.cells[1:]:
        cell.execution_count, cell.outputs = None, []
    assert published == source

    done.cells[-1].execution_count = None  # it stopped before its end
    nbformat.write(done, copy)
    before = path.read_bytes()
    refused = run_all(tmp_path, "--publish")
    assert refused.returncode == 2 and "not executed to its end" in refused.stderr
    assert path.read_bytes() == before
