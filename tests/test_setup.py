"""The files that set the project up agree with each other, and name no machine."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import igkd

ROOT = Path(__file__).parent.parent

# Written in pieces, so that this file does not match them.
HOSTS = ["pypi" + ".org", "python" + "hosted.org", "ana" + "conda.org", "pytorch" + ".org/whl", "npm" + "js."]
HOMES = [r"home/\w", r"Users/\w", "root/", "work/", "scratch/", "opt/wheels"]
# In the middle of a URL or of base64 these are no paths.
FORBIDDEN = re.compile(
    "|".join(map(re.escape, HOSTS))
    + (r"|(?<![\w.+~}-])/(?:" + "|".join(HOMES) + ")")
    + (r"|\b[A-Z]:\\{1,2}" + r"Users\b")
)


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def requirements(project):
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    return project["dependencies"] + [requirement for requirement in extras if not requirement.startswith("igkd[")]


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_the_environment_has_the_pins_of_the_package(environment, requirements):
    (by_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert sorted(by_pip) == sorted([*requirements, "-e .", "-c constraints.txt"])


def test_the_constraints_are_exact_and_allowed(requirements):
    """One version of everything that is declared, and of nothing else."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    exact = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    allowed = {canonicalize_name(each.name): each.specifier for each in map(Requirement, requirements)}
    assert exact.keys() == allowed.keys()
    assert not {name: version for name, version in exact.items() if version not in allowed[name]}


def test_the_environment_takes_a_python_that_the_package_allows(environment, project):
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    wanted = tuple(map(int, python.removeprefix("python=").split(".")))
    assert wanted >= tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))


def test_torch_and_torchvision_are_a_released_pair(requirements):
    (torch,) = [r for r in requirements if re.match(r"torch\b", r)]
    (torchvision,) = [r for r in requirements if re.match(r"torchvision\b", r)]
    torch_minor = re.fullmatch(r"torch==2\.(\d+)\.\d+", torch)
    vision_minor = re.fullmatch(r"torchvision==0\.(\d+)\.\d+", torchvision)
    # the compatibility table in torchvision's README: torch 2.0 and 0.15, 2.1 and 0.16, and so on
    assert int(vision_minor[1]) == int(torch_minor[1]) + 15


def test_every_dependency_has_a_reason(requirements):
    lines = [line.strip() for line in (ROOT / "pyproject.toml").read_text().splitlines()]
    for requirement in requirements:
        (at,) = [i for i, line in enumerate(lines) if line.startswith(f'"{requirement}"')]
        _, _, beside = lines[at].partition("#")
        assert beside.strip() or lines[at - 1].startswith("# "), f"{requirement}: say why it is needed"


def imported(paths):
    """Module -> file that imports it, of all that is neither Python's nor the project's own."""
    found = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: path.name for name in names}
    own = {"igkd", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    return {name: path for name, path in found.items() if name not in own | sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("paths", "extras", "least"),
    [
        ([ROOT / "run_all.py", *(ROOT / "igkd").glob("*.py")], ("cluster",), {"torch", "sklearn", "ray", "papermill"}),
        ((ROOT / "tests").glob("*.py"), ("cluster", "test"), {"pytest", "yaml"}),
    ],
    ids=["the program", "its tests"],
)
def test_every_package_that_is_imported_is_declared(project, paths, extras, least):
    texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    modules = imported(paths)
    assert least <= modules.keys()
    brought_by = packages_distributions()
    missing = {
        f"{name}, in {path}"
        for name, path in modules.items()
        if declared.isdisjoint(map(canonicalize_name, brought_by.get(name, [name])))
    }
    assert not missing


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"] and citation["title"] and citation["authors"]
    assert citation["version"] == igkd.__version__
    paper = citation["preferred-citation"]
    assert "arXiv:2506.14440" in [identifier["value"] for identifier in paper["identifiers"]]
    assert [author["family-names"] for author in paper["authors"]] == ["Hernandez", "Chang", "Nordling"]


@pytest.mark.parametrize("host", HOSTS)
def test_a_registry_is_noticed(host):
    assert FORBIDDEN.search(f"pip install --index-url https://{host}/simple igkd")


@pytest.mark.parametrize("start", ["", "file://", "'", "= ", "("])
@pytest.mark.parametrize("path", ["home" + "/ada/data", "Users" + "/ada", "root" + "/x", "work" + "/x"])
def test_a_path_of_one_machine_is_noticed(start, path):
    assert FORBIDDEN.search(f"{start}/{path}")


@pytest.mark.parametrize("text", ["https://a.example/" + "home/page", "~/" + "work/data", "/path/to/cifar10"])
def test_other_text_is_let_through(text):
    assert not FORBIDDEN.search(text)


def test_what_a_kill_leaves_of_a_record_is_not_committed():
    command = ["git", "check-ignore", "records/arms/.k3x_9.part"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.returncode == 0


def test_no_tracked_file_names_a_registry_or_a_machine():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    tracked = listed.stdout.split("\0")
    if "pyproject.toml" not in tracked:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, tracked):
        path = ROOT / name
        # a deleted file stays listed until the deletion is committed
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
        found += [f"{name}: {match.group()}" for match in FORBIDDEN.finditer(text)]
    assert not found
