"""Image sets, their subsets, and what happens when the data is not as it should be."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from igkd.errors import InputError
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


def refusal(data, **arguments) -> str:
    """The message of the InputError with which `data` is refused."""
    with pytest.raises(InputError) as caught:
        load_images("cifar10", data, **arguments)
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


def test_digits_split_is_stratified_and_a_mirrored_digit_is_another(digits):
    total = np.bincount(load_digits().target)
    test = np.bincount(digits.test_labels)
    assert len(digits.test_labels) == 450
    assert (np.abs(test - total / 4) <= 1).all()
    assert (np.bincount(digits.train_labels) + test == total).all()
    assert digits.flip is False
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10 and digits.size == (16, 16)


def test_digits_take_no_data():
    with pytest.raises(InputError, match="leave out --data"):
        load_images("digits", "somewhere")


def test_unknown_set():
    with pytest.raises(InputError, match="choose digits or cifar10"):
        load_images("mnist")


# Fingerprint and constants


def test_fingerprint_sees_each_pixel_and_label_and_nothing_else(digits):
    again = load_images("digits")
    assert again.fingerprint == digits.fingerprint
    renamed = replace(digits, name="other", class_names=tuple("abcdefghij"), flip=True)
    reordered = replace(digits, train_images=np.asfortranarray(digits.train_images))
    assert renamed.fingerprint == reordered.fingerprint == digits.fingerprint
    seen = {digits.fingerprint}
    places = {"train_images": (-1,) * 4, "test_images": (0,) * 4, "train_labels": 5, "test_labels": -1}
    for field, position in places.items():
        changed = getattr(digits, field).copy()
        changed[position] ^= 1
        seen.add(replace(digits, **{field: changed}).fingerprint)
    flat = replace(digits, train_images=digits.train_images.reshape(1347, 8, 32, 3))
    seen.add(flat.fingerprint)
    assert len(seen) == 6


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


def test_a_constant_channel_can_be_divided_by_its_std(digits):
    constant = replace(digits, train_images=np.full((4, 16, 16, 3), 200, np.uint8))
    mean, std = constant.mean_std
    np.testing.assert_allclose(mean, 200 / 255)
    assert min(std) > 0


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


def test_a_whole_subset_is_everything_that_is_not_held_out(digits):
    labels = digits.train_labels
    np.testing.assert_array_equal(train_indices(labels, Subset()), np.arange(1347))
    assert validation_indices(labels, Subset()).size == 0
    subset = Subset(validation=0.2)
    both = np.concatenate([train_indices(labels, subset), validation_indices(labels, subset)])
    np.testing.assert_array_equal(np.sort(both), np.arange(1347))


def test_the_share_is_rounded_to_the_nearest_image():
    labels = np.repeat([0, 1], 50)
    # 0.29 * 100 is 28.999999999999996 in floating point.
    assert len(train_indices(labels, Subset(0.29))) == 29


@pytest.mark.parametrize("values", [(0.1,), (0.999,), (1, 0, 0.1), (1, 0, 0.95)])
def test_a_subset_that_cannot_have_every_class_is_refused(values):
    subset = Subset(*values)
    with pytest.raises(InputError):
        train_indices(np.arange(20) % 5, subset)


def test_a_rare_class_is_never_lost_in_silence():
    labels = np.repeat([0, 1], [98, 2])
    with pytest.raises(InputError, match="no image of class 1"):
        train_indices(labels, Subset(0.04))


@pytest.mark.parametrize(
    "values",
    [
        {"fraction": 0},
        {"fraction": 1.1},
        {"fraction": float("nan")},
        {"validation": 1},
        {"validation": -0.1},
        {"validation": float("nan")},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_values_of_a_subset_out_of_range(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Subset(**values)


def test_equal_subsets_are_written_alike():
    assert repr(Subset(1, validation=0)) == repr(Subset())


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


def test_the_environment_names_the_data_and_the_argument_wins(tmp_path, monkeypatch):
    np.savez(tmp_path / "one.npz", **random_arrays())
    np.savez(tmp_path / "two.npz", **random_arrays())
    monkeypatch.setenv("IGKD_DATA", str(tmp_path / "one.npz"))
    assert load_images("cifar10").name == "one"
    assert load_images("cifar10", tmp_path / "two.npz").name == "two"
    assert load_images("digits").name == "digits"


ARRAYS = random_arrays()
BROKEN = {
    "float pixels": ({"train_images": np.full((12, 8, 8, 3), np.nan)}, "train_images is float64"),
    "channels first": ({"test_images": ARRAYS["test_images"].transpose(0, 3, 1, 2)}, "height, width, 3)"),
    "grey": ({"train_images": ARRAYS["train_images"][..., 0]}, "(images, height, width, 3)"),
    "odd size": ({"train_images": np.zeros((12, 28, 28, 3), np.uint8)}, "multiples of 8"),
    "two sizes": ({"test_images": np.zeros((12, 16, 8, 3), np.uint8)}, "one size"),
    "empty": ({name: ARRAYS[name][:0] for name in ("test_images", "test_labels")}, "at least one"),
    "label missing": ({"train_labels": ARRAYS["train_labels"][:-1]}, "there are 12 images"),
    "one-hot labels": ({"train_labels": np.eye(3, dtype=int)[ARRAYS["train_labels"]]}, "one label an image"),
    "NaN label": ({"test_labels": np.full(12, np.nan)}, "test_labels is float64"),
    "labels from 1": ({"test_labels": ARRAYS["test_labels"] + 1}, "from 1 to 3"),
    "negative label": ({"train_labels": ARRAYS["train_labels"].astype(int) - 1}, "from -1 to 1"),
    "huge label": ({"train_labels": np.full(12, 2**63, np.uint64)}, "there are 3 class_names"),
    "class without image": ({"test_labels": ARRAYS["test_labels"] // 2}, "no image of class 'owl'"),
    "names twice": ({"class_names": np.array(["cat", "dog", "cat"])}, "different names"),
    "one class": ({"class_names": np.array(["cat"])}, "two or more"),
    "numbers for names": ({"class_names": np.arange(3)}, "row of strings"),
    "objects": ({"class_names": np.array(["cat", "dog", "owl"], object)}, "without object arrays"),
}


@pytest.mark.parametrize("changes, expected", BROKEN.values(), ids=BROKEN)
def test_npz_with_a_wrong_array_is_refused(tmp_path, changes, expected):
    np.savez(tmp_path / "bad.npz", **(ARRAYS | changes))
    message = refusal(tmp_path / "bad.npz")
    assert expected in message and "bad.npz" in message


def test_npz_without_some_arrays(tmp_path):
    np.savez(tmp_path / "part.npz", train_images=ARRAYS["train_images"], class_names=ARRAYS["class_names"])
    assert "lacks train_labels, test_images, test_labels;" in refusal(tmp_path / "part.npz")


@pytest.mark.parametrize(
    ("flag", "field", "message"),
    [(1, 6, "is encrypted, password required"), (99, 8, "compression method is not supported")],  # 99 is none
)
def test_npz_that_zipfile_does_not_read(tmp_path, flag, field, message):
    path = tmp_path / "images.npz"
    np.savez(path, **random_arrays())
    content = bytearray(path.read_bytes())
    for signature, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):  # before each array, and in the table at the end
        at = content.find(signature)
        while at >= 0:
            content[at + shift + field] = flag
            at = content.find(signature, at + 4)
    path.write_bytes(content)
    assert message in refusal(path)


def test_an_array_that_does_not_fit_into_memory(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, **random_arrays())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 8, 8, 3)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "large.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "train_images.npy" else old.read(name))
    assert "large.npz cannot be read: " in refusal(tmp_path / "large.npz")


def test_names_that_the_system_does_not_take(tmp_path):
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert refusal("~nobody-here/images.npz").startswith("~nobody-here/images.npz is not there")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "is not there" in refusal(tmp_path / "round")


def test_npz_that_is_cut_short_or_another_file(tmp_path):
    np.savez(tmp_path / "whole.npz", **ARRAYS)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.npz").write_text("not an archive")
    flipped = bytearray(content)
    flipped[1000] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    assert "cut short" in refusal(tmp_path / "cut.npz")
    assert "not an .npz" in refusal(tmp_path / "text.npz")
    assert "cannot be read" in refusal(tmp_path / "flipped.npz")


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_the_bomb_goes_off_when_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_npz_is_never_unpickled(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(tmp_path / "marker")], object), allow_pickle=True)
    np.savez(tmp_path / "bomb.npz", **{name: ARRAYS[name] for name in ARRAYS if name != "class_names"})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "a") as archive:
        archive.writestr("class_names.npy", buffer.getvalue())
    assert "without object arrays" in refusal(tmp_path / "bomb.npz")
    assert not (tmp_path / "marker").exists()


# An image folder


def write_folder(folder: Path, arrays: dict[str, np.ndarray] = ARRAYS) -> Path:
    for part in ("train", "test"):
        names = arrays["class_names"][arrays[f"{part}_labels"]]
        for row, (image, name) in enumerate(zip(arrays[f"{part}_images"], names, strict=True)):
            file = folder / part / str(name) / f"{row:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return folder


def test_image_folder_holds_the_pixels_that_were_written(tmp_path):
    folder = write_folder(tmp_path / "pets")
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    (folder / "train" / ".cache").mkdir()
    images = load_images("cifar10", folder)
    order = np.argsort(ARRAYS["train_labels"], kind="stable")
    np.testing.assert_array_equal(images.train_images, ARRAYS["train_images"][order])
    np.testing.assert_array_equal(images.train_labels, ARRAYS["train_labels"][order])
    np.testing.assert_array_equal(images.test_images, ARRAYS["test_images"][order])
    assert (images.name, images.class_names, images.flip) == ("pets", ("cat", "dog", "owl"), True)


def test_grey_and_jpeg_images_become_three_channels(tmp_path):
    folder = write_folder(tmp_path / "pets")
    Image.new("L", (8, 8), 90).save(folder / "train" / "cat" / "00.png")
    Image.new("RGB", (8, 8), (90, 90, 90)).save(folder / "test" / "cat" / "00b.JPG")
    images = load_images("cifar10", folder)
    assert (images.train_images[0] == 90).all()
    assert (np.abs(images.test_images[1].astype(int) - 90) <= 2).all()


def test_folder_of_cifar10s_classes_is_cifar10(tmp_path):
    folder = write_folder(tmp_path / "any", random_arrays(CIFAR10_CLASSES, 1))
    assert load_images("cifar10", folder).name == "cifar10"


def test_image_of_another_size_is_named(tmp_path):
    folder = write_folder(tmp_path / "pets")
    Image.new("RGB", (16, 8)).save(folder / "train" / "dog" / "01.png")
    message = refusal(folder)
    assert str(folder / "train" / "dog" / "01.png") in message and "8x16" in message


@pytest.mark.parametrize("content", [b"", b"not an image", "truncated", "broken chunk"])
def test_unreadable_image_is_named(tmp_path, content):
    folder = write_folder(tmp_path / "pets")
    file = folder / "test" / "owl" / "02.png"
    whole = file.read_bytes()
    if content == "truncated":
        content = whole[:100]
    elif content == "broken chunk":
        content = whole[:20] + b"\xff" + whole[21:]
    file.write_bytes(content)
    message = refusal(folder)
    assert f"{file} cannot be read" in message


def test_sixteen_bit_image_is_refused_not_clipped(tmp_path):
    folder = write_folder(tmp_path / "pets")
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(folder / "train" / "cat" / "00.png")
    assert "8 bits" in refusal(folder)


def test_folder_with_missing_parts(tmp_path):
    folder = write_folder(tmp_path / "pets")
    (folder / "train" / "emu").mkdir()
    assert "(emu)" in refusal(folder)
    (folder / "test" / "emu").mkdir()
    assert f"{folder / 'train' / 'emu'} has no .png" in refusal(folder)
    (tmp_path / "bare" / "train").mkdir(parents=True)
    assert "has no class folders" in refusal(tmp_path / "bare")


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


def test_the_same_images_have_one_fingerprint_from_every_source(official, tmp_path):
    np.savez(tmp_path / "same.npz", **official)
    assert load_images("cifar10").fingerprint == load_images("cifar10", tmp_path / "same.npz").fingerprint


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_changed_official_file_is_refused_before_it_is_unpickled(official, tmp_path, name):
    file = tmp_path / "data" / "cifar10" / CIFAR10.base_folder / name
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    message = refusal(None)
    assert "MD5" in message and "--data download" in message
    assert not (tmp_path / "marker").exists()


def test_files_that_are_not_the_published_ones_are_refused_before_they_are_unpickled(tmp_path):
    base = tmp_path / "copy" / CIFAR10.base_folder
    base.mkdir(parents=True)
    for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], "")):
        (base / name).write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    assert "MD5" in refusal(tmp_path / "copy")
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """The archive that is downloaded instead of the published one, from a server on this machine."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "server").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "server")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
        yield tmp_path / "server" / CIFAR10.filename
        server.shutdown()


def test_a_failed_download_is_one_line(served):
    for message in (refusal("download"), refusal(None, download=True)):
        assert "cannot download CIFAR-10 to data/cifar10: HTTP Error 404" in message
        assert "IGKD_DATA" in message


def test_a_download_with_another_content_is_refused_before_it_is_unpacked(served, tmp_path):
    (tmp_path / CIFAR10.base_folder).mkdir()
    with tarfile.open(served, "w:gz") as archive:
        archive.add(tmp_path / CIFAR10.base_folder, CIFAR10.base_folder)
    assert "cannot download" in refusal("download")
    assert not (tmp_path / "data" / "cifar10" / CIFAR10.base_folder).exists()


def test_a_download_mends_a_damaged_file(official, served, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "cifar10" / CIFAR10.base_folder
    with tarfile.open(served, "w:gz") as archive:
        archive.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(served.read_bytes()).hexdigest())
    (folder / "data_batch_3").write_bytes(b"damaged")
    np.testing.assert_array_equal(load_images("cifar10", "download").train_images, official["train_images"])


# No data


def test_without_data_the_three_ways_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for data in (None, "", tmp_path / "not-here", tmp_path / "empty"):
        message = refusal(data)
        for way in ("--data download", "cifar-10-batches-py", "train/<class>", ".npz", "IGKD_DATA"):
            assert way in message
