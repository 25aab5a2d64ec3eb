"""Kernels that are forked from one process are as separate as kernels that are started afresh."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from igkd.notebooks import Notebook, execute

LOOK = """
import json, os, sys, torch
import igkd.figures
told = {"pid": os.getpid(), "leader": os.getpgrp() == os.getpid(), "folder": os.getcwd()}
told["threads"] = torch.get_num_threads()
told |= {name: os.environ.get(name) for name in ("SET_HERE", "SET_BEFORE")}
told |= {"left behind": [hasattr(igkd.figures, "left"), "left" in os.environ]}
igkd.figures.left = os.environ["left"] = "behind"
print(json.dumps(told))
"""


def executed(path, code, **options):
    """What the last cell of a notebook printed."""
    cells = [new_code_cell("", metadata={"tags": ["parameters"]}), new_code_cell(code)]
    nbformat.write(new_notebook(cells=cells), path)
    done = execute(Notebook(path), path.with_name("done.ipynb"), {}, path.parent, **options)
    assert done.error is None
    return nbformat.read(path.with_name("done.ipynb"), 4).cells[-1].outputs


def test_each_kernel_is_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SET_BEFORE", "by the caller")
    first, second = (
        json.loads(executed(tmp_path / "00_x.ipynb", LOOK, environment=environment)[0].text)
        for environment in ({"SET_HERE": "1", "OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"})
    )
    assert first.pop("pid") != second.pop("pid") != os.getpid()
    shared = {"leader": True, "folder": str(tmp_path), "SET_BEFORE": "by the caller", "left behind": [False, False]}
    assert first == shared | {"SET_HERE": "1", "threads": 1}
    assert second == shared | {"SET_HERE": None, "threads": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux")
def test_ctrl_c_during_the_imports_ends_the_program_alone(tmp_path):
    """Ctrl-C reaches all processes of a terminal; the one that imports for the kernels says nothing about it."""
    code = "import time, igkd.kernels as k; k.prepare(); print('prepared', flush=True); time.sleep(60)"
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert started.stdout.readline() == "prepared\n"
    os.killpg(started.pid, signal.SIGINT)
    said = started.communicate()[1]
    assert said.count("Traceback") == 1 and "forkserver" not in said  # the program's own, which run_all.py catches


def test_figures_are_drawn_in_the_notebook(tmp_path):
    outputs = executed(tmp_path / "00_x.ipynb", "import matplotlib.pyplot as plt\nplt.plot([0, 1]);")
    assert ["image/png" in shown.data for shown in outputs] == [True]


CALLER = """
import sys
from pathlib import Path
from igkd.notebooks import Notebook, execute
path = Path(sys.argv[1])
execute(Notebook(path), path.with_name("done.ipynb"), {}, path.parent)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux")
def test_a_kernel_does_not_outlive_a_caller_that_was_killed(tmp_path):
    path, pid = tmp_path / "00_x.ipynb", tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    cells = [new_code_cell("", metadata={"tags": ["parameters"]}), new_code_cell(code)]
    nbformat.write(new_notebook(cells=cells), path)
    caller = subprocess.Popen([sys.executable, "-c", CALLER, path])
    while not (pid.exists() and pid.read_text()):
        assert caller.poll() is None
        time.sleep(0.1)
    caller.kill()
    caller.wait()
    for _ in range(300):
        if not os.path.exists(f"/proc/{pid.read_text()}"):
            return
        time.sleep(0.1)
    pytest.fail("the kernel is still there after half a minute")
