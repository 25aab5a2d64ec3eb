"""What a GPU asks of the training, checked without one.

A step that is captured and replayed must not read a value back nor bring one to the device. On PyTorch's device
without memory (``meta``) either fails. FX notes operations and calls them again with the tensors that they had, as a
CUDA graph does, so what a capture would freeze (a learning rate, a batch, a momentum that is not yet there) is frozen
by it, too.
"""

import math
import multiprocessing
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from igkd import device, training
from igkd.attribution import _integrals
from igkd.device import Compute, Replayed, pick_compute
from igkd.errors import InputError
from igkd.methods import Method
from igkd.models import Architecture
from igkd.runs import Store
from igkd.signals import Signals
from small import ALL, RECIPE, small_images, small_run, small_signals, small_teacher

IMAGES = small_images()
TEACHER = Architecture(0, 0.25, normalize=True)
ONE_RATE = replace(RECIPE, num_epochs=4, one_cycle=False)


class WithoutMemory(Compute):
    """The device ``meta``, for which autocast does not exist."""

    def autocast(self):
        return nullcontext()


class StaysThere(TorchDispatchMode):
    """Every operation takes tensors of the device alone."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.device.type == "meta" for tensor in tensors), f"{func} takes a tensor from elsewhere"
        return func(*args, **(kwargs or {}))


def step_without_memory(method=replace(ALL, cutout=6), variant="described", architecture=Architecture(17)):
    """Two steps with gradient norms on a device that has no values; the number of batches of the epoch."""
    run, signals = small_run(IMAGES, method, architecture=architecture), Signals()
    if run.signals is not None:
        run = replace(run, signals=replace(run.signals, variant=variant))
        signals = Signals(teacher=small_teacher(IMAGES).model) if variant == "online" else small_signals(IMAGES)
    compute = WithoutMemory("meta", bfloat16=False)
    model = compute.prepare(architecture.build(4, IMAGES.mean_std))
    loop = training._Loop(run, IMAGES, signals, torch.arange(40), compute, model, torch.optim.SGD(model.parameters()))
    batches = loop.batches(epoch=0)
    for rows, drawn in (batches[0], batches[-1]):
        with StaysThere():
            terms, norms = loop.update(rows, drawn, measured=True)
        assert norms.keys() == terms.keys() - {"loss", "train_accuracy"}
    return len(batches)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"variant": "released"},
        {"method": Method(alpha=0.5), "variant": "online"},
        {"method": Method(), "architecture": TEACHER},
    ],
    ids=["all ingredients", "released", "online", "teacher"],
)
def test_a_step_neither_reads_a_value_back_nor_brings_one_to_the_device(settings):
    assert step_without_memory(**settings) == 5


@pytest.mark.parametrize(
    "careless",
    [
        lambda images, drawn, side: images / images.max().item(),
        lambda images, drawn, side: images if drawn.mirror.any() else -images,
        lambda images, drawn, side: images - images[drawn.overlay].mean(),
        lambda images, drawn, side: images[torch.arange(len(images))],
        lambda images, drawn, side: images * torch.ones(16).to(images.device),
    ],
    ids=["item", "if", "boolean mask", "index on the CPU", "constant from the CPU"],
)
def test_a_step_that_did_would_be_found(careless, monkeypatch):
    monkeypatch.setattr(training, "cutout", careless)
    with pytest.raises((RuntimeError, AssertionError)):
        step_without_memory()


@pytest.mark.parametrize("batch_size", [4, 64], ids=["steps of one image", "whole images"])
def test_integration_over_the_paths_does_not_either(batch_size):
    model = Architecture(17).build(4, None).to("meta").eval()
    images = torch.empty(5, 3, 16, 16, device="meta")
    target, nodes = torch.zeros(5, dtype=torch.int64, device="meta"), torch.empty(8, device="meta")
    with StaysThere():
        parts = list(_integrals(model, images, torch.zeros_like(images[:1]), target, nodes, nodes, batch_size))
    assert sum(len(attributions) for _, attributions in parts) == 5


def by_fx(call):
    """Capture by FX, which runs the step once in order to see it: the first replay has then been done."""
    done = []

    def traced():
        done.append(call())
        return done[0]

    graph = make_fx(traced)()
    return lambda: done.pop() if done else graph()


def fails(call):
    raise RuntimeError("operation not permitted when stream is capturing\nand a trace")


class ByFX(Compute):
    capture = staticmethod(by_fx)


class Failing(Compute):
    capture = staticmethod(fails)


class Uncaptured(Compute):
    capture = None


def trained(run, folder, kind=Compute, log=lambda line: None, device="cpu"):
    store = Store(folder / "records", folder / "build", folder / "weights")
    compute = kind(device, bfloat16=False)
    return training.train(run, IMAGES, store, compute, small_signals(IMAGES) if run.signals else Signals(), log=log)


every_kind_of_run = pytest.mark.parametrize(
    "run",
    [
        small_run(IMAGES, ALL, ONE_RATE),
        small_run(IMAGES, ALL, replace(ONE_RATE, one_cycle=True)),
        small_run(IMAGES, ALL, replace(ONE_RATE, optimizer="adam", lr=1e-3)),
        small_run(IMAGES, ALL, replace(ONE_RATE, optimizer="orthogonal_sgd", lr=1e-3)),
        small_run(IMAGES, recipe=replace(ONE_RATE, batch_size=40)),
        small_run(IMAGES, architecture=TEACHER, recipe=replace(ONE_RATE, num_epochs=1)),
    ],
    ids=["all ingredients", "one cycle", "adam", "orthogonal", "one step an epoch", "dropout"],
)


@every_kind_of_run
def test_a_replayed_training_is_the_plain_one(run, tmp_path):
    plain = trained(run, tmp_path / "plain")
    replayed = trained(run, tmp_path / "replayed", ByFX)
    assert replayed.provenance["machine"]["replayed"] and "replayed" not in plain.provenance["machine"]
    # a captured step takes its rate in float32
    assert replayed.outcome["loss"] == pytest.approx(plain.outcome["loss"], rel=1e-4)
    for one, other in zip(replayed.outcome["history"], plain.outcome["history"], strict=True):
        norms = one.pop("gradient_norms", {}), other.pop("gradient_norms", {})
        assert one == pytest.approx(other, rel=1e-4) and norms[0] == pytest.approx(norms[1], rel=1e-3)


class Stop(Exception):
    """Ends a training from outside."""


@pytest.mark.parametrize("then", [ByFX, Compute])
def test_a_replayed_training_that_was_interrupted_goes_on(then, tmp_path, monkeypatch):
    def stop_in_third(line):
        if line.startswith("epoch 3/"):
            raise Stop

    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0)
    run, lines = small_run(IMAGES, ALL, replace(ONE_RATE, one_cycle=True)), []
    whole = trained(run, tmp_path / "whole", ByFX)
    with pytest.raises(Stop):
        trained(run, tmp_path / "parts", ByFX, stop_in_third)
    parts = trained(run, tmp_path / "parts", then, lines.append)
    assert lines[0] == "goes on after epoch 2"
    assert parts.outcome["loss"] == pytest.approx(whole.outcome["loss"], rel=1e-4)


def test_a_step_that_cannot_be_captured_is_run_plainly(tmp_path):
    run, lines = small_run(IMAGES, ALL, replace(ONE_RATE, optimizer="adam", lr=1e-3)), []
    record = trained(run, tmp_path / "failing", Failing, lines.append)
    assert record.outcome == trained(run, tmp_path / "plain").outcome
    said = [line for line in lines if not line.startswith("epoch")]
    assert len(said) == 2 and all("(operation not permitted when stream is capturing)" in line for line in said)
    assert not record.provenance["machine"]["replayed"]


def test_a_replay_takes_the_batch_and_the_rate_of_its_call():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)

    def step(target):
        optimizer.zero_grad()
        loss = -(weight * target).sum()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    repeated = Replayed(step, optimizer, by_fx, print)
    expected = torch.zeros(2)
    for number in range(1, 8):
        target, rate = torch.tensor([1.0, number]), 2.0**-number
        optimizer.param_groups[0]["lr"] = rate
        loss = repeated(target)["loss"]
        assert math.isclose(float(loss), -float((expected * target).sum()), rel_tol=1e-6, abs_tol=1e-6)
        expected += rate * target
        torch.testing.assert_close(weight.detach(), expected)
        assert optimizer.param_groups[0]["lr"] == rate
    assert repeated.is_replayed


@pytest.mark.parametrize("device", ["cpu:foo", "cpu:0", f"cuda:{torch.cuda.device_count()}", "cuda:-1", "gpu"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match=f"device '{device}' is not available here; choose one of: auto, .*cpu"):
        pick_compute(device)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@on_a_gpu
@every_kind_of_run
def test_on_a_gpu_a_replayed_training_is_the_plain_one(run, tmp_path):
    plain = trained(run, tmp_path / "plain", Uncaptured, device="cuda")
    replayed = trained(run, tmp_path / "replayed", device="cuda")
    assert replayed.provenance["machine"]["replayed"]
    # Sums on a GPU are not always taken in the same order.
    for one, other in zip(replayed.outcome["history"], plain.outcome["history"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)


@on_a_gpu
def test_on_a_gpu_each_can_be_named():
    assert [pick_compute(name).device for name in ("cuda", "cuda:0")] == ["cuda", "cuda:0"]


def train_carelessly(folder):
    """In a process of its own, because a capture that failed can leave PyTorch unable to make another."""
    training.cutout = lambda images, drawn, side: images / images.max().item()
    run, lines = small_run(IMAGES, Method(cutout=6), ONE_RATE), []
    record = trained(run, folder, log=lines.append, device="cuda")
    assert not record.provenance["machine"]["replayed"] and math.isfinite(record.outcome["loss"])
    assert len([line for line in lines if "cannot be captured" in line]) == 1


@on_a_gpu
def test_on_a_gpu_a_step_that_reads_a_value_back_is_run_plainly(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=train_carelessly, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_record_tells_generations_of_a_processor_apart(tmp_path, monkeypatch):
    """As Linux lists a Cascade Lake, whose family and model a Skylake shares."""
    listed = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Xeon: a name\nstepping\t: 7\n\n"
    (tmp_path / "cpuinfo").write_text(listed + listed.replace(": 0", ": 1"))
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    about = Compute("cpu", False).describe()
    assert (about["name"], about["generation"]) == ("Xeon: a name", "cpu family 6, model 85, stepping 7")
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "none")  # elsewhere than on Linux
    about = Compute("cpu", False).describe()
    assert about["name"] and "generation" not in about
