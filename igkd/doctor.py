"""Whether this environment can run the study: each finding with what to do about it."""

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from igkd.errors import InputError, first_line
from igkd.notebooks import Notebook, execute

REPOSITORY = Path(__file__).resolve().parent.parent
MINIMUM_DISK = 1e9


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes
    ----------
    name : str
    ok : bool
    detail : str
        What was found.
    fix : str
        How to mend it; empty if `ok`.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""


def check(profile: str = "demo", data: str | None = None, device: str = "auto") -> Iterator[Finding]:
    """Check Python, packages, the torch/torchvision pair, kernel, device, disk and the profile's data, in turn."""
    checks: dict[str, Callable[[], Finding]] = {
        "packages": check_packages,
        "torch and torchvision": check_torch,
        "kernel": check_kernel,
        "device": lambda: check_device(device),
        "disk": check_disk,
        "data": lambda: check_data(profile, data),
    }
    python = check_python()
    yield python
    if not python.ok:
        return  # what an older one lacks says nothing about the rest
    for name, one in checks.items():
        try:
            yield one()
        except InputError as error:
            yield Finding(name, False, f"the {profile} profile cannot use it as it is", str(error))
        except Exception as error:  # a broken installation raises anything, and the other checks should still be made
            yield Finding(name, False, f"{type(error).__name__}: {error}", f"install igkd again ({_INSTALL})")


def check_python() -> Finding:
    """Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 11):
        return Finding("Python", True, f"{found}, {sys.executable}")
    return Finding("Python", False, found, "make an environment with Python 3.11 or newer")


def check_packages(pyproject: Path = REPOSITORY / "pyproject.toml") -> Finding:
    """Every package that pyproject.toml asks for is here in a version that it allows."""
    import tomllib  # here, because Python 3.10, which check_python is to refuse, has none

    from packaging.requirements import Requirement

    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    wrong = []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                wrong.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    if wrong:
        return Finding("packages", False, "; ".join(wrong), _INSTALL)
    return Finding("packages", True, f"all {len(wanted)} of {pyproject.name}")


def check_torch() -> Finding:
    """torch and torchvision were built for each other."""
    import torch

    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision")}
    detail = " and ".join(versions.values())
    fix = "install the pair that pyproject.toml pins, both from the same package index"
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails where torchvision's binary does not fit torch's
    except (ImportError, RuntimeError) as error:
        return Finding("torch and torchvision", False, f"{detail} do not fit: {first_line(error)}", fix)
    minor = {name: int(version.split(".")[1]) for name, version in versions.items()}
    # Released together since torch 2.0 and torchvision 0.15.
    if minor["torchvision"] != minor["torch"] + 15:
        return Finding("torch and torchvision", False, f"{detail} are no pair", fix)
    return Finding("torch and torchvision", True, detail)


def check_kernel() -> Finding:
    """A notebook runs, and under this interpreter."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "00_check.ipynb", Path(folder) / "done.ipynb"
        cells = [
            new_code_cell("", metadata={"tags": ["parameters"]}),
            new_code_cell("import sys; print(sys.executable)"),
        ]
        nbformat.write(new_notebook(cells=cells), path)
        execution = execute(Notebook(path), output, {}, Path(folder))
        log = output.with_suffix(".log")
        if execution.error:
            said = " ".join(log.read_text(errors="replace").split())[-200:] if log.exists() else ""
            return Finding("kernel", False, f"{execution.error} {said}".strip(), f"{_INSTALL}; it brings ipykernel")
        used = nbformat.read(output, as_version=4).cells[-1].outputs[0].text.strip()
    if used != sys.executable:
        return Finding("kernel", False, f"notebooks run under {used}, not {sys.executable}", _INSTALL)
    return Finding("kernel", True, f"starts in {execution.seconds:.0f} s, with this interpreter")


def check_device(device: str) -> Finding:
    """The device is there."""
    from igkd.device import machine_name, pick_compute

    about = pick_compute(device).describe()
    detail = f"{about['device']}: {machine_name(about)}" + ", bfloat16" * about["bfloat16"]
    return Finding("device", True, detail)


def check_disk(folder: Path = REPOSITORY, minimum: float = MINIMUM_DISK) -> Finding:
    """The repository's folder can be written to and has room."""
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("disk", False, f"{folder} cannot be written to: {error.strerror}", "work in a copy of your own")
    if free < minimum:
        return Finding(
            "disk",
            False,
            detail,
            f"free {minimum / 1e9:.0f} GB; build/signals/ can be deleted, it is computed again when it is needed (the "
            "rest of build/ holds weights, unfinished trainings and records, which would have to be trained again)",
        )
    return Finding("disk", True, detail)


def check_data(profile: str, data: str | None) -> Finding:
    """The profile's images are there, or records of them."""
    from igkd.engine import Study

    study = Study(profile, data, "cpu")
    images = study.images
    if not study.has_images:
        here = f"no images; what is recorded of {images.name} ({images.fingerprint}) is drawn, nothing can be trained"
        return Finding("data", True, here)
    return Finding(
        "data",
        True,
        f"{images.name}: {len(images.train_images):,} training and {len(images.test_images):,} "
        f"test images, fingerprint {images.fingerprint}",
    )


_INSTALL = "make, or pip install -e . in this environment"
