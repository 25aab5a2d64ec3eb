"""Evaluations on other images: ImageNet images, corruptions, measures, and what is kept."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from igkd import other_images, published
from igkd.images import CIFAR10_CLASSES
from igkd.other_images import ImageNetSubset, load_imagenet, mapping
from igkd.training import predict
from small import refusal, small_teacher
from test_study import digits

AIRLINER, MOVING_VAN, PICKUP, SORREL, TENCH = "n02690373", "n03796401", "n03930630", "n02389026", "n01440764"
AIRPLANE, AUTOMOBILE, HORSE, TRUCK = map(CIFAR10_CLASSES.index, ("airplane", "automobile", "horse", "truck"))


def pictures(n, size=(32, 32)):
    return np.random.default_rng(0).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def test_the_mapping_gives_the_published_numbers_of_images_and_only_debatable_entries_are_corrected():
    """50 validation images a synset; the counts are those that the authors' notebook printed."""
    published_counts = published.table("imagenet_subset").query("arm == 'Teacher' and metric == 'class_accuracy'")
    table = mapping().set_index("wnid")
    counted = 50 * table[table.cifar10 != ""].groupby("cifar10").size()
    assert counted.to_dict() == published_counts.set_index("class_name").images.to_dict()
    assert ((table.cifar10 != table.corrected) == (table.debatable != "")).all() and table.index.is_unique
    assert table.corrected[[MOVING_VAN, PICKUP, SORREL]].tolist() == ["truck", "", "horse"]


def test_a_validation_folder_is_read_by_the_published_mapping(tmp_path):
    for number, wnid in enumerate((AIRLINER, MOVING_VAN, PICKUP, SORREL, TENCH)):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        for n in range(2):
            grey = np.full((96, 64), 40 * number + n, np.uint8)  # grey, as some of them are
            Image.fromarray(grey).save(tmp_path / "val" / wnid / f"ILSVRC2012_val_{n:08d}.JPEG", quality=95)
    found = load_imagenet(tmp_path)
    assert found.labels.tolist() == [AIRPLANE] * 2 + [AUTOMOBILE] * 4 and found.images.shape == (6, 32, 32, 3)
    assert np.abs(found.images[2].astype(int) - 40).max() <= 2
    assert found.left_out == 4 and load_imagenet(tmp_path / "val").fingerprint == found.fingerprint


def test_a_folder_of_classes_is_brought_to_one_size_and_has_no_images_of_cifar10(tmp_path):
    image = Image.fromarray(pictures(1, (96, 64))[0])
    for name in ("horse", "airplane", "owl"):
        (tmp_path / "test" / name).mkdir(parents=True)
        image.save(tmp_path / "test" / name / "n02374451_10027.png")
    loaded = load_imagenet(tmp_path)
    assert loaded.labels.tolist() == [AIRPLANE, HORSE] and loaded.images.shape == (2, 32, 32, 3)
    assert loaded.left_out == 1
    image.save(tmp_path / "test" / "horse" / "cifar10-train-12.png")  # as CINIC-10 has them
    refusal(load_imagenet, tmp_path)


def test_npz_has_classes_in_any_order_and_must_be_there_and_sound(tmp_path, monkeypatch):
    path, names = tmp_path / "x.npz", np.array(["truck", "owl", "airplane"])
    arrays = {"test_images": pictures(4), "test_labels": np.array([0, 1, 2, 2]), "class_names": names}
    np.savez(path, **arrays)
    monkeypatch.setenv("IGKD_IMAGENET", str(path))
    loaded = load_imagenet()
    np.testing.assert_array_equal(loaded.images, pictures(4)[[0, 2, 3]])
    assert loaded.labels.tolist() == [TRUCK, AIRPLANE, AIRPLANE] and loaded.left_out == 1
    for name, other in (
        ("test_images", pictures(4, (64, 64))),
        ("test_labels", np.array([0, 1])),
        ("class_names", np.array(["owl", "bat", "elk"])),
    ):
        np.savez(path, **arrays | {name: other})
        refusal(load_imagenet)
    monkeypatch.delenv("IGKD_IMAGENET")
    for missing in (None, tmp_path / "nowhere", tmp_path):
        refusal(load_imagenet, missing)


@pytest.mark.parametrize(
    ("kind", "level"),
    [("JPEG", 75), ("JPEG", 10), ("blur", 0.5), ("blur", 1.0), ("noise", 0.08), ("contrast", 0.5), ("brightness", 1.5)],
)
def test_corruptions_are_those_of_pillow_and_scipy(kind, level):
    smooth = gaussian_filter(np.random.default_rng(0).normal(size=(6, 32, 32, 3)), (0, 3, 3, 0))
    images = (128 + 80 * smooth / np.abs(smooth).max()).astype(np.uint8)
    made = other_images.corrupted(images, kind, level).astype(float)
    if kind == "JPEG":
        for image, found in zip(images, made, strict=True):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=level)
            assert np.abs(np.asarray(Image.open(file)) - found).mean() < 1
    if kind in ("contrast", "brightness"):
        expected = [getattr(ImageEnhance, kind.title())(Image.fromarray(image)).enhance(level) for image in images]
        assert np.abs(np.stack(expected) - made).max() <= 1
    if kind == "blur":
        radius = int(np.ceil(3 * level))
        expected = gaussian_filter(images.astype(float), (0, level, level, 0), mode="mirror", radius=radius)
        assert np.abs(made - expected).max() <= 1
    if kind == "noise":
        assert (made - images).std() / 255 == pytest.approx(level, rel=0.05) and abs((made - images).mean()) < 0.5
        np.testing.assert_array_equal(made, other_images.corrupted(images, kind, level))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The digits with a teacher that is not trained for long, and two plain students of one epoch."""
    study, planned = digits(tmp_path_factory.mktemp("study"), 1, 1, 1)
    study._teachers[study.plan.teacher_key] = small_teacher(study.images.take(100, 100))
    study.ensure(planned)
    return study, planned


def drawn_images(study, seed):
    rows = np.random.default_rng(seed).permutation(study.images.n_test)[:90]
    return ImageNetSubset(study.images.test_images[rows], study.images.test_labels[rows], 0, f"draw {seed}")


def test_clean_accuracy_is_that_of_the_record(evaluated):
    study, planned = evaluated
    assert other_images.under_corruption(study, planned) == 0
    table = other_images.kept(study, planned, "robustness", other_images.robustness_fingerprint(study))
    clean = table[table.condition == other_images.CLEAN].set_index("key")
    names = ["accuracy", "balanced_accuracy", "kappa"]
    np.testing.assert_allclose(clean[names], study.table(planned)[names])
    assert len(table) == 2 * (1 + sum(map(len, other_images.CORRUPTIONS.values())))


def test_groups_are_all_images_and_those_the_teacher_gets_right(evaluated):
    study, planned = evaluated
    subset = drawn_images(study, 0)

    def answers(model):
        return predict(model, subset.images, study.compute).argmax(1).numpy()

    wrong = replace(subset, labels=(answers(study.teacher().model) + 1) % 10)
    for images in (subset, wrong):  # a teacher that is never right leaves a group without images
        other_images.on_imagenet(study, planned, images)
        right = answers(study.teacher().model) == images.labels
        for item in planned:
            rows = other_images.kept(study, [item], "imagenet", images.fingerprint).set_index("condition")
            correct = answers(study.network(item.run)) == images.labels
            assert ((rows.predictions[other_images.ALL] == images.labels) == correct).all()
            assert rows.n_test[other_images.TEACHER_CORRECT] == right.sum()
            if right.any():
                assert rows.accuracy[other_images.TEACHER_CORRECT] == pytest.approx(correct[right].mean())


def test_nothing_is_evaluated_twice_pooled_or_taken_from_another_teacher(evaluated):
    study, planned = evaluated
    first, second = drawn_images(study, 1), drawn_images(study, 2)
    paths = [study.store.root / "shift" / "imagenet" / f"{item.run.key}-{first.fingerprint}.json" for item in planned]

    def kept():
        return other_images.kept(study, planned, "imagenet", first.fingerprint)

    other_images.on_imagenet(study, planned, first)
    before = [path.stat().st_mtime_ns for path in paths]
    other_images.on_imagenet(study, planned, first)
    assert [path.stat().st_mtime_ns for path in paths] == before
    other_images.on_imagenet(study, planned[:1], second)
    table = other_images.kept(study, planned, "imagenet")
    assert len(table) == 4 and table.fingerprint.nunique() == 1 and table.fingerprint[0] != second.fingerprint
    assert other_images.kept(study, planned, "others").empty
    paths[0].write_text(json.dumps(json.loads(paths[0].read_text()) | {"teacher": "another"}))
    assert set(kept().seed) == {1}
    other_images.on_imagenet(study, planned, first)
    assert set(kept().seed) == {0, 1}
    paths[1].write_text("{}")  # damaged
    refusal(kept)
    study.store.forget(planned[1].run.key)
    assert not list(study.store.root.glob(f"shift/*/{planned[1].run.key}*"))
