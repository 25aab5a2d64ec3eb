"""run_all.py as a program in a small repository of its own, and the parts behind it."""

import json
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from igkd.notebooks import Notebook, check_parameters, execute, publish, with_outputs
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from igkd import doctor, outlook
from igkd.device import pick_compute
from igkd.engine import Study
from igkd.errors import InputError
from igkd.models import pack_weights
from igkd.runs import Record, write_atomically
from igkd.signals import needed
from igkd.training import trains_alone
from small import small_images, small_teacher

REPOSITORY = Path(__file__).resolve().parent.parent
PARAMETERS = 'profile = "demo"\ndata = ""\ndevice = "auto"\nn_steps = 8  # of the integral\nlr = 0.1'
RUN_ALL = runpy.run_path(str(REPOSITORY / "run_all.py"))

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
    nbformat.write(new_notebook(cells=cells + [new_code_cell(text) for text in code]), path)
    return Notebook(path)


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


def environment(root):
    """The caller's, with a kernel "python3" installed that is not this Python."""
    kernel = root / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_text(json.dumps({"argv": ["false"], "display_name": "another", "language": "python"}))
    without = {name: value for name, value in os.environ.items() if name not in ("IGKD_DATA", "IGKD_IMAGENET")}
    return without | {"JUPYTER_PATH": str(root / "jupyter")}


def run_all(root, *arguments, **options):
    return subprocess.run(
        [sys.executable, root / "run_all.py", *arguments],
        capture_output=True,
        text=True,
        cwd=root.parent,
        env=environment(root),
        **options,
    )


def test_executes_and_goes_on_after_a_failure(repository):
    done = run_all(repository, "--only", "0", "1", "02", "-p", "n_steps", "5")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert any(
        line.startswith("01_broken: failed") and line.endswith("ValueError: broken on purpose") for line in lines
    )
    table = [line.split() for line in lines[lines.index("") + 1 :]]
    assert table[0] == ["notebook", "seconds", "trained", "recorded", "figures", "status"]
    assert [(row[0], row[2], row[-1]) for row in table[1:4]] == [
        ("00_start", "0", "ok"),
        ("01_broken", "0", "failed"),
        ("02_trains", "1", "ok"),
    ]

    build = repository / "build" / "demo"
    first = nbformat.read(build / "notebooks" / "00_start.ipynb", 4)
    assert first.cells[-1].outputs[0].text.split("\n")[:4] == [sys.executable, str(repository), "demo", "5"]
    broken = nbformat.read(build / "notebooks" / "01_broken.ipynb", 4)
    assert [shown.ename for cell in broken.cells for shown in cell.get("outputs", ())] == ["ValueError"]
    assert len(list((build / "records" / "arms").glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "n_step", "5"], "00_start.ipynb has no parameter 'n_step'; did you mean n_steps?"),
        (["-p", "n_steps", "many"], "00_start.ipynb takes n_steps as int (by default 8), not 'many'"),
        (["--only", "17"], "there is no notebook 17; there are 00, 01, 02, 03"),
        (["-p", "profile", "laptop"], "profile is no parameter for -p; give --profile"),
        (["--only", "01", "--from", "02"], "no notebook of 01 comes from 02 on"),
        (["--verify", "0"], "--verify is 0; give 1 or more"),
        (["--budget", "9m"], "--budget goes with --runs-only"),
        (["--runs-only", "--budget", "9"], "'9' is no duration such as 90s, 9m or 1h"),
        (["--list", "--force"], "--force goes with training"),
        (["--address", "head:6379"], "--address goes with --engine ray"),
        (["--plan", "--engine", "ray"], "--engine ray goes with training"),
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["--runs-only", "--forc"], "unrecognized arguments: --forc"),  # of which --force would delete records
        (["--only", ""], "there is no notebook ''; there are 00, 01, 02, 03"),
        (["--from", ""], "there is no notebook ''; there are 00, 01, 02, 03"),
        (["--only", "00_broken"], "there is no notebook 00_broken; there are 00, 01, 02, 03"),
        (["--profile", "laptop", "--plan", "--data", "~nobody-here/x.npz"], "~nobody-here/x.npz is not there; (1) "),
    ],
)
def test_bad_usage_is_one_line_before_anything_runs(repository, arguments, message):
    marker = repository / "build" / "demo" / "notebooks" / "00_start.ipynb"
    before = marker.stat().st_mtime_ns if marker.exists() else None
    done = run_all(repository, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (marker.stat().st_mtime_ns if marker.exists() else None) == before


def test_a_notebook_has_one_digit_two_digits_or_a_name(repository):
    done = run_all(repository, "--list", "--only", "2", "01", "00_start", "03_long.ipynb", "--from", "1")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["01_broken", "02_trains", "03_long"]


def test_input_that_the_study_refuses(repository):
    done = run_all(repository, "--profile", "huge")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_all.py: no profile 'huge'; choose one of: demo, laptop, paper\n"


def small_repository(root):
    """A repository with one notebook that trains nothing itself, and its study."""
    shutil.copytree(REPOSITORY / "igkd", root / "igkd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run_all.py", root)
    write_notebook(root / "notebooks" / "00_start.ipynb", "Start here", "print('started')")
    return Study("demo", root=root, device="cpu", log=lambda line: None)


def test_a_training_that_fails_while_records_are_verified_is_one_line(tmp_path):
    study = small_repository(tmp_path)
    item = next(item for item in study.planned() if item.run.signals)
    study.store.add(Record(item.run, {"accuracy": 0.9}, {}), item.experiment)
    study.store.scratch.mkdir(parents=True, exist_ok=True)
    (study.store.scratch / "weights").write_text("a file where the folder should be")
    done = run_all(tmp_path, "--verify", "1")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("run_all.py: 1 of 1 runs failed") and "weights cannot be written" in done.stderr


def test_a_copy_that_cannot_be_written_fails_alone(tmp_path):
    small_repository(tmp_path)
    write_notebook(tmp_path / "notebooks" / "01_large.ipynb", "Large", "print('x' * 2**21)")
    copies = tmp_path / "build" / "demo" / "notebooks"
    (copies / "02_blocked.ipynb").mkdir(parents=True)
    write_notebook(tmp_path / "notebooks" / "02_blocked.ipynb", "Blocked")
    done = run_all(  # on a disk on which there is no room for the second
        tmp_path, "-p", "n_steps", "5", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    said = {line.split(":")[0]: line for line in lines if " in " in line and line[0].isdigit()}
    assert said["01_large"].startswith("01_large: failed") and "File too large" in said["01_large"]
    assert "02_blocked.ipynb" in said["02_blocked"] and "IsADirectoryError" in said["02_blocked"]
    table = [line.split() for line in lines[lines.index("") + 1 :]]
    statuses = [(row[0], row[-1]) for row in table[1:4]]
    assert statuses == [("00_start", "ok"), ("01_large", "failed"), ("02_blocked", "failed")]
    assert any(line.startswith("claims, ") for line in lines)

    # What is left of the second is not published, and the first keeps what it has.
    before = (tmp_path / "notebooks" / "01_large.ipynb").read_bytes()
    done = run_all(tmp_path, "--publish", "--only", "01")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "01_large.ipynb is not published" in done.stderr and "execute it again" in done.stderr
    assert (tmp_path / "notebooks" / "01_large.ipynb").read_bytes() == before
    shutil.rmtree(tmp_path / "build" / "demo" / "figures")
    done = run_all(tmp_path, "--publish", "--only", "00")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("run_all.py: there are no figures of the demo profile in build/; execute")


def test_what_cannot_be_written_at_the_end_is_a_line_after_the_table(tmp_path):
    small_repository(tmp_path)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "figures").write_text("in the place of a folder")
    done = run_all(tmp_path, "-p", "n_steps", "5")
    assert done.returncode == 1
    assert done.stderr.startswith("run_all.py: [Errno ") and len(done.stderr.splitlines()) == 1
    assert done.stdout.splitlines()[-2].split()[::5] == ["00_start", "ok"]


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
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env=environment(tmp_path), start_new_session=True, preexec_fn=heed_ctrl_c
        )
        # An unfinished training keeps its state from the first epoch on, so both are training.
        while process.poll() is None and len(list(study.store.scratch.glob("checkpoints/*.pt"))) < 2:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        said.seek(0)
        text = said.read()
    assert "Traceback" not in text
    go_on = "python run_all.py --profile demo --jobs 2 --runs-only --only 00"
    assert text.splitlines()[-2] == f"stopped; finished runs are kept. Go on with: {go_on}"
    assert text.splitlines()[-1].startswith("0 runs trained, 1 were recorded, ")
    for _ in range(300):
        if not group(process.pid):
            break
        time.sleep(0.1)
    assert not group(process.pid)


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


def test_ctrl_c_stops_the_kernel_and_says_how_to_go_on(repository):
    pid_file = repository / "kernel"
    process = subprocess.Popen(
        [sys.executable, repository / "run_all.py", "--from", "03", "-p", "lr", "0.2", "--force"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(repository),
        preexec_fn=heed_ctrl_c,
    )
    while process.poll() is None and not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Go on with: python run_all.py --profile demo --only 03 -p lr 0.2\n" in out
    assert "Traceback" not in out + err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_kernel_is_known_by_its_number_only_while_it_runs(tmp_path):
    wait = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.1)\nprint(os.getpid())"
    notebook, copy, kernels = write_notebook(tmp_path / "00_wait.ipynb", "Wait", wait), tmp_path / "copy.ipynb", []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(execute, notebook, copy, {}, tmp_path, kernels=kernels)
        while not kernels and not running.done():
            time.sleep(0.1)
        known = list(kernels)
        (tmp_path / "go").touch()
    assert running.result().error is None
    assert known == [int(nbformat.read(copy, 4).cells[-1].outputs[0].text)]
    assert kernels == []


def test_list_needs_neither_torch_nor_papermill(repository):
    code = (
        "import runpy, sys; sys.argv = ['run_all.py', '--list']\n"
        "try: runpy.run_path('run_all.py', run_name='__main__')\n"
        "finally: print({'torch', 'papermill', 'numpy', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert done.stdout.splitlines() == [
        "00_start   Start here",
        "01_broken  Broken",
        "02_trains  Trains",
        "03_long    Long",
        "set()",
    ]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python of its own without any package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


@pytest.mark.parametrize("command", [["--plan"], ["--runs-only"], []])
def test_without_its_packages_it_names_the_way_into_the_environment(repository, bare, command):
    done = subprocess.run([bare, repository / "run_all.py", *command], capture_output=True, text=True, cwd=repository)
    assert (done.returncode, done.stdout) == (2, "")
    advice = rf"run_all.py: [\w.]+ is missing in {bare}; run make, then source .venv/bin/activate\n"
    assert re.fullmatch(advice, done.stderr), done.stderr


def test_check_without_packages_goes_through_all_the_same(repository, bare):
    done = subprocess.run([bare, repository / "run_all.py", "--check"], capture_output=True, text=True, cwd=repository)
    assert (done.returncode, done.stderr) == (1, "")
    found = [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "]
    assert found == ["ok", *["PROBLEM"] * 4, "ok", "PROBLEM"]  # Python and the disk are as they should be


def test_check_of_an_older_python_says_so_and_no_more(repository):
    """As far as this one can pass for it: Python 3.10 has no tomllib."""
    code = (
        "import runpy, sys; sys.argv = ['run_all.py', '--check']\n"
        "sys.modules['tomllib'], sys.version_info = None, (3, 10, 14, 'final', 0)\n"
        "runpy.run_path('run_all.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert (done.returncode, done.stderr) == (1, "")
    problem, fix = done.stdout.splitlines()
    assert problem == "PROBLEM  Python: 3.10.14" and fix.endswith("fix: make an environment with Python 3.11 or newer")


def test_without_ray_its_engine_says_how_to_get_it(repository):
    code = (
        "import runpy, sys; sys.argv = ['run_all.py', '--engine', 'ray', '--runs-only']; sys.modules['ray'] = None\n"
        "runpy.run_path('run_all.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_all.py: Ray is not installed: pip install 'igkd[cluster]'\n"


NUMBERS = ["00", "01", "03"]


@pytest.fixture
def study(tmp_path):
    """A demo study of three notebooks in which this machine recorded all runs but the last arm's, at 2e-9 s a
    multiply-accumulate."""
    study = Study("demo", root=tmp_path, device="cpu", log=lambda line: None, jobs=1)
    for item in study.planned(NUMBERS):
        if item == study.planned(["00"])[-1]:
            continue
        provenance = {"machine": study.compute.describe(), "seconds": 2e-9 * study.work(item.run)}
        study.store.add(Record(item.run, {}, provenance), item.experiment)
    return study


def test_outlook_from_recorded_speed(study):
    last = study.planned(["00"])[-1].run
    found, source = outlook.outlook(study, NUMBERS)
    counts = {number: (each.done, each.missing) for number, each in found.items()}
    arms = len(study.planned(["00"])) - 1  # the teacher is notebook 01's
    assert counts == {"00": (arms - 1, 1), "01": (1, 0), "03": (len(study.planned(NUMBERS)) - arms - 1, 0)}
    assert source == f"{len(study.planned(NUMBERS)) - 1} records of this machine"
    # The missing run needs IG maps, which are not here: the teacher goes over the images once for each step.
    teacher = study.teacher_runs()[0].run
    maps = study.work(teacher) / teacher.recipe.num_epochs * study.profile.n_steps
    assert found["00"].seconds == pytest.approx(2e-9 * (study.work(last) + maps))
    study.jobs = 2  # half of the trainings in each process; the maps are computed before
    found, _ = outlook.outlook(study, NUMBERS)
    assert found["00"].seconds == pytest.approx(2e-9 * (study.work(last) / 2 + maps))
    assert found["03"].seconds == 0


def test_outlook_counts_maps_of_each_kind_once_until_they_are_there(tmp_path):
    study = Study("demo", root=tmp_path, device="cpu", log=lambda line: None, jobs=1)
    study.images = small_images()
    variants = ("described", "released", "permuted", "noise", "saliency", "smoothgrad", "gradcam")
    study.profile = replace(study.profile, n_steps=3, control_variants=variants)
    (teacher,) = study.teacher_runs()

    def give_teacher(seed):
        content = pack_weights(small_teacher(study.images, seed).model, run=teacher.run.key, accuracy="1.0")
        write_atomically(study.store.weights_path(teacher.run.key), content)

    provenance = {"machine": study.compute.describe(), "seconds": 2e-9 * study.work(teacher.run)}
    study.store.add(Record(teacher.run, {"accuracy": 1.0}, provenance), "teacher")
    give_teacher(seed=0)
    before = outlook.outlook(study, ["08"])[0]["08"]
    for run in {needed(item.run): item.run for item in study.planned(["08"]) if item.run.method.overlay_prob}.values():
        study.teacher_signals(run)
    after = outlook.outlook(study, ["08"])[0]["08"]

    written = [path.name.split("-")[0] for path in (study.store.scratch / "signals").iterdir()]
    passes = {"ig": 3, "smoothgrad": 3, "saliency": 1, "gradcam": 1}
    maps = [kind for kind in written if kind in passes]
    assert sorted(maps) == ["gradcam", "ig", "ig", "saliency", "smoothgrad"]  # "released" has IG of augmented images
    assert before.disk - after.disk == len(maps) * 2 * study.images.n_train * 16 * 16
    once = 2e-9 * study.work(teacher.run) / teacher.run.recipe.num_epochs
    assert before.seconds - after.seconds == pytest.approx(once * sum(passes[kind] for kind in maps))

    give_teacher(seed=1)  # of which there are none
    assert outlook.outlook(study, ["08"])[0]["08"] == before


def made_elsewhere(study, change):
    """The records of `study`, with what `change` makes of the machine of each, given with its number."""
    for number, record in enumerate(list(study.store.records())):
        machine = change(number, record.provenance["machine"])
        study.store.forget(record.key)
        study.store.add(replace(record, provenance=record.provenance | {"machine": machine}), "arms")


def test_records_of_another_machine_do_not_time_this_one(study):
    made_elsewhere(study, lambda number, machine: machine | {"name": "another"})
    found, source = outlook.outlook(study, ["03"])
    assert source.startswith("a few steps measured now")
    assert 0 < found["03"].seconds < 3600


@pytest.mark.skipif("generation" not in pick_compute("cpu").describe(), reason="this processor does not say it")
def test_a_processor_of_another_generation_does_not_time_this_one(study):
    def elsewhere(number, machine):
        # Every other record is an old one, which does not say it.
        return {**machine, "generation": "another"} if number % 2 else {**machine, "generation": None}

    made_elsewhere(study, elsewhere)
    assert outlook.measure_speed(study, [study.planned(["00"])[-1].run])[1].startswith("a few steps measured now")


def test_threads_matter_to_trainings_that_use_them(study):
    """The uncut network is trained with all of them, the others with one."""
    made_elsewhere(study, lambda number, machine: machine | {"threads": machine["threads"] + 1})
    cut = sum(not trains_alone(record.run) for record in study.store.records())
    assert 0 < cut < len(study.store.keys())
    source = outlook.measure_speed(study, [study.planned(["00"])[-1].run])[1]
    assert source == f"{cut} records of this machine"


def test_reasons_name_the_field(study):
    last = study.planned(["00"])[-1]
    for item in study.planned(NUMBERS):
        if item.labels != {"arm": last.labels["arm"], "seed": 0}:
            study.store.forget(item.run.key)
    assert f"arms: KD+IG, seed 2 ({last.run.key}): seed: 0 -> 2" in outlook.reasons(study, ["03"])
    before = study.profile.recipe
    study.profile = replace(study.profile, recipe=replace(before, num_epochs=before.num_epochs + 1))
    del study.plan
    (line,) = [line for line in outlook.reasons(study, ["03"]) if line.startswith("arms: KD+IG, seed 0 ")]
    assert line.endswith(f"): recipe.num_epochs: {before.num_epochs} -> {before.num_epochs + 1}")


def test_force_leaves_the_teacher_to_its_own_notebook(study):
    teacher = study.teacher_runs()[0].run.key
    RUN_ALL["forget"](study, ["03"])
    assert study.store.keys() == {teacher}
    RUN_ALL["forget"](study, ["01"])
    assert study.store.keys() == set()


def test_runs_only_stops_at_its_budget(repository):
    done = run_all(repository, "--runs-only", "--only", "03", "--budget", "0s")
    assert done.returncode == 0, done.stderr
    assert "runs are left for another time" in done.stdout
    assert " to do" in done.stdout.splitlines()[-1]


def test_force_forgets_what_its_notebooks_measured_and_nothing_else(tmp_path):
    study = Study("demo", root=tmp_path, device="cpu", log=lambda line: None)
    measured = study.figures.parent / "latency-demo.json"
    measured.parent.mkdir(parents=True)
    measured.write_text("{}")
    RUN_ALL["forget"](study, ["02", "08"])
    assert measured.exists()
    RUN_ALL["forget"](study, ["07"])
    assert not measured.exists()


def test_values_of_parameters(tmp_path):
    notebook = write_notebook(tmp_path / "00_x.ipynb", "X")
    given = {"n_steps": "16", "lr": "1", "data": "123"}
    values = check_parameters(notebook, given)
    assert values == {"n_steps": 16, "lr": 1.0, "data": "123"}
    assert [type(value) for value in values.values()] == [int, float, str]
    nbformat.write(new_notebook(cells=[new_code_cell("a = 1")]), tmp_path / "01_y.ipynb")
    with pytest.raises(InputError, match="has 0 cells tagged 'parameters'"):
        check_parameters(Notebook(tmp_path / "01_y.ipynb"), {})
    (tmp_path / "02_z.ipynb").write_text("{")
    with pytest.raises(InputError, match="02_z.ipynb cannot be read as a notebook"):
        check_parameters(Notebook(tmp_path / "02_z.ipynb"), {})


def executed(source, outputs):
    """What papermill leaves of `source`: an injected cell, timing, numbers one off."""
    copy = nbformat.from_dict(json.loads(json.dumps(source)))
    copy.metadata["papermill"] = {"duration": 3.2, "parameters": {"data": "/somewhere/else"}}
    for number, cell in enumerate(copy.cells):
        cell.metadata["papermill"] = {"duration": 1.0}
        if cell.cell_type == "code":
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01"}
            cell.execution_count = number + 7
    copy.cells[-1].outputs = outputs
    copy.cells.insert(2, new_code_cell("data = '/somewhere/else'", metadata={"tags": ["injected-parameters"]}))
    return copy


def test_published_notebook_has_outputs_and_no_trace_of_the_execution(tmp_path):
    notebook = write_notebook(tmp_path / "00_x.ipynb", "X", "1 + 1")
    source = nbformat.read(notebook.path, 4)
    result = new_output("execute_result", {"text/plain": "2"}, execution_count=9)
    nbformat.write(executed(source, [result]), tmp_path / "done.ipynb")
    publish(notebook, tmp_path / "done.ipynb", "laptop")
    published = nbformat.read(notebook.path, 4)
    assert published.metadata.pop("profile") == "laptop"
    assert published.cells[-1].outputs[0].data == {"text/plain": "2"}
    assert [cell.get("execution_count") for cell in published.cells] == [None, 1, 2]
    assert published.cells[-1].outputs[0].execution_count == 2
    for cell in published.cells[1:]:
        cell.execution_count, cell.outputs = None, []
    assert published == source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda done: done.cells[-1].update(source="1 + 2"), "edited"),
        (lambda done: done.cells[-1].update(execution_count=None), "not executed to its end"),
        (
            lambda done: done.cells[-1].update(outputs=[new_output("error", ename="E", evalue="", traceback=[])]),
            "error",
        ),
    ],
)
def test_only_a_finished_execution_of_the_same_notebook_is_published(tmp_path, change, message):
    source = nbformat.read(write_notebook(tmp_path / "00_x.ipynb", "X", "1 + 1").path, 4)
    done = executed(source, [])
    change(done)
    with pytest.raises(InputError, match=message):
        with_outputs(source, done)


def test_doctor_finds_what_is_wrong(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["numpy>=999", "no-such-package-here", "pytest"]\n')
    finding = doctor.check_packages(project)
    assert not finding.ok and finding.fix
    assert "numpy is " in finding.detail and "no-such-package-here is missing" in finding.detail
    assert "pytest" not in finding.detail
    assert not doctor.check_disk(tmp_path, minimum=1e18).ok
    assert doctor.check_disk(tmp_path, minimum=1).ok
    assert doctor.check_torch().ok
    with pytest.raises(InputError, match="--data"):
        doctor.check_data("laptop", str(tmp_path / "nowhere"))


def test_doctor_finds_a_torchvision_of_another_torch(tmp_path, monkeypatch):
    installed = tmp_path / "torchvision-0.99.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor.check_torch()
    assert not finding.ok and finding.detail.endswith(" and 0.99.0 are no pair") and "pyproject.toml" in finding.fix


def test_doctor_finds_a_kernel_that_cannot_start(tmp_path, monkeypatch):
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-first.py").write_text("import os; os.write(2, b'broken on purpose'); os._exit(1)")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    finding = doctor.check_kernel()
    assert not finding.ok and finding.detail.endswith("broken on purpose") and "ipykernel" in finding.fix
    assert len(finding.detail.splitlines()) == 1


def test_doctor_deletes_nothing_that_cannot_be_had_again(tmp_path):
    fix = doctor.check_disk(tmp_path, minimum=1e18).fix
    assert "build/signals/ can be deleted" in fix and "trained again" in fix


def test_check_reports_every_finding(repository):
    done = run_all(repository, "--check", "--profile", "laptop", "--data", "nowhere.npz")
    assert done.returncode == 1, done.stderr
    found = {line[9:].split(":")[0]: line[:7].strip() for line in done.stdout.splitlines() if line[0] != " "}
    assert found.keys() == {"Python", "packages", "torch and torchvision", "kernel", "device", "disk", "data"}
    assert found["kernel"] == "ok" and found["data"] == "PROBLEM"
    assert "fix: " in done.stdout.splitlines()[-1]


def test_durations_of_a_budget():
    assert [RUN_ALL["seconds"](text) for text in ("90s", "9m", "1.5h")] == [90, 540, 5400]
