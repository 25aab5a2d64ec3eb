from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from igkd.errors import InputError
from igkd.losses import attention_map
from igkd.methods import Method
from igkd.runs import SignalSpec
from igkd.signals import (
    as_input,
    attention_maps,
    check_alignment,
    load_maps,
    load_signals,
)
from small import ALL, COMPUTE, small_images, small_run, small_teacher

IMAGES = small_images()
TEACHER = small_teacher(IMAGES)
TAP = 2
SPEC = SignalSpec("a teacher", n_steps=4)


def load(folder, images=IMAGES, teacher=TEACHER, method=ALL, tap=TAP):
    """Signals, and what was said."""
    lines = []
    run = small_run(images, method)
    return load_signals(run, images, teacher, tap, folder, COMPUTE, lines.append), lines


def equal(first, second):
    names = ("logits", "attention", "maps")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_teacher_of_these_tests_is_right():
    assert TEACHER.accuracy == 1


def test_logits_and_attention_are_those_of_a_direct_pass_in_data_set_order(tmp_path):
    signals, _ = load(tmp_path)
    with torch.no_grad():
        for row in range(len(IMAGES.train_images)):
            logits, activation = TEACHER.model(as_input(IMAGES.train_images[row : row + 1]), TAP)
            torch.testing.assert_close(signals.logits[row], logits[0], rtol=1e-4, atol=1e-4)
            attention = attention_map(activation)[0]
            torch.testing.assert_close(signals.attention[row].float(), attention, rtol=2e-3, atol=1e-5)


def test_attention_maps_are_pictures_of_the_squared_activation():
    tap = 1
    maps = attention_maps(TEACHER.model, IMAGES.test_images, tap, COMPUTE)
    x = as_input(IMAGES.test_images)
    with torch.no_grad():
        activation = TEACHER.model.features[: tap + 1]((x - TEACHER.model.mean) / TEACHER.model.std)
    energy = (activation**2).sum(1)
    assert maps.shape == energy.shape == (len(x), *IMAGES.size)
    for picture, wanted in zip(maps, energy):
        assert torch.allclose(picture, wanted / torch.linalg.matrix_norm(wanted), atol=1e-6)


def test_maps_are_captums_on_the_same_teacher(tmp_path):
    maps = load(tmp_path)[0].maps
    x = as_input(IMAGES.train_images).contiguous()
    baseline = TEACHER.model.mean.expand(1, 3, 16, 16)
    expected = (
        IntegratedGradients(TEACHER.model)
        .attribute(x, baseline, torch.from_numpy(IMAGES.train_labels), n_steps=4, method="gausslegendre")
        .abs()
        .sum(1)
    )
    assert maps.dtype == torch.float16
    # half precision keeps 11 bits; what is small beside the largest value may differ by rounding
    torch.testing.assert_close(maps.float(), expected, rtol=2e-3, atol=1e-4 * float(expected.max()))


def test_completeness_error_is_captums_and_said_when_maps_are_computed_and_read(tmp_path):
    # From the mean colour on, an untrained network without biases is linear, so the integral is exact.
    spec = replace(SPEC, baseline="black", n_steps=2)
    x, labels = as_input(IMAGES.train_images).contiguous(), torch.from_numpy(IMAGES.train_labels)
    black = torch.zeros_like(x)
    _, delta = IntegratedGradients(TEACHER.model).attribute(
        x, black, labels, n_steps=2, method="gausslegendre", return_convergence_delta=True
    )
    with torch.no_grad():
        rise = (TEACHER.model(x) - TEACHER.model(black)).gather(1, labels[:, None])
    expected = float(delta.abs().mean() / rise.abs().mean())
    assert expected > 0.01
    line = f"IG maps of 40 images with 2 steps: completeness error {expected:.1%}"
    for said_before in (["computing the IG maps of 40 images with 2 steps"], []):
        lines = []
        found = load_maps(IMAGES, TEACHER, spec, tmp_path, COMPUTE, lines.append)
        assert found.completeness_error == pytest.approx(expected, rel=1e-3)
        assert lines == [*said_before, line]
    saliency = load_maps(IMAGES, TEACHER, replace(spec, variant="saliency"), tmp_path, COMPUTE, lines.append)
    assert saliency.completeness_error is None and lines[-1] == "computing the saliency maps of 40 images"


def test_steps_and_baseline_are_those_asked_for(tmp_path):
    maps = {
        spec: load_maps(IMAGES, TEACHER, spec, tmp_path, COMPUTE, lambda line: None).maps
        for spec in (SPEC, replace(SPEC, baseline="black"), replace(SPEC, n_steps=1))
    }
    x = as_input(IMAGES.train_images).contiguous()
    black = (
        IntegratedGradients(TEACHER.model)
        .attribute(x, torch.zeros_like(x), torch.from_numpy(IMAGES.train_labels), n_steps=4)
        .abs()
        .sum(1)
    )
    found = maps[replace(SPEC, baseline="black")].float()
    torch.testing.assert_close(found, black, rtol=2e-3, atol=1e-4 * float(black.max()))
    assert not torch.equal(maps[SPEC], maps[replace(SPEC, n_steps=1)])


def test_signals_are_computed_once(tmp_path):
    first, said = load(tmp_path)
    assert said
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again, said = load(tmp_path)
    assert said == [] and equal(first, again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_only_what_the_method_needs_is_given(tmp_path):
    signals, _ = load(tmp_path, method=Method(alpha=0.5), tap=None)
    assert signals.logits is not None and signals.attention is None and signals.maps is None
    signals, _ = load(tmp_path, method=Method(overlay_prob=0.5), tap=None)
    assert signals.logits is None and signals.attention is None and signals.maps is not None


def test_signals_of_other_images_or_another_teacher_are_not_used(tmp_path):
    first, _ = load(tmp_path)
    brighter = replace(IMAGES, train_images=IMAGES.train_images + np.uint8(1))
    for images, teacher in ((brighter, TEACHER), (IMAGES, small_teacher(IMAGES, seed=1))):
        fresh, _ = load(tmp_path / "elsewhere", images, teacher)
        beside, said = load(tmp_path, images, teacher)
        assert said and equal(beside, fresh) and not equal(beside, first)


def test_signals_of_a_teacher_of_other_classes_are_refused(tmp_path):
    relabelled = replace(IMAGES, train_labels=(IMAGES.train_labels + 1) % 4)
    with pytest.raises(InputError, match="teacher"):
        load(tmp_path, images=relabelled)


def test_shuffled_logits_are_refused():
    labels = np.arange(1000) % 10
    named = np.where(np.arange(1000) % 100 < 8, (labels + 1) % 10, labels)  # a teacher that is right on 92 %
    logits = torch.nn.functional.one_hot(torch.from_numpy(named), 10).float()
    check_alignment(logits, labels, 0.92)
    check_alignment(logits, labels, 0.99)  # its accuracy may be of other images like these
    for seed in range(20):
        shuffled = logits[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))]
        for accuracy in (0.4, 0.92):
            with pytest.raises(InputError, match="other images or another order"):
                check_alignment(shuffled, labels, accuracy)


def test_a_file_that_cannot_be_read_is_computed_again(tmp_path):
    first, _ = load(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert equal(load(tmp_path)[0], first) and equal(load(tmp_path)[0], first)


def test_asking_leaves_the_model_in_its_mode(tmp_path):
    model = TEACHER.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    signals, _ = load(tmp_path)
    attention_maps(model, IMAGES.test_images, 1, COMPUTE)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()
    assert equal(load(tmp_path / "evaluated")[0], signals)
