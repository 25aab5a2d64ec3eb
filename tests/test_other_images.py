"""Evaluations on other images: measures, corruptions, and what is kept."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from igkd import experiments, shift
from igkd.engine import Study
from igkd.errors import InputError
from igkd.imagenet import ImageNetSubset
from igkd.images import Subset
from igkd.methods import Recipe
from igkd.training import predict
from small import small_teacher


def smooth_images(n=6, size=32):
    noise = np.random.default_rng(0).normal(size=(n, size, size, 3))
    blurred = gaussian_filter(noise, (0, 3, 3, 0))
    low, high = blurred.min((1, 2, 3), keepdims=True), blurred.max((1, 2, 3), keepdims=True)
    return (20 + 200 * (blurred - low) / (high - low)).astype(np.uint8)


# Measures


@pytest.mark.parametrize("classes", [10, 8])
def test_measures_are_those_of_scikit_learn(classes):
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 500)
    answers = np.where(random.random(500) < 0.6, labels, random.integers(0, 10, 500))
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, answers), 1)
    found = shift.measures(counts)
    assert found["accuracy"] == pytest.approx((labels == answers).mean())
    assert found["kappa"] == pytest.approx(cohen_kappa_score(labels, answers))
    assert found["n_test"] == 500
    assert np.isnan(found["per_class_accuracy"]).tolist() == [False] * classes + [True] * (10 - classes)
    # scikit-learn warns about answers of classes that do not occur
    with pytest.warns(UserWarning) if classes < 10 else open(__file__):
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers))


def test_nothing_counted_is_no_accuracy():
    found = shift.measures(np.zeros((3, 3), int))
    assert found["n_test"] == 0 and np.isnan(found["accuracy"]) and np.isnan(found["balanced_accuracy"])


# Corruptions


@pytest.mark.parametrize("quality", shift.CORRUPTIONS["JPEG"])
def test_jpeg_is_as_pillow_writes_it(quality):
    images = smooth_images()
    made = shift.corrupted(images, "JPEG", quality)
    for image, found in zip(images, made, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert np.abs(np.asarray(Image.open(file)).astype(int) - found).mean() < 1


@pytest.mark.parametrize("sigma", shift.CORRUPTIONS["noise"])
def test_noise_has_the_stated_deviation_and_is_the_same_each_time(sigma):
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    state = torch.random.get_rng_state()
    made = shift.corrupted(grey, "noise", sigma)
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(made, shift.corrupted(grey, "noise", sigma))
    assert made.astype(float).std() / 255 == pytest.approx(sigma, rel=0.05)
    assert abs(made.mean() - 128) < 0.5


@pytest.mark.parametrize("sigma", shift.CORRUPTIONS["blur"])
def test_blur_is_scipys(sigma):
    images = smooth_images()
    expected = gaussian_filter(
        images.astype(float), (0, sigma, sigma, 0), mode="mirror", radius=int(np.ceil(3 * sigma))
    )
    assert np.abs(shift.corrupted(images, "blur", sigma) - expected).max() <= 1


@pytest.mark.parametrize("factor", shift.CORRUPTIONS["contrast"])
def test_contrast_shrinks_deviations_from_the_mean_grey(factor):
    images = smooth_images()
    grey = (images @ [0.299, 0.587, 0.114]).mean((1, 2))[:, None, None, None]
    expected = grey + factor * (images - grey)
    assert np.abs(shift.corrupted(images, "contrast", factor) - expected).max() <= 2


@pytest.mark.parametrize("factor", shift.CORRUPTIONS["brightness"])
def test_brightness_multiplies(factor):
    images = smooth_images()
    expected = np.minimum(images * factor, 255)
    assert np.abs(shift.corrupted(images, "brightness", factor) - expected).max() <= 1


def test_conditions_are_clean_and_each_level_once():
    made = dict(shift.conditions(smooth_images(2)))
    assert len(made) == 1 + sum(map(len, shift.CORRUPTIONS.values()))
    np.testing.assert_array_equal(made[shift.CLEAN], smooth_images(2))
    assert all(images.dtype == np.uint8 and images.shape == (2, 32, 32, 3) for images in made.values())
    with pytest.raises(InputError, match="choose one of: JPEG"):
        shift.corrupted(smooth_images(), "fog", 1)


# What is kept


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The digits, with two plain students of one epoch on few images and a teacher that is not trained for long."""
    study = Study("demo", root=tmp_path_factory.mktemp("study"), device="cpu", log=lambda line: None, jobs=1)
    study._teachers[study.plan.teacher_key] = small_teacher(study.images.take(100, 100))
    study.ensure(short_runs(study))
    return study


def short_runs(study):
    students = [item for item in experiments.arms(study.plan, ("Student",)) if item.labels["seed"] < 2]
    recipe = Recipe(1, 16, one_cycle=False, padding=2)
    return [replace(each, run=replace(each.run, subset=Subset(0.2), recipe=recipe)) for each in students]


def other_images(study, seed=0):
    rows = np.random.default_rng(seed).permutation(len(study.images.test_labels))[:90]
    return ImageNetSubset(study.images.test_images[rows], study.images.test_labels[rows], 0, f"draw {seed}", False)


def test_clean_accuracy_is_that_of_the_record(study):
    planned = short_runs(study)
    assert shift.under_corruption(study, planned) == 0
    table = shift.kept(study, planned, "robustness", shift.robustness_fingerprint(study))
    clean = table[table.condition == shift.CLEAN].set_index("key")
    for item in planned:
        recorded = study.store.find(item.run.key).outcome
        for name in ("accuracy", "balanced_accuracy", "kappa"):
            assert clean.loc[item.run.key, name] == pytest.approx(recorded[name])
    assert len(table) == 2 * (1 + sum(map(len, shift.CORRUPTIONS.values())))


def test_groups_are_all_images_and_those_the_teacher_gets_right(study):
    planned, subset = short_runs(study), other_images(study)
    shift.on_imagenet(study, planned, subset)
    right = predict(study.teacher().model, subset.images, study.compute).argmax(1).numpy() == subset.labels
    assert 0 < right.sum() < len(right)
    for item in planned:
        rows = shift.kept(study, [item], "imagenet", subset.fingerprint).set_index("condition")
        answers = predict(study.student(item.run), subset.images, study.compute).argmax(1).numpy()
        for condition, chosen in ((shift.ALL, slice(None)), (shift.TEACHER_CORRECT, right)):
            assert rows.n_test[condition] == len(subset.labels[chosen])
            assert rows.accuracy[condition] == pytest.approx((answers == subset.labels)[chosen].mean())


def test_nothing_is_evaluated_twice_or_pooled(study):
    planned, first, second = short_runs(study), other_images(study, 1), other_images(study, 2)
    shift.on_imagenet(study, planned, first)
    folder = study.store.root / "shift" / "imagenet"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    shift.on_imagenet(study, planned, first)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    shift.on_imagenet(study, planned[:1], second)
    assert len(shift.kept(study, planned, "imagenet", second.fingerprint)) == 2
    table = shift.kept(study, planned, "imagenet")
    assert table.fingerprint.nunique() == 1 and table.fingerprint[0] != second.fingerprint
    assert len(table) == 4 and shift.kept(study, planned, "imagenet-corrected").empty


def test_another_teachers_choice_does_not_count(study):
    planned, subset = short_runs(study), other_images(study, 3)
    shift.on_imagenet(study, planned, subset)
    path = study.store.root / "shift" / "imagenet" / f"{planned[0].run.key}-{subset.fingerprint}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher": "another"}))
    assert set(shift.kept(study, planned, "imagenet", subset.fingerprint).seed) == {1}
    shift.on_imagenet(study, planned, subset)
    assert set(shift.kept(study, planned, "imagenet", subset.fingerprint).seed) == {0, 1}


def test_a_damaged_file_is_named_and_a_forgotten_run_leaves_nothing(study):
    planned, subset = short_runs(study), other_images(study, 4)
    shift.on_imagenet(study, planned, subset)
    path = study.store.root / "shift" / "imagenet" / f"{planned[1].run.key}-{subset.fingerprint}.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=f"{path.name} is no kept evaluation"):
        shift.kept(study, planned, "imagenet", subset.fingerprint)
    study.store.forget(planned[1].run.key)
    assert not list(study.store.root.glob(f"shift/*/{planned[1].run.key}*"))
    assert len(shift.kept(study, planned, "imagenet", subset.fingerprint)) == 2
