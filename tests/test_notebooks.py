"""The notebooks are clean, and the demo profile executes all of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from igkd.experiments import NOTEBOOKS as EXPERIMENTS

ROOT = Path(__file__).resolve().parent.parent
NEEDS_IMAGES = "needs-images"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def outputs(notebook):
    return [shown for cell in notebook.cells if cell.cell_type == "code" for shown in cell.outputs]


def test_there_is_a_notebook_for_each_part_that_is_done():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(9)] == list(EXPERIMENTS)


def test_it_is_valid_and_has_one_parameters_cell(notebook):
    nbformat.validate(notebook)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert 'profile = "demo"' in tagged[0].source


def test_it_carries_no_traces_of_its_execution(notebook):
    assert not {"widgets", "papermill"} & set(notebook.metadata)
    assert all(not {"papermill", "execution"} & set(cell.metadata) for cell in notebook.cells)


def test_it_has_the_sections_that_readers_expect(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    assert re.match(r"\d+ · ", headings[0])
    assert {"Summary", "Exercises", "Evidence"} <= set(headings)
    assert "Change this" in "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_it_defines_no_class_and_no_loop_over_epochs(notebook):
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not re.search(r"^class |for epoch in|\.backward\(|tqdm", code, re.MULTILINE)


def test_cells_that_use_pixels_can_be_skipped(notebook):
    """So that the laptop and paper profiles are redrawn from records where CIFAR-10 is not."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and re.search(
            r"(train|test)_(images|labels)\b|ig_maps\(|study\.signals\(", cell.source
        ):
            assert NEEDS_IMAGES in cell.metadata.get("tags", ()), cell.source


def test_its_outputs_are_fit_to_be_read(notebook):
    for shown in outputs(notebook):
        assert shown.output_type != "error"
        assert shown.get("name") != "stderr", shown.text
        assert "application/vnd.jupyter.widget-view+json" not in shown.get("data", {})
    # A path of the machine on which it ran would tell a reader nothing.
    assert not re.search(r"/(home|root|Users|tmp)/", json.dumps([dict(shown) for shown in outputs(notebook)]))


@pytest.fixture(scope="module")
def demo():
    """`python run_all.py`, twice, as a reader would; what is already trained here is not trained again."""
    command = [sys.executable, "run_all.py"]
    return [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(2)]


def test_the_demo_executes_every_notebook(demo):
    first = demo[0]
    assert first.returncode == 0, first.stderr[-2000:]
    for path in NOTEBOOKS:
        executed = nbformat.read(ROOT / "build" / "demo" / "notebooks" / path.name, as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source)
        assert not [shown for shown in outputs(executed) if shown.output_type == "error"]
        assert [shown for shown in outputs(executed) if "image/png" in shown.get("data", {})]


def test_nothing_is_trained_a_second_time(demo):
    second = demo[1].stdout
    assert demo[1].returncode == 0, demo[1].stderr[-2000:]
    assert "\n0 runs trained, " in second


def test_figures_name_the_records_they_were_drawn_from(demo):
    from PIL import Image

    figures = sorted((ROOT / "build" / "demo" / "figures").glob("*.png"))
    assert len(figures) >= 8
    for path in figures:
        with Image.open(path) as picture:
            stamp = picture.text["Description"]
        expected = r"profile demo · digits, .* runs? · records [0-9a-f]{12}"
        if path.stem in ("monte-carlo-published", "imagenet-published"):
            expected = "^published values only"
        if path.stem == "idea":  # an illustration
            expected = "^profile demo · digits, 1 training image; teacher trained on"
        if path.stem == "corruptions":  # of images alone
            expected = r"^profile demo · digits, \d+ test images$"
        if path.stem == "latency":  # measured while it was drawn
            expected = r"profile demo · .* rounds"
        assert re.search(expected, stamp), path.name
        assert path.with_suffix(".pdf").exists()
