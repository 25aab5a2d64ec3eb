"""The smallest images, networks and trainings that still behave like the real ones."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from igkd.device import Compute
from igkd.errors import InputError
from igkd.images import ImageSet, as_input
from igkd.models import build
from igkd.records import Store
from igkd.runs import Architecture, Method, Recipe, Run, SignalSpec, Subset
from igkd.signals import Signals, Teacher

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMPUTE = Compute("cpu", bfloat16=False)
#: 40 images in batches of 8: five steps an epoch.
RECIPE = Recipe(num_epochs=2, batch_size=8, padding=2)
ALL = Method(alpha=0.3, temperature=2.0, overlay_prob=0.5, gamma=5.0)


def wait(process, ready):
    """Until it is ready or the process has ended; what is missing after two minutes, the assertions say."""
    until = time.time() + 120
    while process.poll() is None and not ready() and time.time() < until:
        time.sleep(0.01)


def refusal(function, /, *arguments, match=None, **options) -> str:
    """The message, one line, of the InputError with which a call is refused."""
    with pytest.raises(InputError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)


def small_images(seed: int = 0, n_train: int = 40, n_test: int = 12, num_classes: int = 4) -> ImageSet:
    """16x16 images of up to four classes, told apart by colour and corner, with noise."""
    random = np.random.default_rng(seed)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 40]])

    def part(n):
        labels = np.arange(n) % num_classes
        images = random.integers(0, 60, (n, 16, 16, 3))
        for image, label in zip(images, labels):
            image[8 * (label // 2) :, 8 * (label % 2) :] += colours[label] // 2
        return images.astype(np.uint8), labels.astype(np.int64)

    return ImageSet("small", *part(n_train), *part(n_test), tuple("abcd"[:num_classes]), flip=True)


def small_run(images, method=Method(), recipe=RECIPE, seed=0, architecture=Architecture(17), subset=Subset(), **fields):
    signals = SignalSpec("a teacher", n_steps=4) if method.uses_teacher else None
    return Run(images.fingerprint, subset, architecture, method, recipe, signals, seed, **fields)


def small_signals(images: ImageSet) -> Signals:
    """Arbitrary signals of the right shapes for students whose attention map has the size of the image."""
    generator = torch.Generator().manual_seed(0)
    n, (h, w) = images.n_train, images.size
    attention = torch.rand(n, h * w, generator=generator)
    return Signals(
        logits=torch.randn(n, images.num_classes, generator=generator),
        attention=torch.nn.functional.normalize(attention).half(),
        maps=torch.rand(n, h, w, generator=generator).half(),
    )


def small_teacher(images: ImageSet, seed: int = 0) -> Teacher:
    """Random features with a classifier fitted by least squares: right on every training image."""
    generator = torch.Generator().manual_seed(seed)
    model = build(Architecture(15, normalize=True), images.num_classes, images.mean_std, generator).eval()
    x = as_input(images.train_images)
    with torch.no_grad():
        features = model.features((x - model.mean) / model.std).mean((2, 3))
        wanted = torch.nn.functional.one_hot(torch.from_numpy(images.train_labels)).float()
        fitted = torch.linalg.lstsq(torch.cat([features, torch.ones(len(x), 1)], 1), 8 * wanted).solution
        model.classifier[1].weight.copy_(fitted[:-1].T)
        model.classifier[1].bias.copy_(fitted[-1])
        accuracy = float((model(x).argmax(1).numpy() == images.train_labels).mean())
    return Teacher(model, accuracy)


def store_in(folder) -> Store:
    """A store of its own in a folder."""
    return Store(folder / "records", folder / "build", folder / "weights")
