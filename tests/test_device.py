"""Where a training is done changes its last digits and its speed, nothing else."""

from dataclasses import replace

import pytest
import torch

from igkd import device
from igkd.device import Compute, pick_compute
from igkd.errors import InputError
from igkd.training import train
from small import ALL, RECIPE, small_images, small_run, small_signals, store_in

IMAGES = small_images()


@pytest.mark.parametrize("name", ["cpu:foo", "cpu:0", f"cuda:{torch.cuda.device_count()}", "cuda:-1", "gpu"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InputError):
        pick_compute(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_on_a_gpu_a_training_is_that_of_the_processor(optimizer, tmp_path):
    assert [pick_compute(name).device for name in ("cuda", "cuda:0")] == ["cuda", "cuda:0"]
    recipe = replace(RECIPE, num_epochs=4, optimizer=optimizer, first_scale=0.5, first_share=0.5)
    losses = {}
    for name in ("cpu", "cuda"):
        store, compute = store_in(tmp_path / name), Compute(name, bfloat16=False)
        outcome = train(small_run(IMAGES, ALL, recipe), IMAGES, store, compute, small_signals(IMAGES)).outcome
        losses[name] = [epoch["loss"] for epoch in outcome["history"]]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)


def test_a_record_tells_generations_of_a_processor_apart(tmp_path, monkeypatch):
    """As Linux lists a Cascade Lake, whose family and model a Skylake shares."""
    listed = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon: a name\nstepping\t: 7\n\n"
    (tmp_path / "cpuinfo").write_text(listed + listed.replace(": 0", ": 1"))
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    about = Compute("cpu", False).describe()
    assert (about["name"], about["generation"]) == ("Xeon: a name", "cpu family 6, model 85, stepping 7")
