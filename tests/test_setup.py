"""The files that set the project up agree with each other, and name no machine."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import igkd
from small import ROOT

# Written in pieces, so that this file does not match them.
HOSTS = ["pypi" + ".org", "python" + "hosted.org", "ana" + "conda.org", "pytorch" + ".org/whl", "npm" + "js."]
HOMES = [r"home/\w", r"Users/\w", "root/", "work/", "scratch/", "opt/wheels"]
# In the middle of a URL or of base64 these are no paths.
HOME = rf"(?<![\w.+~}}-])/(?:{'|'.join(HOMES)})" + r"|\b[A-Z]:\\{1,2}" + r"Users\b"
FORBIDDEN = re.compile("|".join(map(re.escape, HOSTS)) + "|" + HOME)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = PROJECT["dependencies"] + [text for text in sum(EXTRAS.values(), []) if text[:5] != "igkd["]


def test_the_environment_has_the_pins_of_the_package():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (by_pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert sorted(by_pip) == sorted([*REQUIREMENTS, "-e .", "-c constraints.txt"])


def test_the_constraints_are_exact_and_allowed():
    """One version of everything that is declared, and of nothing else."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    exact = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    allowed = {canonicalize_name(each.name): each.specifier for each in map(Requirement, REQUIREMENTS)}
    assert exact.keys() == allowed.keys()
    assert not {name: version for name, version in exact.items() if version not in allowed[name]}


@pytest.mark.parametrize(("folder", "extras"), [("igkd", ["cluster"]), ("tests", ["cluster", "test"])])
def test_every_package_that_is_imported_is_declared(folder, extras):
    paths = [ROOT / "run_all.py", *(ROOT / folder).glob("*.py")]
    texts = PROJECT["dependencies"] + [text for extra in extras for text in EXTRAS[extra]]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    modules = {name.partition(".")[0] for name in names}
    own, brought_by = {"igkd", *(path.stem for path in (ROOT / "tests").glob("*.py"))}, packages_distributions()
    for name in modules - own - sys.stdlib_module_names:
        assert not declared.isdisjoint(map(canonicalize_name, brought_by.get(name, [name]))), name


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == igkd.__version__
    assert "arXiv:2506.14440" in [each["value"] for each in citation["preferred-citation"]["identifiers"]]


def test_no_tracked_file_names_a_registry_or_a_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout of this project")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    assert "pyproject.toml" in tracked
    for path in map(ROOT.joinpath, tracked):
        # A deleted file stays listed until the deletion is committed.
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        assert not FORBIDDEN.search(text), path.name
