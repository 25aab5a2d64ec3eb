from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from igkd.augment import Draw, crop_mirror, cutout, draw, move_attention, overlay, pad, rescale
from igkd.errors import InputError

SIZE = 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def placed(top, left, mirror=False, overlay=False, exponent=1.0):
    """A draw for one image."""
    return Draw(
        torch.tensor([top]),
        torch.tensor([left]),
        torch.tensor([mirror]),
        torch.tensor([overlay]),
        torch.tensor([float(exponent)]),
        torch.tensor([0.0]),
        torch.tensor([0.0]),
    )


def move(images, drawn, padding, rows=None):
    rows = torch.arange(len(images)) if rows is None else rows
    return crop_mirror(pad(images, padding), rows, drawn, images.shape[1:3])


few = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@few
@given(seed=seeds, padding=st.integers(0, 5), mirror=st.booleans())
def test_crop_and_mirror_are_torchvisions(seed, padding, mirror):
    n = 6
    images = torch.randint(0, 256, (10, SIZE, 8, 3), dtype=torch.uint8, generator=generator(seed))
    rows = torch.randint(0, 10, (n,), generator=generator(seed))
    drawn = draw(n, generator(seed), padding=padding, mirror=mirror)
    moved = move(images, drawn, padding, rows)
    for i in range(n):
        padded = tv.pad(images[rows[i]].permute(2, 0, 1), [padding] * 4)
        expected = tv.crop(padded, int(drawn.top[i]), int(drawn.left[i]), SIZE, 8)
        expected = tv.horizontal_flip(expected) if drawn.mirror[i] else expected
        assert torch.equal(moved[i], expected.permute(1, 2, 0))


@few
@given(seed=seeds, padding=st.integers(0, 5))
def test_image_and_map_move_together(seed, padding):
    images = torch.rand(8, SIZE, SIZE, 3, generator=generator(seed))
    drawn = draw(8, generator(seed), padding=padding, mirror=True, overlay_prob=0.5)
    assert torch.equal(move(images[..., 1], drawn, padding), move(images, drawn, padding)[..., 1])


@pytest.mark.parametrize(
    "top, left, mirror, row, column",
    [
        (2, 2, False, 0, 0),
        (0, 0, False, 2, 2),
        (0, 1, False, 2, 1),
        (2, 2, True, 0, SIZE - 1),
        (1, 0, True, 1, SIZE - 3),
    ],
)
def test_a_bright_corner_of_the_map_lands_where_the_corner_of_the_image_lands(top, left, mirror, row, column):
    image, bright = torch.zeros(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE)
    image[0, 0, 0], bright[0, 0, 0] = 1, 7
    drawn = placed(top, left, mirror, overlay=True)
    moved_image, moved_map = move(image, drawn, 2), move(bright, drawn, 2)
    assert moved_map.nonzero().tolist() == [[0, row, column]]
    blended = overlay(moved_image.permute(0, 3, 1, 2), moved_map, drawn)
    expected = torch.zeros(1, 3, SIZE, SIZE)
    expected[:, :, row, column] = 1
    assert torch.equal(blended, expected)


def test_a_corner_that_is_cropped_away_is_gone_from_both():
    image, bright = torch.zeros(1, SIZE, SIZE, 3), torch.zeros(1, SIZE, SIZE)
    image[0, 0, 0], bright[0, 0, 0] = 1, 7
    drawn = placed(4, 2, overlay=True)
    moved_image, moved_map = move(image, drawn, 2), move(bright, drawn, 2)
    assert not moved_image.any() and not overlay(moved_image.permute(0, 3, 1, 2), moved_map, drawn).any()


@few
@given(seed=seeds, probability=st.floats(0, 1), scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]))
def test_overlaid_images_stay_in_range(seed, probability, scale):
    images = torch.rand(6, 3, SIZE, SIZE, generator=generator(seed))
    maps = scale * torch.rand(6, SIZE, SIZE, generator=generator(seed + 1))
    drawn = draw(6, generator(seed), padding=2, mirror=True, overlay_prob=probability)
    result = overlay(images, maps, drawn)
    assert 0 <= float(result.min()) and float(result.max()) <= 1
    assert torch.equal(result[~drawn.overlay], images[~drawn.overlay])


def test_probability_zero_is_the_identity_and_one_overlays_all():
    images = torch.rand(50, 3, SIZE, SIZE, generator=generator())
    maps = torch.rand(50, SIZE, SIZE, generator=generator(1))
    never, always = (draw(50, generator(), padding=2, mirror=True, overlay_prob=p) for p in (0.0, 1.0))
    assert torch.equal(overlay(images, maps, never), images)
    assert (overlay(images, maps, always) != images).flatten(1).any(1).all()


def test_share_of_overlaid_images_is_the_probability():
    drawn = draw(20_000, generator(), padding=4, mirror=True, overlay_prob=0.1)
    assert stats.binomtest(int(drawn.overlay.sum()), 20_000, 0.1).pvalue > 1e-3


def test_overlay_worked_by_hand():
    # squares 0, 1, 4, 16 brought to [0, 1] are 0, 1/16, 1/4, 1
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    images = torch.full((1, 3, 2, 2), 0.2)
    expected = torch.tensor([[0.1, 0.1 + 1 / 32], [0.225, 0.6]]).expand(1, 3, 2, 2)
    torch.testing.assert_close(overlay(images, maps, placed(0, 0, overlay=True, exponent=2)), expected)
    quarter = overlay(images, maps, placed(0, 0, overlay=True, exponent=1), weight=0.25)
    torch.testing.assert_close(quarter, (0.15 + torch.tensor([[0, 1 / 16], [1 / 8, 1 / 4]])).expand(1, 3, 2, 2))


def test_rescale_reaches_both_ends_and_a_constant_map_becomes_zero():
    maps = torch.stack([torch.linspace(3, 5, 16).view(4, 4), torch.full((4, 4), 3.0), torch.zeros(4, 4)])
    scaled = rescale(maps)
    torch.testing.assert_close(scaled[0].flatten(), torch.linspace(0, 1, 16))
    assert not scaled[1:].any()


def test_crops_and_mirrors_do_not_depend_on_the_overlay():
    generators = [generator(3) for _ in range(3)]
    without, rarely, often = (
        draw(500, each, padding=4, mirror=True, overlay_prob=p) for each, p in zip(generators, (0.0, 0.1, 0.5))
    )
    assert generators[0].get_state().equal(generators[2].get_state())  # whatever is drawn next is shared too
    for name in ("top", "left", "mirror", "exponent"):
        assert torch.equal(getattr(without, name), getattr(often, name))
    assert not (rarely.overlay & ~often.overlay).any()


def test_crops_are_uniform_and_half_of_the_images_are_mirrored():
    drawn = draw(20_000, generator(), padding=4, mirror=True)
    for corner in (drawn.top, drawn.left):
        counts = torch.bincount(corner)
        assert len(counts) == 9
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert stats.binomtest(int(drawn.mirror.sum()), 20_000, 0.5).pvalue > 1e-3
    assert not draw(1000, generator(), padding=4, mirror=False).mirror.any()


@pytest.mark.parametrize("most", [2.0, 3.0])
def test_exponent_is_log_uniform_from_one(most):
    exponent = draw(20_000, generator(), padding=0, mirror=False, max_exponent=most).exponent.double()
    assert 1 <= float(exponent.min()) and float(exponent.max()) <= most
    assert stats.kstest(exponent.numpy(), stats.loguniform(1, most).cdf).pvalue > 1e-3


def test_rows_of_a_draw_are_the_draws_of_those_images():
    drawn = draw(10, generator(), padding=4, mirror=True, overlay_prob=0.5)
    images = torch.rand(10, SIZE, SIZE, 3, generator=generator())
    rows = torch.tensor([7, 2, 2])
    assert torch.equal(move(images, drawn[rows], 4, rows), move(images, drawn, 4)[rows])


def unit(cells):
    return (cells / cells.norm()).flatten()[None]


CELLS = torch.arange(1.0, 17).view(4, 4)  # cells of 4x4 pixels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "drawn, expected",
    [
        (placed(4, 4), CELLS),
        (placed(4, 4, mirror=True), CELLS.flip(1)),
        (placed(8, 4), torch.cat([CELLS[1:], torch.zeros(1, 4)])),
        (placed(4, 0), torch.cat([torch.zeros(4, 1), CELLS[:, :-1]], 1)),
        (placed(4, 0, mirror=True), torch.cat([torch.zeros(4, 1), CELLS[:, :-1]], 1).flip(1)),
        # half a cell down: each cell is the mean of itself and the one above
        (placed(2, 4), (CELLS + torch.cat([torch.zeros(1, 4), CELLS[:-1]])) / 2),
    ],
    ids=["still", "mirrored", "cell up", "cell right", "right, mirrored", "half a cell down"],
)
def test_attention_moves_with_its_image(drawn, expected, dtype):
    maps = torch.cat([unit(CELLS.flip(0)), unit(CELLS)]).to(dtype)
    moved = move_attention(maps, torch.tensor([1]), drawn, 4, (SIZE, SIZE))
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, unit(expected), rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)


def test_attention_of_images_that_are_not_square():
    cells = torch.arange(1.0, 9).view(2, 4)
    moved = move_attention(unit(cells), torch.tensor([0]), placed(4, 4, mirror=True), 4, (8, 16))
    torch.testing.assert_close(moved, unit(cells.flip(1)))


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((16, 8), 16),  # 4x4 cells would be of 4x2 pixels
        ((30, 30), 64),  # 8x8 cells, as strides of 2 leave them, would be of 3.75 pixels
        ((16, 16), 17),
        ((4, 4), 64),  # more cells than pixels
    ],
)
def test_cells_that_are_no_squares_of_pixels_are_refused(size, cells):
    maps = torch.rand(2, cells, generator=generator())
    with pytest.raises(InputError, match=f"{cells} cells.*{size[0]}x{size[1]}"):
        move_attention(maps, torch.tensor([0]), placed(4, 4), 4, size)


@few
@given(seed=seeds, padding=st.integers(0, 5))
def test_a_centred_draw_moves_nothing_and_overlays_the_same(seed, padding):
    maps = torch.rand(8, SIZE, SIZE, generator=generator(seed))
    drawn = draw(8, generator(seed), padding=padding, mirror=True, overlay_prob=0.5)
    centred = drawn.centred(padding)
    assert torch.equal(move(maps, centred, padding), maps)
    attention = torch.nn.functional.normalize(maps[:, ::2, ::2].flatten(1))
    still = move_attention(attention, torch.arange(8), centred, padding, (SIZE, SIZE))
    torch.testing.assert_close(still, attention)
    assert torch.equal(centred.overlay, drawn.overlay) and torch.equal(centred.exponent, drawn.exponent)


def cut(row, column):
    """A draw for one image whose cut-out square has its centre there."""
    return replace(placed(0, 0), cut_row=torch.tensor([row]), cut_column=torch.tensor([column]))


@pytest.mark.parametrize(
    "side, row, column, rows, columns",
    [
        (4, 0.5, 0.5, range(6, 10), range(6, 10)),
        (4, 0.0, 0.99, range(2), range(13, SIZE)),  # what reaches over the border is lost
        (3, 0.5, 0.0, range(7, 10), range(2)),
        (2 * SIZE, 0.5, 0.5, range(SIZE), range(SIZE)),
    ],
)
def test_cutout_worked_by_hand(side, row, column, rows, columns):
    image = torch.rand(1, 3, SIZE, SIZE, generator=generator()) + 0.1
    expected = image.clone()
    for i in rows:
        for j in columns:
            expected[0, :, i, j] = 0
    assert torch.equal(cutout(image, cut(row, column), side), expected)


def test_squares_are_cut_out_anywhere_with_the_same_probability():
    drawn = draw(20_000, generator(), padding=4, mirror=True)
    for share in (drawn.cut_row, drawn.cut_column):
        assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    assert abs(stats.pearsonr(drawn.cut_row, drawn.cut_column).statistic) < 0.03


def test_crops_and_overlays_are_drawn_before_squares():
    # The records of arms without cutout are older than it: their random numbers must stay what they were.
    drawn = draw(9, generator(3), padding=4, mirror=True, overlay_prob=0.5)
    uniform = torch.rand(5, 9, generator=generator(3))
    assert torch.equal(drawn.top, (uniform[0] * 9).long()) and torch.equal(drawn.left, (uniform[1] * 9).long())
    assert torch.equal(drawn.mirror, uniform[2] < 0.5) and torch.equal(drawn.overlay, uniform[3] < 0.5)
    torch.testing.assert_close(drawn.exponent, 2 ** uniform[4])
