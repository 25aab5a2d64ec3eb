"""The mapping, and each of the four forms of ImageNet images, written here as their makers write them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igkd import published as paper
from igkd.errors import InputError
from igkd.imagenet import WAYS, load_imagenet, mapping
from igkd.images import CIFAR10_CLASSES

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


def downsampled(folder: Path, synsets, per_synset=2, protocol=4) -> np.ndarray:
    """``val_data`` and ``map_clsloc.txt`` of these synsets in this order; returns the images."""
    folder.mkdir(exist_ok=True)
    images = pictures(per_synset * len(synsets))
    labels = [1 + n // per_synset for n in range(len(images))]
    # the red plane of an image first, then green and blue, each row by row
    planes = np.stack([np.concatenate([image[..., c].ravel() for c in range(3)]) for image in images])
    with (folder / "val_data").open("wb") as file:
        pickle.dump({"data": planes, "labels": labels}, file, protocol=protocol)
    lines = [f"{wnid} {n} a_name" for n, wnid in enumerate(synsets, 1)]
    (folder / "map_clsloc.txt").write_text("\n".join(lines) + "\n")
    return images


# The mapping


def test_the_mapping_gives_the_published_numbers_of_images():
    """50 validation images a synset; the counts are those that the authors' notebook printed."""
    images = (
        paper.table("imagenet_subset")
        .query("arm == 'Teacher' and metric == 'class_accuracy'")
        .set_index("class_name")
        .images
    )
    table = mapping()
    published = table[table.cifar10 != ""]
    assert (50 * published.groupby("cifar10").size()).to_dict() == images.to_dict()
    assert len(published) == 105 and table.wnid.is_unique
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


def test_images_are_shrunk_by_a_box_filter_without_a_crop(tmp_path):
    image = pictures(1, (96, 64))[0]
    (tmp_path / AIRLINER).mkdir()
    Image.fromarray(image).save(tmp_path / AIRLINER / "a.png")
    expected = image.reshape(32, 3, 32, 2, 3).mean((1, 3))
    assert np.abs(load_imagenet(tmp_path).images[0] - expected).max() <= 1


# Downsampled ImageNet


@pytest.mark.parametrize("protocol", range(6))
def test_downsampled_pickle(tmp_path, protocol):
    images = downsampled(tmp_path, (TENCH, MOVING_VAN, AIRLINER), protocol=protocol)
    for path in (tmp_path, tmp_path / "val_data"):
        loaded = load_imagenet(path)
        np.testing.assert_array_equal(loaded.images, images[2:])
        assert loaded.labels.tolist() == [AUTOMOBILE] * 2 + [AIRPLANE] * 2
        assert loaded.left_out == 2
    assert load_imagenet(tmp_path, corrected=True).labels.tolist() == [TRUCK] * 2 + [AIRPLANE] * 2


def test_downsampled_pickle_as_old_numpy_wrote_it(tmp_path):
    downsampled(tmp_path, (AIRLINER,), protocol=2)
    content = (tmp_path / "val_data").read_bytes()
    assert b"numpy._core" in content
    (tmp_path / "val_data").write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert len(load_imagenet(tmp_path).images) == 2


class _Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", (0, 2, 4, 5))
def test_code_in_a_pickle_is_not_executed(tmp_path, protocol):
    downsampled(tmp_path, (AIRLINER,))
    marker = tmp_path / "marker"
    for attack in (_Attack(os.mkdir, str(marker)), _Attack(eval, f"__import__('os').mkdir({str(marker)!r})")):
        (tmp_path / "val_data").write_bytes(pickle.dumps({"data": attack, "labels": [1]}, protocol=protocol))
        message = refusal(tmp_path)
        assert "which is no array" in message and WAYS in message
        assert not marker.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "map_clsloc.txt").unlink(), "map_clsloc.txt is not there"),
        (lambda folder: (folder / "map_clsloc.txt").write_text("n02690373 7 airliner\n"), "numbered from 1"),
        (lambda folder: (folder / "map_clsloc.txt").write_text(f"{AIRLINER} 1 airliner\n"), "goes from 1 to 2"),
        (lambda folder: (folder / "val_data").write_bytes((folder / "val_data").read_bytes()[:-99]), "cannot be read"),
        (lambda folder: (folder / "val_data").write_bytes(b"\x80\x04]."), "must hold 'data' and 'labels'"),
        (
            lambda folder: (folder / "val_data").write_bytes(
                pickle.dumps({"data": np.zeros((2, 3 * 64 * 64), np.uint8), "labels": [1, 2]})
            ),
            "(images, 3072)",
        ),
        (
            lambda folder: (folder / "val_data").write_bytes(
                pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2, 2]})
            ),
            "one whole number for each of 2 images",
        ),
    ],
)
def test_damaged_downsampled_imagenet(tmp_path, damage, message):
    downsampled(tmp_path, (AIRLINER, TENCH))
    damage(tmp_path)
    assert message in refusal(tmp_path)


# CINIC-10


def test_cinic_gives_its_imagenet_part(tmp_path):
    images = pictures(3)
    for name, file, image in (
        ("horse", "n02374451_10027.png", images[0]),
        ("airplane", "n02690373_7.png", images[1]),
        ("airplane", "cifar10-train-12.png", images[2]),
    ):
        (tmp_path / "test" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "test" / name / file)
    loaded = load_imagenet(tmp_path)
    np.testing.assert_array_equal(loaded.images, images[[1, 0]])
    assert loaded.labels.tolist() == [AIRPLANE, HORSE]
    assert loaded.left_out == 1 and not loaded.by_synset
    assert "classes, not synsets" in refusal(tmp_path, corrected=True)


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "horse").mkdir()
    (tmp_path / "horse" / "n02374451_1.png").write_bytes(b"no picture")
    assert "n02374451_1.png cannot be read" in refusal(tmp_path)


# .npz


def test_npz_with_classes_in_another_order_and_a_foreign_one(tmp_path):
    images = pictures(4)
    names = np.array(["truck", "owl", "airplane"])
    np.savez(tmp_path / "x.npz", test_images=images, test_labels=np.array([0, 1, 2, 2]), class_names=names)
    loaded = load_imagenet(tmp_path / "x.npz")
    np.testing.assert_array_equal(loaded.images, images[[0, 2, 3]])
    assert loaded.labels.tolist() == [TRUCK, AIRPLANE, AIRPLANE]
    assert loaded.left_out == 1
    assert "classes, not synsets" in refusal(tmp_path / "x.npz", corrected=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": pictures(4).astype(float)}, "uint8"),
        ({"test_images": pictures(4, (64, 64))}, "bring them to 32x32"),
        ({"test_labels": np.array([0, 1, 2, 3])}, "goes from 0 to 3"),
        ({"test_labels": np.array([0, 1])}, "one whole number for each of 4 images"),
        ({"test_labels": np.array([0, {}, 1, 1], dtype=object)}, "cannot be read"),
        ({"class_names": np.array(["owl", "bat", "elk"])}, "no image of a mapped class"),
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


# Nothing there


def test_missing_images_are_said_with_the_ways_to_get_them(tmp_path, monkeypatch):
    assert WAYS in refusal()
    assert "is not there" in refusal(tmp_path / "nowhere") and WAYS in refusal(tmp_path / "nowhere")
    assert "none of the forms known" in refusal(tmp_path)
    downsampled(tmp_path / "here", (AIRLINER,))
    monkeypatch.setenv("IGKD_IMAGENET", str(tmp_path / "here"))
    assert len(load_imagenet().images) == 2
