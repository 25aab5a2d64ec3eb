"""README.md and docs/: what is generated is up to date, and every command in it works.

A command that would take minutes is not run as it stands; above `test_every_command_works` is what is run instead.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from igkd.engine import Study
from igkd.images import CIFAR10_CLASSES, load_images
from igkd.readme import documents, rendered
from igkd.runs import Store

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("path", documents(ROOT), ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(path):
    assert rendered(path.read_text(), ROOT) == path.read_text(), "run: python -m igkd readme"


@pytest.mark.parametrize("path", documents(ROOT), ids=lambda path: path.name)
def test_pictures_and_links_are_there(path):
    text = path.read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert len(targets) > 30 or path.name != "gallery.md"
    for target in targets:
        assert (path.parent / target).exists(), target


def test_the_library_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    names = {}
    exec(example, names)
    assert names["loss"].item() > 0
    assert all(parameter.grad is not None for parameter in names["student"].parameters())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository without its results, and a small file in CIFAR-10's place: digits with its names."""
    folder = tmp_path_factory.mktemp("checkout") / "igkd"
    skip = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=skip)
    digits = load_images("digits")
    enough = {"train": 2, "test": 25}  # copies, so that there are enough for every profile
    arrays = {
        f"{part}_{kind}": np.concatenate([getattr(digits, f"{part}_{kind}")] * copies)
        for part, copies in enough.items()
        for kind in ("images", "labels")
    }
    np.savez(folder / "cifar10.npz", class_names=np.array(CIFAR10_CLASSES), **arrays)
    return folder


def as_if_trained(key, folder):
    """A record of `checkout` that says its run was of what its profile takes of the images there; its key."""
    store = Store(folder / "records", folder / "build", folder / "weights")
    record = store.find(key)
    (profile,) = (
        name for name in ("laptop", "paper") if Study(name, device="cpu", root=folder).fingerprint == record.run.data
    )
    there = Study(profile, folder / "cifar10.npz", device="cpu", root=folder)
    run = replace(record.run, data=there.fingerprint)
    store.add(replace(record, run=run), "teacher")
    store.weights_path(run.key).parent.mkdir(parents=True)
    shutil.copyfile(store.find_weights(key), store.weights_path(run.key))
    return run.key


# As they stand: --list, --plan, --check, --verify-figures and evaluate. The others train or install, for minutes each,
# and are run as far as that is cheap:
# - make reproduce, make test: make -n names what they would do, and tests/test_setup.py compares what they install;
# - cut: not at all, because CIFAR-10's official files are not here; tests/test_command_line.py cuts others;
# - export: of a teacher's record that is made to fit the images here;
# - --budget 9m: with no time, so that it starts no run;
# - --verify: --plan, because of these images nothing is recorded; tests/test_verify.py trains recorded runs again;
# - --runs-only: --plan, too; tests/test_run_all.py trains so until Ctrl-C;
# - --only 02 and a whole profile: --list and --plan; tests/test_notebooks.py executes all notebooks of the demo.
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works(command, checkout):
    words = shlex.split(command)
    if words[0] == "make":
        words.insert(1, "-n")
    else:
        assert words[0] == "python"
        words[0] = sys.executable
    if "cut" in words:
        pytest.skip("the official files are not here")
    if "export" in words:
        at = words.index("--run") + 1
        words[at] = as_if_trained(words[at], checkout)
    if "9m" in words:
        words[words.index("9m")] = "0s"
    elif "--verify" in words:
        words[words.index("--verify") :] = ["--plan"]
    elif "--runs-only" in words:
        words[words.index("--runs-only")] = "--plan"
    elif "run_all.py" in words and not {"--list", "--plan", "--check", "--verify-figures"} & set(words):
        words.append("--list" if "--only" in words else "--plan")
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "evaluate" in words:
        assert re.search(r"accuracy\s+\d", done.stdout), done.stdout
