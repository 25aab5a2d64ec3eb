"""What a control leaves of the teacher's signals; SciPy's tests are the reference for what is random."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from scipy import stats

from igkd.augment import draw, overlay
from igkd.controls import KINDS, MAP_CONTROLS, VARIANTS, vary
from igkd.runs import ARMS
from igkd.signals import load_signals, of_variant
from small import ALL, COMPUTE, RECIPE, small_images, small_run, small_teacher

IMAGES = small_images(n_train=240)
TEACHER = small_teacher(IMAGES)
N, LABELS = len(IMAGES.train_labels), IMAGES.train_labels
NUMBERED = torch.arange(N).view(-1, 1, 1).expand(N, 16, 16).float()


def varied(variant, maps=NUMBERED, seed=0, kind="maps"):
    return vary(variant, kind, maps, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("signals")


@cache
def load(folder, variant, seed=0, padding=2, images=IMAGES, method=ALL):
    run = small_run(images, method, replace(RECIPE, padding=padding), seed)
    run = replace(run, signals=replace(run.signals, variant=variant))
    return of_variant(run, load_signals(run, images, TEACHER, folder, COMPUTE, lambda line: None))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_what_it_names_by_its_seed_and_keeps_shape_and_precision(variant):
    changed = {kind for kind in KINDS if not torch.equal(varied(variant, kind=kind), NUMBERED)}
    assert changed == (set() if variant == "described" else {"maps"} if variant in MAP_CONTROLS else set(KINDS))
    result = varied(variant, NUMBERED.half())
    assert result.shape == NUMBERED.shape and result.dtype == torch.float16 and (result >= 0).all()
    assert torch.equal(result, varied(variant, NUMBERED.half()))
    fixed = variant in ("described", "dimming")
    assert torch.equal(result, varied(variant, NUMBERED.half(), seed=1)) == fixed


@pytest.mark.parametrize("variant", ["other_image", "permuted", "released"])
def test_the_map_is_of_an_image_of_any_class(variant):
    result = varied(variant)
    source = result[:, 0, 0].long()
    assert torch.equal(result, NUMBERED[source]) and len(source.unique()) == N
    assert variant != "other_image" or (source != torch.arange(N)).all()
    same = int((LABELS[source] == LABELS).sum())
    assert stats.binomtest(same, N, 1 / 4).pvalue > 1e-3


def test_dimming_halves_the_image_exactly_and_noise_is_uniform():
    assert stats.kstest(varied("noise").flatten().numpy(), "uniform").pvalue > 1e-3
    x = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = draw(N, torch.Generator(), padding=0, mirror=False, overlay_prob=1.0)
    assert torch.equal(overlay(x, varied("dimming"), drawn), x / 2)


def order(permuted, own):
    """Whose each row is."""
    distance = torch.cdist(permuted.flatten(1).double(), own.flatten(1).double())
    assert (distance.min(1).values < 1e-6).all()
    return distance.argmin(1)


@pytest.mark.parametrize("variant", ["permuted", "released"])
def test_logits_of_other_images_name_the_labels_by_chance_and_in_their_own_order_again(variant, folder):
    own, named = load(folder, "described").logits, load(folder, variant).logits.argmax(1).numpy()
    assert stats.binomtest(int((named == LABELS).sum()), N, 1 / 4).pvalue > 1e-3
    # Both variants share the order of a seed, which `permuted` tells.
    source = order(load(folder, "permuted").logits, own)
    assert (named == LABELS[source]).mean() > 0.6


def test_each_kind_has_its_own_order_and_each_seed_another(folder):
    own = load(folder, "described")
    loaded = [load(folder, "permuted", seed) for seed in (0, 1)]
    orders = [order(getattr(each, kind), getattr(own, kind)) for each in loaded for kind in KINDS]
    for number, first in enumerate(orders):
        assert torch.equal(first.sort().values, torch.arange(N))
        for second in orders[:number]:
            assert (first == second).float().mean() < 0.05
    alone = load(folder, "permuted", method=ARMS["KD"])  # another arm of the same seed
    assert torch.equal(alone.logits, load(folder, "permuted").logits)


def test_released_signals_are_of_one_crop_for_all_seeds(folder):
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
