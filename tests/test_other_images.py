"""Evaluations on other images: ImageNet images, corruptions, measures, and what is kept."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from igkd import experiments, other_images, published
from igkd.study import Study
from igkd.errors import InputError
from igkd.images import CIFAR10_CLASSES
from igkd.runs import Recipe, Subset
from igkd.other_images import WAYS, ImageNetSubset, load_imagenet, mapping
from igkd.training import predict
from small import small_teacher


def smooth_images(n=6, size=32):
    noise = np.random.default_rng(0).normal(size=(n, size, size, 3))
    blurred = gaussian_filter(noise, (0, 3, 3, 0))
    low, high = blurred.min((1, 2, 3), keepdims=True), blurred.max((1, 2, 3), keepdims=True)
    return (20 + 200 * (blurred - low) / (high - low)).astype(np.uint8)


AIRLINER, MOVING_VAN, PICKUP, SORREL, TENCH = "n02690373", "n03796401", "n03930630", "n02389026", "n01440764"
AIRPLANE, AUTOMOBILE, HORSE, TRUCK = (
    CIFAR10_CLASSES.index(name) for name in ("airplane", "automobile", "horse", "truck")
)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch):
    monkeypatch.delenv("IGKD_IMAGENET", raising=False)


def pictures(n, size=(32, 32), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def refusal(*arguments, **named) -> str:
    """The message with which loading is refused: one line that says how to get the images."""
    with pytest.raises(InputError) as caught:
        load_imagenet(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The mapping


def test_the_mapping_gives_the_published_numbers_of_images():
    """50 validation images a synset; the counts are those that the authors' notebook printed."""
    images = (
        published.table("imagenet_subset")
        .query("arm == 'Teacher' and metric == 'class_accuracy'")
        .set_index("class_name")
        .images
    )
    table = mapping()
    counted = table[table.cifar10 != ""]
    assert (50 * counted.groupby("cifar10").size()).to_dict() == images.to_dict()
    assert len(counted) == 105 and table.wnid.is_unique
    assert table.wnid.str.fullmatch(r"n\d{8}").all()
    assert set(table.cifar10) | set(table.corrected) <= {*CIFAR10_CLASSES, ""}


def test_exactly_the_debatable_entries_differ():
    table = mapping()
    assert ((table.cifar10 != table.corrected) == (table.debatable != "")).all()
    corrected = table.set_index("wnid").corrected
    assert (corrected[MOVING_VAN], corrected[PICKUP], corrected[SORREL]) == ("truck", "", "horse")
    assert set(corrected) - {""} == set(CIFAR10_CLASSES) - {"deer"}


# ILSVRC validation folder


@pytest.fixture
def validation(tmp_path):
    for number, wnid in enumerate((AIRLINER, MOVING_VAN, PICKUP, SORREL, TENCH)):
        folder = tmp_path / "ilsvrc" / "val" / wnid
        folder.mkdir(parents=True)
        for n in range(2):
            grey = np.full((96, 64), 40 * number + n, np.uint8)
            Image.fromarray(grey).save(folder / f"ILSVRC2012_val_{n:08d}.JPEG", quality=95)  # grey, as some of them are
    return tmp_path / "ilsvrc"


def test_validation_folder_in_both_mappings(validation):
    published = load_imagenet(validation)
    assert published.labels.tolist() == [AIRPLANE] * 2 + [AUTOMOBILE] * 4
    assert published.left_out == 4  # sorrel and tench
    assert published.images.shape == (6, 32, 32, 3) and published.by_synset
    assert np.abs(published.images[2].astype(int) - 40).max() <= 2
    corrected = load_imagenet(validation / "val", corrected=True)
    assert sorted(corrected.labels) == sorted([AIRPLANE] * 2 + [TRUCK] * 2 + [HORSE] * 2)
    assert corrected.left_out == 4  # pickup and tench
    assert published.fingerprint != corrected.fingerprint
    assert "4 others left out" in str(corrected) and "corrected" in str(corrected)


def test_a_folder_of_classes_is_brought_to_one_size(tmp_path):
    image = pictures(1, (96, 64))[0]
    for name in ("horse", "airplane", "owl"):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "test" / name / "n02374451_10027.png")
    loaded = load_imagenet(tmp_path)
    assert loaded.labels.tolist() == [AIRPLANE, HORSE] and loaded.images.shape == (2, 32, 32, 3)
    assert loaded.left_out == 1 and not loaded.by_synset
    assert "no synsets" in refusal(tmp_path, corrected=True)
    Image.fromarray(image).save(tmp_path / "test" / "horse" / "cifar10-train-12.png")  # as CINIC-10 has them
    assert "copy only those of ImageNet" in refusal(tmp_path)


# .npz


def test_npz_with_classes_in_another_order_and_a_foreign_one(tmp_path):
    images = pictures(4)
    names = np.array(["truck", "owl", "airplane"])
    np.savez(tmp_path / "x.npz", test_images=images, test_labels=np.array([0, 1, 2, 2]), class_names=names)
    loaded = load_imagenet(tmp_path / "x.npz")
    np.testing.assert_array_equal(loaded.images, images[[0, 2, 3]])
    assert loaded.labels.tolist() == [TRUCK, AIRPLANE, AIRPLANE]
    assert loaded.left_out == 1
    assert "no synsets" in refusal(tmp_path / "x.npz", corrected=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": pictures(4).astype(float)}, "uint8"),
        ({"test_images": pictures(4, (64, 64))}, "32x32 pixels"),
        ({"test_labels": np.array([0, 1, 2, 3])}, "go from 0 to 3"),
        ({"test_labels": np.array([0, 1])}, "whole number for each image"),
        ({"test_labels": np.array([0, {}, 1, 1], dtype=object)}, "cannot be read"),
        ({"class_names": np.array(["owl", "bat", "elk"])}, "CIFAR-10's class names"),
    ],
)
def test_unsound_npz(tmp_path, changes, message):
    arrays = {
        "test_images": pictures(4),
        "test_labels": np.array([0, 1, 2, 2]),
        "class_names": np.array(["truck", "owl", "airplane"]),
    }
    np.savez(tmp_path / "x.npz", **(arrays | changes))
    assert message in refusal(tmp_path / "x.npz")


def test_missing_images_are_said_with_the_ways_to_get_them(tmp_path, monkeypatch):
    for said in (refusal(), refusal(tmp_path / "nowhere"), refusal(tmp_path)):
        assert WAYS in said
    arrays = {"test_images": pictures(1), "test_labels": np.array([0]), "class_names": np.array(["truck"])}
    np.savez(tmp_path / "here.npz", **arrays)
    monkeypatch.setenv("IGKD_IMAGENET", str(tmp_path / "here.npz"))
    assert len(load_imagenet().images) == 1


# Measures


@pytest.mark.parametrize("classes", [10, 8])
def test_measures_are_those_of_scikit_learn(classes):
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 500)
    answers = np.where(random.random(500) < 0.6, labels, random.integers(0, 10, 500))
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, answers), 1)
    found = other_images.measures(counts)
    assert found["accuracy"] == pytest.approx((labels == answers).mean())
    assert found["kappa"] == pytest.approx(cohen_kappa_score(labels, answers))
    assert found["n_test"] == 500
    assert np.isnan(found["per_class_accuracy"]).tolist() == [False] * classes + [True] * (10 - classes)
    # scikit-learn warns about answers of classes that do not occur
    with pytest.warns(UserWarning) if classes < 10 else open(__file__):
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers))


# Corruptions


@pytest.mark.parametrize("quality", other_images.CORRUPTIONS["JPEG"])
def test_jpeg_is_as_pillow_writes_it(quality):
    images = smooth_images()
    made = other_images.corrupted(images, "JPEG", quality)
    for image, found in zip(images, made, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        assert np.abs(np.asarray(Image.open(file)).astype(int) - found).mean() < 1


@pytest.mark.parametrize("sigma", other_images.CORRUPTIONS["noise"])
def test_noise_has_the_stated_deviation_and_is_the_same_each_time(sigma):
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    state = torch.random.get_rng_state()
    made = other_images.corrupted(grey, "noise", sigma)
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(made, other_images.corrupted(grey, "noise", sigma))
    assert made.astype(float).std() / 255 == pytest.approx(sigma, rel=0.05)
    assert abs(made.mean() - 128) < 0.5


@pytest.mark.parametrize("sigma", other_images.CORRUPTIONS["blur"])
def test_blur_is_scipys(sigma):
    images = smooth_images()
    expected = gaussian_filter(
        images.astype(float), (0, sigma, sigma, 0), mode="mirror", radius=int(np.ceil(3 * sigma))
    )
    assert np.abs(other_images.corrupted(images, "blur", sigma) - expected).max() <= 1


# What is kept


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The digits, with two plain students of one epoch on few images and a teacher that is not trained for long."""
    study = Study("demo", root=tmp_path_factory.mktemp("study"), device="cpu", log=lambda line: None, jobs=1)
    study._teachers[study.plan.teacher_key] = small_teacher(study.images.take(100, 100))
    study.ensure(short_runs(study))
    return study


def short_runs(study):
    students = [
        item for item in experiments.arms(study.plan) if item.labels["arm"] == "Student" and item.labels["seed"] < 2
    ]
    recipe = Recipe(1, 16, one_cycle=False, padding=2)
    return [replace(each, run=replace(each.run, subset=Subset(0.2), recipe=recipe)) for each in students]


def drawn_images(study, seed=0):
    rows = np.random.default_rng(seed).permutation(len(study.images.test_labels))[:90]
    return ImageNetSubset(study.images.test_images[rows], study.images.test_labels[rows], 0, f"draw {seed}", False)


def test_clean_accuracy_is_that_of_the_record(study):
    planned = short_runs(study)
    assert other_images.under_corruption(study, planned) == 0
    table = other_images.kept(study, planned, "robustness", other_images.robustness_fingerprint(study))
    clean = table[table.condition == other_images.CLEAN].set_index("key")
    for item in planned:
        recorded = study.store.find(item.run.key).outcome
        for name in ("accuracy", "balanced_accuracy", "kappa"):
            assert clean.loc[item.run.key, name] == pytest.approx(recorded[name])
    assert len(table) == 2 * (1 + sum(map(len, other_images.CORRUPTIONS.values())))


def test_groups_are_all_images_and_those_the_teacher_gets_right(study):
    planned, subset = short_runs(study), drawn_images(study)
    other_images.on_imagenet(study, planned, subset)
    right = predict(study.teacher().model, subset.images, study.compute).argmax(1).numpy() == subset.labels
    assert 0 < right.sum() < len(right)
    for item in planned:
        rows = other_images.kept(study, [item], "imagenet", subset.fingerprint).set_index("condition")
        answers = predict(study.student(item.run), subset.images, study.compute).argmax(1).numpy()
        for condition, chosen in ((other_images.ALL, slice(None)), (other_images.TEACHER_CORRECT, right)):
            assert rows.n_test[condition] == len(subset.labels[chosen])
            assert rows.accuracy[condition] == pytest.approx((answers == subset.labels)[chosen].mean())


def test_nothing_is_evaluated_twice_or_pooled(study):
    planned, first, second = short_runs(study), drawn_images(study, 1), drawn_images(study, 2)
    other_images.on_imagenet(study, planned, first)
    folder = study.store.root / "shift" / "imagenet"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    other_images.on_imagenet(study, planned, first)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other_images.on_imagenet(study, planned[:1], second)
    assert len(other_images.kept(study, planned, "imagenet", second.fingerprint)) == 2
    table = other_images.kept(study, planned, "imagenet")
    assert table.fingerprint.nunique() == 1 and table.fingerprint[0] != second.fingerprint
    assert len(table) == 4 and other_images.kept(study, planned, "imagenet-corrected").empty


def test_another_teachers_choice_does_not_count(study):
    planned, subset = short_runs(study), drawn_images(study, 3)
    other_images.on_imagenet(study, planned, subset)
    path = study.store.root / "shift" / "imagenet" / f"{planned[0].run.key}-{subset.fingerprint}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher": "another"}))
    assert set(other_images.kept(study, planned, "imagenet", subset.fingerprint).seed) == {1}
    other_images.on_imagenet(study, planned, subset)
    assert set(other_images.kept(study, planned, "imagenet", subset.fingerprint).seed) == {0, 1}


def test_a_damaged_file_is_named_and_a_forgotten_run_leaves_nothing(study):
    planned, subset = short_runs(study), drawn_images(study, 4)
    other_images.on_imagenet(study, planned, subset)
    path = study.store.root / "shift" / "imagenet" / f"{planned[1].run.key}-{subset.fingerprint}.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=f"{path.name} is no kept evaluation"):
        other_images.kept(study, planned, "imagenet", subset.fingerprint)
    study.store.forget(planned[1].run.key)
    assert not list(study.store.root.glob(f"shift/*/{planned[1].run.key}*"))
    assert len(other_images.kept(study, planned, "imagenet", subset.fingerprint)) == 2
