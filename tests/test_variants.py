"""NumPy, SciPy, Pillow, PyTorch's label smoothing and pixels traced by hand are the references."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch.nn import functional as F

from igkd.augment import Draw, overlay
from igkd.errors import InputError
from igkd.losses import distillation_loss
from igkd.methods import ARMS, Method
from igkd.runs import SignalSpec
from igkd.signals import check_alignment, load_signals, of_variant
from igkd.variants import ATTRIBUTIONS, KINDS, MAP_CONTROLS, VARIANTS, vary
from small import ALL, COMPUTE, RECIPE, small_images, small_run, small_teacher

IMAGES = small_images(n_train=240)
TEACHER = small_teacher(IMAGES)
N, LABELS = len(IMAGES.train_labels), IMAGES.train_labels
#: Heavy-tailed maps, as those of IG are.
MAPS = torch.rand(N, 16, 16, generator=torch.Generator().manual_seed(3)) ** 4


def varied(variant, maps=MAPS, seed=0, kind="maps", images=IMAGES):
    generator = torch.Generator().manual_seed(seed)
    return vary(variant, kind, maps, images.train_images, images.train_labels, generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("signals")


@cache
def load(folder, variant, seed=0, padding=2, images=IMAGES, method=ALL):
    run = small_run(images, method, replace(RECIPE, padding=padding), seed)
    run = replace(run, signals=replace(run.signals, variant=variant))
    return of_variant(run, images, load_signals(run, images, TEACHER, 2, folder, COMPUTE, lambda line: None))


def sources(maps):
    """From which image each map is, if the map of image i is i everywhere."""
    assert (maps == maps[:, :1, :1]).all()
    return maps[:, 0, 0].long()


NUMBERED = torch.arange(N).view(-1, 1, 1).expand(N, 16, 16).float()


def test_unknown_variants_are_refused_with_the_known_ones():
    for variant in VARIANTS:
        assert SignalSpec("a teacher", variant).variant == variant
    with pytest.raises(InputError, match="described, released"):
        SignalSpec("a teacher", "relesed")


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_what_the_variant_names_is_changed(variant):
    changed = {kind for kind in KINDS if varied(variant, kind=kind) is not MAPS}
    if variant in ("released", "permuted"):
        assert changed == set(KINDS)
    elif variant in MAP_CONTROLS:
        assert changed == {"maps"}
    else:
        assert changed == ({"logits"} if variant == "uniform" else set())
    assert set(VARIANTS) == {"described", "released", "permuted", "uniform", "online", *MAP_CONTROLS, *ATTRIBUTIONS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_shape_and_precision_stay_and_the_seed_decides(variant):
    maps = MAPS.half()
    result = varied(variant, maps)
    assert result.shape == maps.shape and result.dtype == maps.dtype
    assert torch.isfinite(result).all() and (result >= 0).all()
    assert torch.equal(result, varied(variant, maps))
    drawn = {"released", "permuted", "same_class", "other_image", "pixels_shuffled", "phase_scrambled", "noise"}
    assert torch.equal(result, varied(variant, maps, seed=1)) == (variant not in drawn)


def test_the_map_is_of_another_image_of_the_same_class():
    source = sources(varied("same_class", NUMBERED))
    assert (LABELS[source] == LABELS).all()
    assert (source != torch.arange(N)).all() and len(source.unique()) == N


def test_the_map_of_a_class_with_one_image_is_its_own():
    labels = np.arange(N)
    assert torch.equal(vary("same_class", "maps", MAPS, IMAGES.train_images, labels, torch.Generator()), MAPS)


@pytest.mark.parametrize("variant", ["other_image", "permuted", "released"])
def test_the_map_is_of_an_image_of_any_class(variant):
    source = sources(varied(variant, NUMBERED))
    assert len(source.unique()) == N
    assert variant != "other_image" or (source != torch.arange(N)).all()
    same = int((LABELS[source] == LABELS).sum())
    assert stats.binomtest(same, N, 1 / 4).pvalue > 1e-3


def test_shuffled_maps_have_the_same_pixels_elsewhere():
    shuffled = varied("pixels_shuffled")
    assert torch.equal(shuffled.flatten(1).sort(1).values, MAPS.flatten(1).sort(1).values)
    places = varied("pixels_shuffled", torch.arange(256.0).view(1, 16, 16).expand(N, 16, 16)).flatten(1)
    assert len(places.unique(dim=0)) == N  # each map in its own order
    # and every pixel lands everywhere equally often
    landed = places[:, 0].histc(16, 0, 256).numpy()
    assert stats.chisquare(landed).pvalue > 1e-3


def test_scrambled_maps_keep_the_amplitudes_and_lose_the_layout():
    high = MAPS + 100  # so that nothing is cut off
    scrambled = varied("phase_scrambled", high)
    before, after = (np.abs(np.fft.fft2(maps.double().numpy())) for maps in (high, scrambled))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-2)
    correlations = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(high, scrambled)]
    assert abs(np.mean(correlations)) < 4 / 16 / np.sqrt(N)
    assert len(scrambled.unique(dim=0)) == N


def test_what_is_cut_off_of_scrambled_maps_is_what_would_be_negative():
    with_offset, without = (varied("phase_scrambled", MAPS + offset) for offset in (100, 0))
    torch.testing.assert_close(without, (with_offset - 100).clamp_min(0), rtol=0, atol=1e-4)


def test_noise_is_uniform():
    assert stats.kstest(varied("noise").flatten().numpy(), "uniform").pvalue > 1e-3


def test_luminance_is_pillows():
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in IMAGES.train_images])
    np.testing.assert_allclose(255 * varied("luminance").numpy(), expected, atol=0.51)


def test_edges_are_scipys():
    grey = 255 * varied("luminance").double().numpy()
    expected = [np.hypot(*(ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1))) for image in grey]
    np.testing.assert_allclose(255 * varied("edges").numpy(), expected, rtol=1e-4, atol=1e-3)


def test_dimming_halves_the_image_exactly():
    x = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    corner = torch.zeros(N, dtype=torch.int64)
    whole, zero = torch.ones(N, dtype=torch.bool), corner.float()
    drawn = Draw(corner, corner, corner.bool(), whole, torch.full((N,), 1.7), zero, zero)
    assert torch.equal(overlay(x, varied("dimming"), drawn), x / 2)


@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_distillation_from_uniform_logits_is_label_smoothing(alpha, folder):
    teacher = load(folder, "uniform").logits[:8]
    logits = (5 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    labels = torch.from_numpy(LABELS[:8])
    loss = alpha * distillation_loss(logits, teacher, 1.0) + (1 - alpha) * F.cross_entropy(logits, labels)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=alpha)
    torch.testing.assert_close(loss, smoothed - alpha * np.log(4))
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, smoothed)]
    torch.testing.assert_close(*gradients)


def agreement(logits, labels=LABELS):
    return float((logits.argmax(1).numpy() == labels).mean())


def order(permuted, own):
    """Whose each row is."""
    distance = torch.cdist(permuted.double(), own.double())
    assert (distance.min(1).values < 1e-6).all()
    return distance.argmin(1)


@pytest.mark.parametrize("variant", ["permuted", "released"])
def test_logits_of_other_images_name_the_labels_by_chance_and_their_own_pass(variant, folder):
    own = load(folder, "described").logits
    check_alignment(own, LABELS, TEACHER.accuracy)
    logits = load(folder, variant).logits
    assert stats.binomtest(round(agreement(logits) * N), N, 1 / 4).pvalue > 1e-3
    with pytest.raises(InputError, match="another order"):
        check_alignment(logits, LABELS, TEACHER.accuracy)
    # Both variants share the order of a seed, which `permuted` tells: with it the logits name the labels again.
    source = order(load(folder, "permuted").logits, own)
    assert agreement(logits, LABELS[source]) > 0.6


def test_each_kind_has_its_own_order_and_each_seed_another(folder):
    own = load(folder, "described")
    orders = []
    for seed in (0, 1):
        permuted = load(folder, "permuted", seed)
        orders += [order(getattr(permuted, kind).flatten(1), getattr(own, kind).flatten(1)) for kind in KINDS]
    for number, first in enumerate(orders):
        assert torch.equal(first.sort().values, torch.arange(N))
        for second in orders[:number]:
            assert (first == second).float().mean() < 0.05
    alone = load(folder, "permuted", method=ARMS["KD"])  # another arm of the same seed
    assert torch.equal(alone.logits, load(folder, "permuted").logits)


def test_released_signals_are_of_one_crop_for_all_seeds_another_for_each_kind(folder):
    own = load(folder, "described")
    still = replace(IMAGES, flip=False)
    # Without crop and mirror nothing but the order is left.
    for kind in KINDS:
        released, permuted = (load(folder, variant, 0, 0, still) for variant in ("released", "permuted"))
        assert torch.equal(getattr(released, kind), getattr(permuted, kind))
    back = []
    for seed in (0, 1):
        source = order(load(folder, "permuted", seed).logits, own.logits)
        back.append(torch.empty_like(own.logits).index_copy_(0, source, load(folder, "released", seed).logits))
    assert torch.equal(*back)
    # One in 2 x 25 draws is no crop and no mirror.
    assert torch.isclose(back[0], own.logits).all(1).float().mean() < 0.1


def test_misaligned_signals_of_the_described_kind_are_refused_under_every_variant(tmp_path):
    relabelled = replace(IMAGES, train_labels=(LABELS + 1) % 4)
    for variant in VARIANTS:
        with pytest.raises(InputError, match="other images or another order"):
            load(tmp_path, variant, images=relabelled, method=Method(overlay_prob=0.5))


def test_cheap_variants_leave_no_files_and_dear_ones_are_computed_once(tmp_path):
    load(tmp_path, "described")
    kept = {path.name for path in tmp_path.iterdir()}
    for variant in ("permuted", "uniform", *MAP_CONTROLS):
        load(tmp_path, variant)
        assert {path.name for path in tmp_path.iterdir()} == kept
    for variant, new in {"released": 3, "saliency": 1, "smoothgrad": 1, "gradcam": 1}.items():
        first = load(tmp_path, variant)
        names = {path.name for path in tmp_path.iterdir()}
        assert len(names - kept) == new
        load.cache_clear()
        again = load(tmp_path, variant)
        assert {path.name for path in tmp_path.iterdir()} == names
        assert all(torch.equal(getattr(first, kind), getattr(again, kind)) for kind in KINDS)
        kept = names
