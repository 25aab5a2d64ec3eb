"""The notebooks are clean, and the demo profile executes all of them."""

import json
import re
import subprocess
import sys

import nbformat
import pytest
from PIL import Image

from igkd import figures, published
from igkd.experiments import NOTEBOOKS as EXPERIMENTS
from small import NOTEBOOKS, ROOT


def outputs(notebook):
    return [shown for cell in notebook.cells if cell.cell_type == "code" for shown in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_valid_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert 'profile = "demo"' in parameters.source and not {"widgets", "papermill"} & set(notebook.metadata)
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        # Cells that use pixels can be skipped, so that other profiles are redrawn where the images are not.
        pixels = re.search(r"(train|test)_(images|labels)\b|ig_maps\(|study\.signals\(", cell.source)
        assert cell.cell_type != "code" or not pixels or "needs-images" in cell.metadata.get("tags", ()), cell.source
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == [*range(1, len(counts) + 1)]  # executed from the first cell to the last
    for shown in outputs(notebook):
        assert shown.output_type != "error" and shown.get("name") != "stderr", shown
        assert "image/png" not in shown.get("data", {}) or shown.metadata["image/png"]["alt"]
    # A path of the machine on which it ran would tell a reader nothing.
    assert not re.search(r"/(home|root|Users|tmp)/", json.dumps(outputs(notebook)))


@pytest.fixture(scope="module")
def demo():
    """`python run_all.py`, as a reader would, and its trainings a second time."""
    commands = [[sys.executable, "run_all.py", *more] for more in ([], ["--runs-only"])]
    return [subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for command in commands]


def test_the_demo_executes_every_notebook_and_trains_nothing_a_second_time(demo):
    assert [path.name[:2] for path in NOTEBOOKS] == list(EXPERIMENTS)
    assert [each.returncode for each in demo] == [0, 0], demo[0].stderr[-2000:] + demo[1].stderr[-2000:]
    assert demo[1].stdout.startswith("0 runs trained, ")
    for path in NOTEBOOKS:
        executed = nbformat.read(ROOT / "build" / "demo" / "notebooks" / path.name, as_version=4)
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source)
        assert any("image/png" in shown.get("data", {}) for shown in outputs(executed))


def test_the_same_runs_draw_the_same_picture(tmp_path):
    panels = dict.fromkeys("ab", published.ablation_runs().assign(seed=0))
    for name in ("1", "2"):
        figures.shifted_arms(panels, {}).savefig(tmp_path / name)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_figures_say_what_they_were_drawn_from(demo):
    pictures = sorted((ROOT / "build" / "demo" / "figures").glob("*.png"))
    assert len(pictures) >= 8
    for path in pictures:
        with Image.open(path) as picture:
            assert re.search("profile demo · |published values only", picture.text["Description"]), path.name
        assert path.with_suffix(".pdf").exists()
        assert b"/CreationDate" not in path.with_suffix(".pdf").read_bytes()  # the same records give the same bytes
