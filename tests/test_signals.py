"""Direct passes of the teacher and Captum are the references."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from igkd.images import as_input
from igkd.losses import attention_map
from igkd.models import attention_tap
from igkd.runs import SignalSpec
from igkd.signals import check_alignment, load_maps, load_signals
from small import ALL, COMPUTE, refusal, small_images, small_run, small_teacher

IMAGES = small_images()
TEACHER = small_teacher(IMAGES)
TAP = attention_tap(small_run(IMAGES, ALL).architecture.blocks_removed)
X, LABELS = as_input(IMAGES.train_images).contiguous(), torch.from_numpy(IMAGES.train_labels)


def load(folder, images=IMAGES, teacher=TEACHER):
    """Signals, and what was said."""
    lines = []
    return load_signals(small_run(images, ALL), images, teacher, folder, COMPUTE, lines.append), lines


def equal(first, second):
    names = ("logits", "attention", "maps")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_logits_and_attention_are_those_of_a_direct_pass_in_data_set_order(tmp_path):
    assert TEACHER.accuracy == 1
    signals, _ = load(tmp_path)
    with torch.no_grad():
        for row in range(len(X)):
            logits, activation = TEACHER.model(X[row : row + 1], TAP)
            torch.testing.assert_close(signals.logits[row], logits[0], rtol=1e-4, atol=1e-4)
            attention = attention_map(activation)[0]
            torch.testing.assert_close(signals.attention[row].float(), attention, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("baseline", "n_steps"), [("mean", 4), ("black", 2)])
def test_maps_and_their_completeness_error_are_captums_on_the_same_teacher(baseline, n_steps, tmp_path):
    spec, lines = SignalSpec("a teacher", n_steps=n_steps, baseline=baseline), []
    maps = load_maps(IMAGES, TEACHER, spec, tmp_path, COMPUTE, lines.append)
    start = (TEACHER.model.mean if baseline == "mean" else torch.zeros(3, 1, 1)).expand_as(X)
    expected, delta = IntegratedGradients(TEACHER.model).attribute(
        X, start, LABELS, n_steps=n_steps, method="gausslegendre", return_convergence_delta=True
    )
    expected = expected.abs().sum(1)
    assert maps.dtype == torch.float16
    # half precision keeps 11 bits; what is small beside the largest value may differ by rounding
    torch.testing.assert_close(maps.float(), expected, rtol=2e-3, atol=1e-4 * float(expected.max()))
    with torch.no_grad():
        rise = (TEACHER.model(X) - TEACHER.model(start)).gather(1, LABELS[:, None])
    error = float(delta.abs().mean() / rise.abs().mean())
    # From the mean colour on, an untrained network without biases is linear, so the integral is exact.
    assert (error > 0.01) == (baseline == "black")
    assert len(lines) == 2 and lines[1].endswith(f" {error:.1%}")


def test_signals_are_computed_once_and_again_where_a_file_cannot_be_read(tmp_path):
    first, said = load(tmp_path)
    assert said
    for _ in range(2):
        again, said = load(tmp_path)
        assert said == [] and equal(first, again)
        for path in tmp_path.iterdir():
            path.write_bytes(path.read_bytes()[:50])
        assert equal(load(tmp_path)[0], first)


def test_signals_of_other_images_or_another_teacher_are_not_used(tmp_path):
    first, _ = load(tmp_path)
    brighter = replace(IMAGES, train_images=IMAGES.train_images + np.uint8(1))
    for images, teacher in ((brighter, TEACHER), (IMAGES, small_teacher(IMAGES, seed=1))):
        fresh, _ = load(tmp_path / "elsewhere", images, teacher)
        beside, said = load(tmp_path, images, teacher)
        assert said and equal(beside, fresh) and not equal(beside, first)


def test_shuffled_logits_are_refused():
    labels = np.arange(1000) % 10
    named = np.where(np.arange(1000) % 100 < 8, (labels + 1) % 10, labels)  # a teacher that is right on 92 %
    logits = torch.nn.functional.one_hot(torch.from_numpy(named), 10).float()
    check_alignment(logits, labels, 0.99)  # its accuracy may be of other images like these
    for seed in range(20):
        shuffled = logits[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))]
        check_alignment(shuffled, labels, 0.1)  # of a teacher at chance level nothing can be said
        refusal(check_alignment, shuffled, labels, 0.4)
