"""Holes by name."""

import numpy as np
import pytest

from ddpm_jax.diffusion.edits.masks import HOLES, make_mask
from ddpm_jax.runtime.errors import UserError


@pytest.mark.parametrize("hole", HOLES)
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1)])
def test_shape_and_type(hole, size):
    mask = make_mask(hole, *size)
    assert mask.shape == (*size, 1) and mask.dtype == bool


def text(mask):
    return ["".join("#" if known else "." for known in row) for row in mask[..., 0]]


def test_holes_by_hand():
    assert text(make_mask("centre", 4, 4)) == ["####", "#..#", "#..#", "####"]
    assert text(make_mask("centre", 8, 12))[2] == "###......###" and make_mask("centre", 8, 12).sum() == 96 - 4 * 6
    assert text(make_mask("expand", 4, 4)) == ["....", ".##.", ".##.", "...."]
    assert text(make_mask("left", 2, 4)) == ["..##", "..##"]
    assert text(make_mask("right", 2, 5)) == ["###..", "###.."]
    assert text(make_mask("top", 4, 2)) == ["..", "..", "##", "##"]
    assert text(make_mask("bottom", 3, 2)) == ["##", "##", ".."]
    assert text(make_mask("stripes", 4, 2)) == ["##", "..", "##", ".."]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_a_random_hole(share):
    one = make_mask("random", 8, 5, share=share, seed=1)
    assert np.sum(~one) == round(share * 40)
    np.testing.assert_array_equal(one, make_mask("random", 8, 5, share=share, seed=1))
    if 0 < share < 1:
        assert np.any(one != make_mask("random", 8, 5, share=share, seed=2))


@pytest.mark.parametrize("wrong", [{"height": 8.5}, {"width": "8"}, {"share": "a"}, {"seed": 1.5}])
def test_wrong_types(wrong):
    """A TypeError where the tests check types."""
    with pytest.raises((UserError, TypeError), match=str(next(iter(wrong)))):
        make_mask(**{"hole": "random", "height": 4, "width": 4} | wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"hole": "center"}, {"height": 0}, {"width": -1}, {"share": float("nan")}, {"share": 1.1}, {"seed": -1},
     {"hole": "left", "share": 0.5}],
)
def test_wrong_values(wrong):
    with pytest.raises(UserError, match=str(next(iter(wrong)))):
        make_mask(**{"hole": "random", "height": 4, "width": 4} | wrong)
