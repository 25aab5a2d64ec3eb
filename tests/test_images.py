"""Image sets, their subsets, and what happens when the data is not as it should be."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder

from igkd.errors import MissingImages
from igkd.images import CIFAR10_CLASSES, ImageSet, load_images, split_rows, spread
from igkd.runs import Subset
from small import refusal


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No test finds data of the reader's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("igkd.images.REPOSITORY", tmp_path)
    monkeypatch.delenv("IGKD_DATA", raising=False)


def random_arrays(names=("cat", "dog", "owl"), per_class=4, size=8) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(len(names), dtype=np.uint8), per_class)
    train, test = generator.integers(0, 256, (2, len(labels), size, size, 3), dtype=np.uint8)
    images = {"train_images": train, "train_labels": labels, "test_images": test, "test_labels": labels}
    return images | {"class_names": np.array(names)}


ARRAYS = random_arrays()
PIXELS = [name for name in ARRAYS if name != "class_names"]


def test_fingerprint_is_the_documented_hash():
    seven, zero = np.full((1, 8, 8, 3), 7, np.uint8), np.zeros((1, 8, 8, 3), np.uint8)
    images = ImageSet("x", seven, np.array([1]), zero, np.array([0]), ("a", "b"), True)
    content = b"(1, 8, 8, 3)" + bytes([7]) * 192 + b"\1" + bytes(7) + b"(1, 8, 8, 3)" + bytes(192) + bytes(8)
    assert images.fingerprint == hashlib.sha256(content).hexdigest()[:16]


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
    train, held_out = split_rows(labels, subset)
    assert not set(train) & set(held_out)
    for rows, n, share in (
        (held_out, round(validation * len(labels)), validation),
        (train, round(fraction * (len(labels) - len(held_out))), fraction * (1 - validation)),
    ):
        assert len(rows) == n and (np.diff(rows) > 0).all()
        drawn = np.bincount(labels[rows], minlength=len(counts))
        assert (np.abs(drawn - share * np.array(counts)) <= 2).all()
    np.testing.assert_array_equal(train, split_rows(labels.astype(np.uint8), subset)[0])
    # the same images are held out for every seed and fraction, and others are trained on
    np.testing.assert_array_equal(held_out, split_rows(labels, Subset(validation=validation))[1])
    assert len(np.setdiff1d(train, split_rows(labels, Subset(fraction, seed ^ 1, validation))[0]))
    for impossible in (Subset(1 / len(labels)), Subset(validation=1 / len(labels))):  # a class would have no image
        refusal(split_rows, labels, impossible)


def test_take_is_stratified_and_keeps_each_image_with_its_label():
    digits = load_images("digits")
    small = digits.take(200, 100)
    assert (small.n_train, small.n_test) == (200, 100) and small.fingerprint != digits.fingerprint
    assert (np.abs(np.bincount(small.test_labels) - np.bincount(digits.test_labels) * 100 / 450) <= 1).all()
    whole, part = ({*zip(map(bytes, each.train_images), each.train_labels)} for each in (digits, small))
    assert part < whole
    refusal(digits.take, 2000, 100)


def test_npz_comes_back_as_it_was_saved(tmp_path):
    np.savez_compressed(tmp_path / "pets.npz", **ARRAYS)
    images = load_images("cifar10", str(tmp_path / "pets.npz"))
    for field in PIXELS:
        np.testing.assert_array_equal(getattr(images, field), ARRAYS[field])
    assert images.train_labels.dtype == images.test_labels.dtype == np.int64
    assert (images.name, images.class_names, images.flip) == ("pets", ("cat", "dog", "owl"), True)
    unit = images.train_images / 255
    np.testing.assert_allclose(images.mean_std, [unit.mean((0, 1, 2)), unit.std((0, 1, 2))], rtol=1e-9)
    # what a whole set has is read even if a test set alone is enough, so that its fingerprint stays the same
    again = load_images("cifar10", tmp_path / "pets.npz", test_alone=True)
    assert again.fingerprint == images.fingerprint
    turned = random_arrays(CIFAR10_CLASSES[::-1])
    np.savez(tmp_path / "renamed.npz", **turned)
    cifar10 = load_images("cifar10", tmp_path / "renamed.npz")  # known by its classes, with the published constants
    assert (cifar10.name, cifar10.mean_std[0]) == ("cifar10", (0.4914, 0.4822, 0.4465))
    assert cifar10.class_names == CIFAR10_CLASSES
    assert cifar10.test_labels.tolist() == (9 - turned["test_labels"]).tolist()


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("marker"),)


BROKEN = {
    "float pixels": {"train_images": np.full((12, 8, 8, 3), np.nan)},
    "channels first": {"test_images": ARRAYS["test_images"].transpose(0, 3, 1, 2)},
    "odd size": {"train_images": np.zeros((12, 28, 28, 3), np.uint8)},
    "two sizes": {"test_images": np.zeros((12, 16, 8, 3), np.uint8)},
    "labels from 1": {"test_labels": ARRAYS["test_labels"] + 1},
    "class without image": {"test_labels": ARRAYS["test_labels"] // 2},
    "no image": {name: ARRAYS[name][:0] for name in ("test_images", "test_labels")},
    "pickle": {"class_names": np.array([Bomb()], object)},
}


@pytest.mark.parametrize("changes", BROKEN.values(), ids=BROKEN)
def test_npz_with_a_wrong_array_is_refused(tmp_path, changes):
    np.savez(tmp_path / "bad.npz", **(ARRAYS | changes))
    assert "bad.npz" in refusal(load_images, "cifar10", tmp_path / "bad.npz") and not Path("marker").exists()


def test_a_test_set_alone_is_enough_to_evaluate_and_not_to_train(tmp_path):
    names = np.array(["cat", "dog", "owl", "yak"])
    np.savez(tmp_path / "pets.npz", **{name: ARRAYS[name] for name in PIXELS[2:]}, class_names=names)
    refusal(load_images, "cifar10", tmp_path / "pets.npz")
    images = load_images("cifar10", tmp_path / "pets.npz", test_alone=True)
    assert (images.n_train, images.n_test, images.num_classes, images.size) == (0, 12, 4, (8, 8))
    np.savez(tmp_path / "none.npz", **{name: ARRAYS[name][:0] for name in PIXELS[2:]}, class_names=names)
    refusal(load_images, "cifar10", tmp_path / "none.npz", test_alone=True)


@pytest.fixture
def pets(tmp_path) -> Path:
    for part in ("train", "test"):
        for row, (image, label) in enumerate(zip(ARRAYS[f"{part}_images"], ARRAYS[f"{part}_labels"])):
            file = tmp_path / "pets" / part / ARRAYS["class_names"][label] / f"{row:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return tmp_path / "pets"


def test_an_image_folder_is_that_of_torchvision(pets):
    """Its endings, its order, folders in folders; without what is hidden, which torchvision would take."""
    (pets / "train" / "cat" / "more").mkdir()
    for ending in ("BMP", "tif", "webp", "JPG"):
        Image.fromarray(ARRAYS["train_images"][0]).save(pets / "train" / "cat" / "more" / f"x.{ending}")
    Image.new("L", (8, 8), 90).save(pets / "test" / "owl" / "grey.png")
    expected = {part: ImageFolder(pets / part) for part in ("train", "test")}
    (pets / "train" / ".cache").mkdir()
    (pets / "train" / "cat" / "._00.png").write_bytes(b"what macOS leaves")
    (pets / "train" / "dog" / "notes.txt").write_text("not an image")
    said = []
    images = load_images("cifar10", pets, log=said.append)
    for part, theirs in expected.items():
        np.testing.assert_array_equal(getattr(images, f"{part}_images"), [np.asarray(image) for image, _ in theirs])
        assert getattr(images, f"{part}_labels").tolist() == theirs.targets
    assert (images.name, images.class_names, images.flip) == ("pets", tuple(expected["train"].classes), True)
    assert [[int(word) for word in line.split() if word.isdigit()] for line in said] == [[16, 2, 1, 1], [13, 0]]
    upright, exif = ARRAYS["train_images"][0], Image.Exif()
    exif[0x0112] = 6  # of EXIF 2.3: a photograph taken with the camera turned
    Image.fromarray(np.rot90(upright).copy()).save(pets / "train" / "cat" / "00.png", exif=exif)
    np.testing.assert_array_equal(load_images("cifar10", pets).train_images[0], upright)


def test_examples_of_an_image_folder_are_of_all_its_classes(pets):
    images = load_images("cifar10", pets)
    few = images.num_classes
    assert len(set(images.train_labels[:few])) == 1  # read class by class
    assert len(set(images.train_labels[spread(images.n_train, few)])) == few
    assert spread(10, 4).tolist() == [0, 3, 6, 9] and spread(3, 5).tolist() == [0, 1, 2]


def test_an_unsound_image_is_named(pets):
    file = pets / "train" / "dog" / "01.png"
    for content in (b"no image", file.read_bytes()[:100]):
        file.write_bytes(content)
        assert str(file) in refusal(load_images, "cifar10", pets)
    for image in (Image.new("RGB", (16, 8)), Image.fromarray(np.full((8, 8), 60_000, np.uint16))):
        image.save(file)
        assert str(file) in refusal(load_images, "cifar10", pets)


@pytest.fixture
def official(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """Files as the official ones under data/cifar10, but small, whose MD5 takes the place of the published one."""
    arrays = random_arrays(CIFAR10_CLASSES, 2, size=32)
    base = tmp_path / "data" / "cifar10" / CIFAR10.base_folder
    base.mkdir(parents=True)
    content = {f"data_batch_{number + 1}": ("train", slice(4 * number, 4 * number + 4)) for number in range(5)}
    for name, (part, rows) in (content | {"test_batch": ("test", slice(20))}).items():
        # Officially: one image a row, all of red, then all of green, then all of blue.
        pixels = arrays[f"{part}_images"][rows].transpose(0, 3, 1, 2).reshape(-1, 3 * 32 * 32)
        batch = {"data": pixels, "labels": arrays[f"{part}_labels"][rows].tolist()}
        (base / name).write_bytes(pickle.dumps(batch))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_CLASSES)}))
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in base.iterdir()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    return arrays


def test_official_files_are_found_and_read_and_changed_ones_refused_before_they_are_unpickled(official):
    for data in (None, "data/cifar10", "download"):
        images = load_images("cifar10", data)
        for field in PIXELS:
            np.testing.assert_array_equal(getattr(images, field), official[field])
        assert (images.name, images.class_names, images.flip) == ("cifar10", CIFAR10_CLASSES, True)
    for file in Path("data", "cifar10", CIFAR10.base_folder).iterdir():
        whole = file.read_bytes()
        file.write_bytes(pickle.dumps(Bomb()))
        refusal(load_images, "cifar10", None)
        assert not Path("marker").exists()
        file.write_bytes(whole)


def test_images_that_are_not_there_are_missed(tmp_path):
    for path in (tmp_path / "not-here", tmp_path):  # which has none of the forms known
        refusal(load_images, "cifar10", path)
    with pytest.raises(MissingImages):
        load_images("cifar10")
