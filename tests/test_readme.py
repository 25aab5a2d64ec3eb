"""README.md and docs/: the table of the claims is that of the records, the example runs, links and commands hold."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from igkd.claims import renewed
from igkd.errors import MissingImages
from igkd.study import Study

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [line for line in re.sub(r" *#.*", "", SHELL).splitlines() if line]


def test_the_claims_are_those_of_the_records():
    try:
        assert renewed(TEXT, Study("paper", device="cpu", log=lambda line: None)) == TEXT, "publish the paper profile"
    except MissingImages:  # nothing is recorded yet
        assert not list((ROOT / "records").glob("*/*.json"))


def test_pictures_and_links_are_there():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)


def test_the_library_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(example, names)
    assert names["loss"].item() > 0 and not names["teacher"].training
    assert all(parameter.grad is not None for parameter in names["student"].parameters())
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())


# Commands that train or need the images are not run: their options are read, and --help ends the call.
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command):
    words = shlex.split(command)
    if words[0] == "make":
        if not shutil.which("make"):
            pytest.skip("no make here")
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    else:
        program = words[1 : 4 if "-m" in words else 2]
        known = subprocess.check_output([sys.executable, *program, "--help"], cwd=ROOT, text=True)
        given = {word for word in words[1:] if word[:2] == "--"}
        assert words[0] == "python" and given <= set(re.findall(r"--[\w-]+", known))
