"""Torchvision, SciPy's distributions and cases worked by hand are the references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as tv

from igkd.augment import Draw, crop_mirror, cutout, draw, move_attention, overlay, pad
from small import refusal

SIZE = 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def placed(top, left, mirror=False, overlay=False, exponent=1.0, row=0.0, column=0.0):
    """A draw for one image."""
    return Draw(*(torch.tensor([value]) for value in (top, left, mirror, overlay, float(exponent), row, column)))


def move(images, drawn, padding, rows=None):
    rows = torch.arange(len(images)) if rows is None else rows
    return crop_mirror(pad(images, padding), rows, drawn, images.shape[1:3])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), padding=st.integers(0, 5), mirror=st.booleans())
def test_crop_and_mirror_are_torchvisions_and_a_map_moves_with_its_image(seed, padding, mirror):
    images = torch.randint(0, 256, (10, SIZE, 8, 3), dtype=torch.uint8, generator=generator(seed))
    rows = torch.randint(0, 10, (6,), generator=generator(seed))
    drawn = draw(6, generator(seed), padding=padding, mirror=mirror)
    moved = move(images, drawn, padding, rows)
    for i in range(6):
        padded = tv.pad(images[rows[i]].permute(2, 0, 1), [padding] * 4)
        expected = tv.crop(padded, int(drawn.top[i]), int(drawn.left[i]), SIZE, 8)
        expected = tv.horizontal_flip(expected) if drawn.mirror[i] else expected
        assert torch.equal(moved[i], expected.permute(1, 2, 0))
    assert torch.equal(move(images[..., 1], drawn, padding, rows), moved[..., 1])
    some = torch.tensor([4, 1, 1])
    assert torch.equal(move(images, drawn[some], padding, rows[some]), moved[some])


def test_overlay_worked_by_hand():
    # squares 0, 1, 4, 16 brought to [0, 1] are 0, 1/16, 1/4, 1
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    images = torch.full((1, 3, 2, 2), 0.2)
    expected = torch.tensor([[0.1, 0.1 + 1 / 32], [0.225, 0.6]]).expand(1, 3, 2, 2)
    torch.testing.assert_close(overlay(images, maps, placed(0, 0, overlay=True, exponent=2)), expected)
    quarter = overlay(images, maps, placed(0, 0, overlay=True, exponent=1), weight=0.25)
    torch.testing.assert_close(quarter, (0.15 + torch.tensor([[0, 1 / 16], [1 / 8, 1 / 4]])).expand(1, 3, 2, 2))
    assert torch.equal(overlay(images, maps, placed(0, 0)), images)
    assert torch.equal(overlay(images, 0 * maps, placed(0, 0, overlay=True)), images / 2)
    refusal(overlay, images, maps - 0.1, placed(0, 0, overlay=True))


def test_what_is_drawn_has_the_distributions_described():
    drawn = draw(20_000, generator(), padding=4, mirror=True, overlay_prob=0.1, max_exponent=3.0)
    for corner in (drawn.top, drawn.left):
        counts = torch.bincount(corner)
        assert len(counts) == 9 and stats.chisquare(counts.numpy()).pvalue > 1e-3
    for chosen, share in ((drawn.mirror, 0.5), (drawn.overlay, 0.1)):
        assert stats.binomtest(int(chosen.sum()), 20_000, share).pvalue > 1e-3
    assert stats.kstest(drawn.exponent.double().numpy(), stats.loguniform(1, 3).cdf).pvalue > 1e-3
    for share in (drawn.cut_row, drawn.cut_column):
        assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    independent = stats.spearmanr(torch.stack([tensor.double() for tensor in vars(drawn).values()], 1))
    assert abs(independent.statistic - torch.eye(7).numpy()).max() < 0.03
    assert not draw(1000, generator(), padding=4, mirror=False).mirror.any()


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
        # fewer cells, of the pixels that they touch, 0 to 5, 5 to 10 and 10 to 15: two thirds of the first cell and a
        # third of the second, halves of the second and third, a third of the third and two thirds of the last
        (placed(4, 4), 1 + torch.tensor([1 / 3, 1.5, 8 / 3]) + 4 * torch.tensor([[1 / 3], [1.5], [8 / 3]])),
        (placed(4, 4), torch.tensor([[3.5, 5.5], [11.5, 13.5]])),
    ],
    ids=["still", "mirrored", "cell up", "cell right", "right, mirrored", "half a cell down", "3x3", "2x2"],
)
def test_attention_moves_with_its_image(drawn, expected, dtype):
    maps = torch.cat([unit(CELLS.flip(0)), unit(CELLS)]).to(dtype)
    moved = move_attention(maps, torch.tensor([1]), drawn, 4, (SIZE, SIZE), expected.shape)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, unit(expected), rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-6)


def test_cells_that_are_no_squares_of_whole_pixels_are_refused():
    refusal(move_attention, torch.ones(1, 4), torch.tensor([0]), placed(0, 0), 4, (SIZE, 24), (2, 2))


def test_cutout_worked_by_hand():
    image = torch.rand(1, 3, SIZE, SIZE, generator=generator()) + 0.1
    for side, row, column, rows, columns in (
        (4, 0.5, 0.5, slice(6, 10), slice(6, 10)),
        (4, 0.0, 0.99, slice(2), slice(13, SIZE)),  # what reaches over the border is lost
        (3, 0.5, 0.0, slice(7, 10), slice(2)),
        (2 * SIZE, 0.5, 0.5, slice(SIZE), slice(SIZE)),
    ):
        expected = image.clone()
        expected[:, :, rows, columns] = 0
        assert torch.equal(cutout(image, placed(0, 0, row=row, column=column), side), expected)
