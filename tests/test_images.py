"""Image sets, their subsets, and what happens when the data is not as it should be."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, ImageFolder

from igkd.errors import InputError, MissingImages
from igkd.images import CIFAR10_CLASSES, ImageSet, Subset, cut_official, load_images, train_indices, validation_indices


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No test finds data of the reader's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IGKD_DATA", raising=False)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images("digits")


def random_arrays(names=("cat", "dog", "owl"), per_class=4, size=8) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(len(names), dtype=np.uint8), per_class)
    shape = (len(labels), size, size, 3)
    return {
        "train_images": generator.integers(0, 256, shape, dtype=np.uint8),
        "train_labels": labels,
        "test_images": generator.integers(0, 256, shape, dtype=np.uint8),
        "test_labels": labels,
        "class_names": np.array(names),
    }


def refusal(data) -> str:
    """The message of the InputError with which `data` is refused."""
    with pytest.raises(InputError) as caught:
        load_images("cifar10", data)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The digits


def test_digits_are_all_of_scikit_learns_each_once(digits):
    bunch = load_digits()
    # Bilinear enlargement by two, computed by another library.
    small = torch.from_numpy(bunch.images)[:, None] * 255 / 16
    enlarged = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear").numpy()[:, 0]
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert images.shape == (1797, 16, 16, 3) and images.dtype == np.uint8
    assert (images == images[..., :1]).all()
    distance = np.abs(images[:, None, ..., 0] - enlarged[None, :50]).max((2, 3))
    nearest = distance.argmin(0)
    assert len(set(nearest)) == 50
    assert distance.min(0).max() <= 2
    assert (labels[nearest] == bunch.target[:50]).all()


# Fingerprint and constants


def test_fingerprint_is_the_documented_hash():
    seven, zero = np.full((1, 8, 8, 3), 7, np.uint8), np.zeros((1, 8, 8, 3), np.uint8)
    images = ImageSet("x", seven, np.array([1]), zero, np.array([0]), ("a", "b"), True)
    content = b"(1, 8, 8, 3)" + bytes([7]) * 192 + b"\1" + bytes(7) + b"(1, 8, 8, 3)" + bytes(192) + bytes(8)
    assert images.fingerprint == hashlib.sha256(content).hexdigest()[:16]


def test_mean_std_is_of_the_training_pixels_in_unit_range(tmp_path):
    np.savez(tmp_path / "mine.npz", **random_arrays())
    images = load_images("cifar10", tmp_path / "mine.npz")
    unit = images.train_images / 255
    mean, std = images.mean_std
    np.testing.assert_allclose(mean, unit.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, unit.std((0, 1, 2)), rtol=1e-9)


# Subsets


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=5),
    fraction=st.floats(0.2, 0.8),
    validation=st.sampled_from([0.0, 0.1, 0.25]),
    seed=st.integers(0, 2**32 - 1),
)
def test_subsets_are_stratified_disjoint_and_repeatable(counts, fraction, validation, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    subset = Subset(fraction, seed, validation)
    train, held_out = train_indices(labels, subset), validation_indices(labels, subset)
    for rows in (train, held_out):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    assert not set(train) & set(held_out)
    assert len(held_out) == round(validation * len(labels))
    assert len(train) == round(fraction * (len(labels) - len(held_out)))
    drawn = np.bincount(labels[held_out], minlength=len(counts))
    assert (np.abs(drawn - validation * np.array(counts)) <= 1.5).all()
    drawn = np.bincount(labels[train], minlength=len(counts))
    assert (np.abs(drawn - fraction * (1 - validation) * np.array(counts)) <= 2).all()
    np.testing.assert_array_equal(train, train_indices(labels.astype(np.uint8), subset))


def test_validation_is_the_same_for_every_seed_and_fraction_and_the_training_images_are_not(digits):
    labels = digits.train_labels
    drawn = ((1.0, 0), (0.5, 0), (0.5, 1), (0.2, 9))
    held_out = [validation_indices(labels, Subset(fraction, seed, 0.1)) for fraction, seed in drawn]
    assert all((rows == held_out[0]).all() for rows in held_out) and len(held_out[0]) == 135
    first, second = (train_indices(labels, Subset(0.5, seed, 0.1)) for seed in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize("values", [(0.1,), (0.999,), (1, 0, 0.1), (1, 0, 0.95)])
def test_a_subset_that_cannot_have_every_class_is_refused(values):
    subset = Subset(*values)
    with pytest.raises(InputError):
        train_indices(np.arange(20) % 5, subset)


def test_take_is_stratified_and_keeps_each_image_with_its_label(digits):
    small = digits.take(200, 100)
    assert small.train_images.shape == (200, 16, 16, 3) and small.test_images.shape == (100, 16, 16, 3)
    assert (np.abs(np.bincount(small.test_labels) - np.bincount(digits.test_labels) * 100 / 450) <= 1).all()
    whole, part = (
        {(row.tobytes(), label) for row, label in zip(images.train_images, images.train_labels, strict=True)}
        for images in (digits, small)
    )
    assert part < whole
    assert small.fingerprint != digits.fingerprint
    with pytest.raises(InputError, match="fewer than the 2,000 and 100"):
        digits.take(2000, 100)


def test_the_cut_keeps_the_order_of_the_training_images_and_leaves_out_the_test_images(digits, tmp_path):
    np.savez(tmp_path / "cut.npz", **cut_official(digits, 1000))
    cut = load_images("cifar10", tmp_path / "cut.npz")
    for part in ("images", "labels"):
        both = np.concatenate([getattr(cut, f"train_{part}"), getattr(cut, f"test_{part}")])
        np.testing.assert_array_equal(both, getattr(digits, f"train_{part}"))
    assert len(cut.train_labels) == 1000
    with pytest.raises(InputError, match="none is left"):
        cut_official(digits)


# An .npz file


def test_npz_comes_back_as_it_was_saved(tmp_path):
    arrays = random_arrays()
    np.savez_compressed(tmp_path / "pets.npz", **arrays)
    images = load_images("cifar10", str(tmp_path / "pets.npz"))
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(images, field), arrays[field])
    assert images.train_labels.dtype == images.test_labels.dtype == np.int64
    assert images.class_names == ("cat", "dog", "owl")
    assert (images.name, images.flip) == ("pets", True)


def test_cifar10_is_known_by_its_classes_and_gets_the_published_constants(tmp_path):
    np.savez(tmp_path / "renamed.npz", **random_arrays(CIFAR10_CLASSES))
    images = load_images("cifar10", tmp_path / "renamed.npz")
    assert images.name == "cifar10"
    assert images.mean_std == ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


ARRAYS = random_arrays()
BROKEN = {
    "float pixels": ({"train_images": np.full((12, 8, 8, 3), np.nan)}, "float64"),
    "channels first": ({"test_images": ARRAYS["test_images"].transpose(0, 3, 1, 2)}, "height, width, 3)"),
    "grey": ({"train_images": ARRAYS["train_images"][..., 0]}, "(images, height, width, 3)"),
    "odd size": ({"train_images": np.zeros((12, 28, 28, 3), np.uint8)}, "multiples of 8"),
    "two sizes": ({"test_images": np.zeros((12, 16, 8, 3), np.uint8)}, "one size"),
    "label missing": ({"train_labels": ARRAYS["train_labels"][:-1]}, "for each image"),
    "NaN label": ({"test_labels": np.full(12, np.nan)}, "float64"),
    "labels from 1": ({"test_labels": ARRAYS["test_labels"] + 1}, "from 1 to 3"),
    "huge label": ({"train_labels": np.full(12, 2**63, np.uint64)}, "use 0 to 2"),
    "class without image": ({"test_labels": ARRAYS["test_labels"] // 2}, "no image of class 'owl'"),
    "no image": ({name: ARRAYS[name][:0] for name in ("test_images", "test_labels")}, "no image of class 'cat'"),
    "names twice": ({"class_names": np.array(["cat", "dog", "cat"])}, "different names"),
    "objects": ({"class_names": np.array(["cat", "dog", "owl"], object)}, "without object arrays"),
}


@pytest.mark.parametrize("changes, expected", BROKEN.values(), ids=BROKEN)
def test_npz_with_a_wrong_array_is_refused(tmp_path, changes, expected):
    np.savez(tmp_path / "bad.npz", **(ARRAYS | changes))
    message = refusal(tmp_path / "bad.npz")
    assert expected in message and "bad.npz" in message


def test_a_damaged_npz_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", **ARRAYS)
    content = (tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(content)
    flipped[1000] ^= 1
    for damaged in (content[: len(content) // 2], b"not an archive", bytes(flipped), b""):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        assert "damaged.npz cannot be read" in refusal(tmp_path / "damaged.npz")


def test_a_test_set_alone_is_enough_to_evaluate_and_not_to_train(tmp_path):
    alone = {name: ARRAYS[name] for name in ("test_images", "test_labels")}
    np.savez(tmp_path / "pets.npz", **alone, class_names=np.array(["cat", "dog", "owl", "yak"]))
    write_folder(tmp_path / "pets", parts=("test",))
    for data, classes in (("pets.npz", 4), ("pets", 3)):
        assert "lacks train_images, train_labels" in refusal(tmp_path / data)
        images = load_images("cifar10", tmp_path / data, test_alone=True)
        assert (images.n_train, images.n_test, images.num_classes, images.size) == (0, 12, classes, (8, 8))
        order = np.argsort(ARRAYS["test_labels"], kind="stable") if data == "pets" else slice(None)
        np.testing.assert_array_equal(images.test_images, ARRAYS["test_images"][order])
    # what a whole set has is read all the same, so that its fingerprint stays the same
    np.savez(tmp_path / "whole.npz", **ARRAYS)
    whole = (load_images("cifar10", tmp_path / "whole.npz", test_alone=choice) for choice in (False, True))
    assert len({images.fingerprint for images in whole}) == 1


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_npz_is_never_unpickled(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(tmp_path / "marker")], object), allow_pickle=True)
    np.savez(tmp_path / "bomb.npz", **{name: ARRAYS[name] for name in ARRAYS if name != "class_names"})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "a") as archive:
        archive.writestr("class_names.npy", buffer.getvalue())
    assert "without object arrays" in refusal(tmp_path / "bomb.npz")
    assert not (tmp_path / "marker").exists()


# An image folder


def write_folder(folder: Path, arrays: dict[str, np.ndarray] = ARRAYS, parts=("train", "test")) -> Path:
    for part in parts:
        names = arrays["class_names"][arrays[f"{part}_labels"]]
        for row, (image, name) in enumerate(zip(arrays[f"{part}_images"], names, strict=True)):
            file = folder / part / str(name) / f"{row:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return folder


def test_an_image_folder_is_that_of_torchvision(tmp_path):
    """Its endings, its order, folders in folders; without what is hidden, which torchvision would take."""
    folder = write_folder(tmp_path / "pets")
    (folder / "train" / "cat" / "more").mkdir()
    for ending in ("BMP", "tif", "webp", "JPG"):
        Image.fromarray(ARRAYS["train_images"][0]).save(folder / "train" / "cat" / "more" / f"x.{ending}")
    Image.new("L", (8, 8), 90).save(folder / "test" / "owl" / "grey.png")
    expected = {part: ImageFolder(folder / part) for part in ("train", "test")}
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / "._00.png").write_bytes(b"what macOS leaves")
    (folder / "train" / "dog" / "notes.txt").write_text("not an image")
    said = []
    images = load_images("cifar10", folder, log=said.append)
    for part, theirs in expected.items():
        np.testing.assert_array_equal(getattr(images, f"{part}_images"), [np.asarray(image) for image, _ in theirs])
        np.testing.assert_array_equal(getattr(images, f"{part}_labels"), theirs.targets)
    assert (images.name, images.class_names, images.flip) == ("pets", tuple(expected["train"].classes), True)
    assert "16 images loaded, 2 files left out, 1 hidden, 1 not an image" in said[0]
    assert said[1].endswith("13 images loaded, 0 files left out")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_upright(tmp_path, orientation):
    """The eight orientations of EXIF 2.3, written out as turns and mirrors."""
    upright = ARRAYS["train_images"][0]
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    folder = write_folder(tmp_path / "pets")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(folder / "train" / "cat" / "00.png", exif=exif)
    np.testing.assert_array_equal(load_images("cifar10", folder).train_images[0], upright)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (16, 8)), "has not the size of"),
        (Image.fromarray(np.full((8, 8), 60_000, np.uint16)), "8 bits"),
        (b"not an image", "cannot be read"),
        (b"truncated", "cannot be read"),
    ],
)
def test_an_unsound_image_is_named(tmp_path, image, message):
    file = write_folder(tmp_path / "pets") / "train" / "dog" / "01.png"
    if isinstance(image, bytes):
        file.write_bytes(file.read_bytes()[:100] if image == b"truncated" else image)
    else:
        image.save(file)
    said = refusal(tmp_path / "pets")
    assert str(file) in said and message in said


def test_a_class_without_images_is_named(tmp_path):
    folder = write_folder(tmp_path / "pets")
    (folder / "train" / "emu").mkdir()
    assert "same class folders" in refusal(folder)
    (folder / "test" / "emu").mkdir()
    assert "no image of class 'emu'" in refusal(folder)


# The official files


def write_official(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Files as the official ones, but small; returns the MD5 of each."""
    base = folder / CIFAR10.base_folder
    base.mkdir(parents=True)
    parts = np.array_split(np.arange(len(arrays["train_labels"])), 5)
    content = {f"data_batch_{number}": ("train", rows) for number, rows in enumerate(parts, 1)} | {
        "test_batch": ("test", np.arange(len(arrays["test_labels"])))
    }
    md5 = {}
    for name, (part, rows) in content.items():
        # Officially: one image a row, all of red, then all of green, then all of blue.
        pixels = arrays[f"{part}_images"][rows].transpose(0, 3, 1, 2).reshape(len(rows), -1)
        batch = {"data": pixels, "labels": arrays[f"{part}_labels"][rows].tolist()}
        (base / name).write_bytes(pickle.dumps(batch))
        md5[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_CLASSES)}))
    md5["batches.meta"] = hashlib.md5((base / "batches.meta").read_bytes()).hexdigest()
    return md5


@pytest.fixture
def official(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """Small files under data/cifar10 whose MD5 takes the place of the published one."""
    arrays = random_arrays(CIFAR10_CLASSES, 2, size=32)
    md5 = write_official(tmp_path / "data" / "cifar10", arrays)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    return arrays


@pytest.mark.parametrize("data", [None, "data/cifar10", "download"])
def test_official_files_are_found_and_read(official, data):
    images = load_images("cifar10", data)
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(images, field), official[field])
    assert images.train_labels.dtype == np.int64
    assert (images.name, images.class_names, images.flip) == ("cifar10", CIFAR10_CLASSES, True)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_changed_official_file_is_refused_before_it_is_unpickled(official, tmp_path, name):
    file = tmp_path / "data" / "cifar10" / CIFAR10.base_folder / name
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    message = refusal(None)
    assert "MD5" in message and "--data download" in message
    assert not (tmp_path / "marker").exists()


def test_without_data_the_ways_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for data in (None, "", tmp_path / "not-here", tmp_path / "empty"):
        message = refusal(data)
        for way in ("--data download", "cifar-10-batches-py", "train/<class>", ".npz", "IGKD_DATA"):
            assert way in message
    with pytest.raises(MissingImages):
        load_images("cifar10")
