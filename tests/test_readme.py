"""README.md and docs/: the table of the claims is that of the records, the example runs, links and commands hold."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from igkd.study import Study
from igkd.report import renewed

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


def test_the_claims_are_those_of_the_records():
    assert renewed(TEXT, Study("paper", device="cpu", log=lambda line: None)) == TEXT, "run: python -m igkd readme"


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_pictures_and_links_are_there(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_the_library_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(example, names)
    assert names["loss"].item() > 0
    assert not names["soft"].requires_grad and not names["teacher"].training
    assert all(parameter.grad is not None for parameter in names["student"].parameters())
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())


def test_readme_is_short():
    assert len(TEXT.splitlines()) <= 150 and len(re.findall(r"[A-Za-z0-9][^\s|]*", TEXT)) <= 1200


# Commands that train or need the images are not run: their options are read, and --help ends the call.
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command):
    words = shlex.split(command)
    if words[0] == "make":
        if not shutil.which("make"):
            pytest.skip("no make here")
        words.insert(1, "-n")
    else:
        assert words[0] == "python"
        known = subprocess.run(
            [sys.executable, *words[1 : 4 if "-m" in words else 2], "--help"], cwd=ROOT, capture_output=True
        )
        assert {word for word in words[1:] if word.startswith("--")} <= set(
            re.findall(r"--[\w-]+", known.stdout.decode())
        )
        words = [sys.executable, *words[1:], "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
