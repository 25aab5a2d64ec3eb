import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from safetensors import safe_open
from safetensors.torch import save_file

from igkd import signals
from igkd.errors import InputError
from igkd.images import Subset
from igkd.losses import attention_map
from igkd.methods import Method
from igkd.runs import Record, SignalSpec
from igkd.signals import (
    Teacher,
    as_input,
    attention_maps,
    check_alignment,
    load_maps,
    load_signals,
    maps_file,
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


@pytest.mark.parametrize("variant", ["described", "smoothgrad"])
def test_maps_of_many_images_go_on_where_they_were_stopped(tmp_path, monkeypatch, variant):
    spec = replace(SPEC, variant=variant)
    monkeypatch.setattr(signals, "IMAGES_AT_ONCE", 8)
    monkeypatch.setattr(signals, "MAX_BATCH_SIZE", {"cpu": 8})
    whole = load_maps(IMAGES, TEACHER, spec, tmp_path / "whole", COMPUTE, lambda line: None)
    monkeypatch.setattr(signals, "MAPS_AT_A_TIME", 16)

    def stop(done, total):
        if done > 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_maps(IMAGES, TEACHER, spec, tmp_path / "parts", COMPUTE, lambda line: None, stop)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    again = []
    made = load_maps(
        IMAGES, TEACHER, spec, tmp_path / "parts", COMPUTE, lambda line: None, lambda *done: again.append(done)
    )
    assert again == [(40, 40)]  # of the last 8 images alone
    assert torch.equal(made.maps, whole.maps) and made.completeness_error == whole.completeness_error
    names = [[path.name for path in (tmp_path / name).iterdir()] for name in ("whole", "parts")]
    assert names[0] == names[1]  # and no parts


def test_parts_of_maps_are_of_whole_batches():
    # so that maps have the same bits whether or not they are made part by part
    for at_once in (signals.IMAGES_AT_ONCE, signals.MAX_BATCH_SIZE_ACCELERATOR, *signals.MAX_BATCH_SIZE.values()):
        assert signals.MAPS_AT_A_TIME % at_once == 0


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


def bits(size):
    """Places in a file of this size: in the header's length, in the header, and in the tensor."""
    random = np.random.default_rng(0)
    return [0, 1, 7, *range(8, 400, 23), *random.integers(400, size, 10), size - 1]


def test_a_single_bit_that_has_changed_is_noticed_said_and_mended(tmp_path):
    first, _ = load(tmp_path)
    path = next(tmp_path.glob("logits-*"))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in bits(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        again, said = load(tmp_path, method=Method(alpha=0.5), tap=None)
        # the version of the code is in the header: if it is its bit, the file looks like another version's
        faults = ("damaged", "stale") if place < header else ("damaged",)
        assert [line for line in said if path.name in line and any(fault in line for fault in faults)], place
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


def test_files_of_another_version_of_the_code_are_stale_and_replaced(tmp_path, monkeypatch):
    first, _ = load(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(signals, "SIGNALS_VERSION", signals.SIGNALS_VERSION + 1)
    again, said = load(tmp_path)
    assert {line.split()[0] for line in said if "stale" in line} == names
    assert not any("damaged" in line for line in said)
    assert equal(first, again) and {path.name for path in tmp_path.iterdir()} == names
    assert load(tmp_path)[1] == []


def test_files_that_are_older_than_versions_are_stale(tmp_path):
    first, _ = load(tmp_path)
    for path in list(tmp_path.iterdir()):
        with safe_open(path, "pt") as file:
            signal, described = file.get_tensor("signal").clone(), file.metadata()["of"]
        save_file({"signal": signal}, path, {"of": described, "sha256": hashlib.sha256(signal.numpy()).hexdigest()})
    again, said = load(tmp_path)
    assert len([line for line in said if "stale" in line]) == 3 and not any("damaged" in line for line in said)
    assert equal(first, again)


def test_names_of_files_do_not_depend_on_the_version(tmp_path):
    images = IMAGES.fingerprint
    described = f'{{"baseline": "mean", "images": "{images}", "kind": "ig", "n_steps": 4, "teacher": "abc"}}'
    digest = hashlib.sha256(described.encode()).hexdigest()
    assert maps_file(small_run(IMAGES, ALL), IMAGES, "abc", tmp_path).name == f"ig-{digest[:16]}.safetensors"


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


def naming(n, wrong):
    """Logits and labels of n images, of which the first `wrong` are named otherwise."""
    labels = np.arange(n) % 10
    named = np.where(np.arange(n) < wrong, (labels + 1) % 10, labels)
    return torch.nn.functional.one_hot(torch.from_numpy(named), 10).float(), labels


def test_a_teacher_that_is_right_on_all_may_be_wrong_on_a_few_in_bfloat16():
    for wrong in (0, 1, 3):
        check_alignment(*naming(2000, wrong), 1.0)
    with pytest.raises(InputError, match="99.8% of the labels.*100.0%"):
        check_alignment(*naming(2000, 4), 1.0)


@pytest.mark.parametrize(("n", "accuracy"), [(2000, 0.96), (2000, 0.963775), (40_000, 0.963775)])
def test_a_twentieth_of_the_images_in_another_order_is_noticed_at_the_training_accuracy(n, accuracy):
    logits, labels = naming(n, round((1 - accuracy) * n))
    check_alignment(logits, labels, accuracy)
    moved = torch.arange(n)
    moved[-n // 20 :] = moved[-n // 20 :].roll(1)
    with pytest.raises(InputError, match="another order"):
        check_alignment(logits[moved], labels, accuracy)


def test_a_sample_of_the_training_images_may_be_harder_by_chance():
    # 2,000 of 40,000 images drawn without replacement, of which the teacher is wrong on 1,449 (that is 96.3775 %)
    random = np.random.default_rng(0)
    for wrong in random.hypergeometric(1449, 40_000 - 1449, 2000, 1000):
        check_alignment(*naming(2000, wrong), 0.963775)


METADATA = {"accuracy": "0.9"}


def test_a_teacher_is_as_right_as_in_training_on_the_images_of_its_training():
    run = small_run(IMAGES)
    outcome = {"weights": TEACHER.digest, "train_accuracy": 0.97, "accuracy": 0.9}

    def accuracy(run=run, sources=(IMAGES.fingerprint,), **other):
        return Teacher.of_run(TEACHER.model, METADATA, Record(run, outcome | other, {}), sources).accuracy

    assert accuracy() == accuracy(sources=("a part", IMAGES.fingerprint)) == 0.97
    assert accuracy(replace(run, subset=Subset(1.0, seed=3))) == 0.97
    # it has not seen all of these images, or not in training, or the record is of other weights
    for subset in (Subset(0.8), Subset(validation=0.2)):
        assert accuracy(replace(run, subset=subset)) == 0.9
    assert accuracy(sources=("other images",)) == accuracy(weights="0123") == 0.9
    assert Teacher.of_run(TEACHER.model, METADATA, None, (IMAGES.fingerprint,)).accuracy == 0.9


def test_signals_of_a_teacher_of_other_classes_are_refused(tmp_path):
    relabelled = replace(IMAGES, train_labels=(IMAGES.train_labels + 1) % 4)
    with pytest.raises(InputError, match="teacher"):
        load(tmp_path, images=relabelled)
