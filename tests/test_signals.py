from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from igkd.errors import InputError
from igkd.losses import attention_map
from igkd.methods import Method
from igkd.runs import SignalSpec
from igkd.signals import as_input, attention_maps, attribution_maps, check_alignment, load_signals
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


def test_steps_and_baseline_are_those_asked_for(tmp_path):
    maps = {
        spec: attribution_maps(IMAGES, TEACHER, spec, tmp_path, COMPUTE, lambda line: None)
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


def bits(size):
    """Places in a file of this size: in the header's length, in the header, and in the tensor."""
    random = np.random.default_rng(0)
    return [0, 1, 7, *range(8, 400, 23), *random.integers(400, size, 10), size - 1]


def test_a_single_bit_that_has_changed_is_noticed_said_and_mended(tmp_path):
    first, _ = load(tmp_path)
    path = next(tmp_path.glob("logits-*"))
    whole = path.read_bytes()
    for place in bits(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        again, said = load(tmp_path, method=Method(alpha=0.5), tap=None)
        assert [line for line in said if "damaged" in line and path.name in line], place
        assert torch.equal(again.logits, first.logits)
        _, said = load(tmp_path, method=Method(alpha=0.5), tap=None)
        assert said == [], place  # the file is whole again


@pytest.mark.parametrize("content", [b"", b"x", bytes(8), bytes(1000)])
def test_a_file_that_is_something_else_is_computed_again(tmp_path, content):
    first, _ = load(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.write_bytes(content)
    again, said = load(tmp_path)
    assert len([line for line in said if "damaged" in line]) == 3
    assert equal(first, again)


def test_signals_of_other_images_or_another_teacher_are_not_used(tmp_path):
    first, _ = load(tmp_path)
    brighter = replace(IMAGES, train_images=IMAGES.train_images + np.uint8(1))
    for images, teacher in ((brighter, TEACHER), (IMAGES, small_teacher(IMAGES, seed=1))):
        fresh, _ = load(tmp_path / "elsewhere", images, teacher)
        beside, said = load(tmp_path, images, teacher)
        assert said and equal(beside, fresh) and not equal(beside, first)


def test_a_file_that_belongs_to_another_teacher_is_recognised_under_any_name(tmp_path):
    other = small_teacher(IMAGES, seed=1)
    load(tmp_path / "other", teacher=other)
    load(tmp_path / "here")
    mine, theirs = (next((tmp_path / name).glob("logits-*")) for name in ("here", "other"))
    mine.write_bytes(theirs.read_bytes())
    signals, said = load(tmp_path / "here")
    assert said and torch.equal(signals.logits, load(tmp_path / "fresh")[0].logits)


def test_alignment_of_logits_with_labels():
    labels = np.arange(1000) % 10
    random = np.random.default_rng(0)
    wrong = random.random(1000) < 0.08
    named = np.where(wrong, (labels + 1) % 10, labels)
    logits = torch.nn.functional.one_hot(torch.from_numpy(named), 10).float()
    check_alignment(logits, labels, teacher_accuracy=0.92)
    with pytest.raises(InputError, match="other images or another order"):
        check_alignment(logits[torch.randperm(1000, generator=torch.Generator().manual_seed(0))], labels, 0.92)
    # a fifth of the images in another order is too much as well
    moved = torch.arange(1000)
    moved[:200] = moved[:200].roll(1)
    with pytest.raises(InputError):
        check_alignment(logits[moved], labels, 0.92)


def test_signals_of_a_teacher_of_other_classes_are_refused(tmp_path):
    relabelled = replace(IMAGES, train_labels=(IMAGES.train_labels + 1) % 4)
    with pytest.raises(InputError, match="teacher"):
        load(tmp_path, images=relabelled)
