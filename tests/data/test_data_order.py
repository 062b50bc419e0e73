"""The order of the images is a function of (seed, step), and every image comes once an epoch."""

import numpy as np
import pytest

from ddpm_jax.data import batch_indices
from ddpm_jax.data.splits import split_rows
from ddpm_jax.runtime.errors import UserError


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 24, 25])
def test_every_epoch_is_a_permutation(batch_size):
    num_examples, num_epochs = 10, 12
    steps = range(-(-num_examples * num_epochs // batch_size))
    stream = np.concatenate(
        [batch_indices(seed=5, step=k, batch_size=batch_size, num_examples=num_examples) for k in steps]
    )
    assert stream.dtype == np.int64
    epochs = stream[: num_examples * num_epochs].reshape(num_epochs, num_examples)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(num_examples), (num_epochs, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == num_epochs  # and each is another one


def test_the_stream_does_not_depend_on_the_batch_size():
    streams = [
        np.concatenate([batch_indices(seed=1, step=k, batch_size=b, num_examples=9) for k in range(36 // b)])
        for b in (2, 4, 12, 18)
    ]
    for stream in streams[1:]:
        np.testing.assert_array_equal(stream, streams[0])


def test_a_batch_is_a_pure_function_of_seed_and_step():
    def batch(seed, step):
        return batch_indices(seed=seed, step=step, batch_size=8, num_examples=100).tolist()

    late = batch(3, 10_000)
    for step in range(40):  # other epochs push this one out of the cache
        batch(3, step * 13)
    assert batch(3, 10_000) == late
    assert batch(4, 10_000) != late
    assert batch(-1, 0) != batch(1, 0)


def test_the_result_may_be_changed_without_changing_the_next():
    first = batch_indices(seed=0, step=0, batch_size=4, num_examples=4)
    expected = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batch_indices(seed=0, step=0, batch_size=4, num_examples=4), expected)


def test_the_order_is_uniform():
    """Over 2,000 epochs of 4 images each of the 24 orders comes 83 +- 9 times."""
    stream = batch_indices(seed=0, step=0, batch_size=8000, num_examples=4).reshape(2000, 4)
    _, counts = np.unique(stream, axis=0, return_counts=True)
    assert len(counts) == 24 and np.abs(counts - 2000 / 24).max() < 45


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"num_examples": 0}, {"step": -1}])
def test_bad_counts_are_refused(bad):
    with pytest.raises(ValueError, match="must be at least 1"):
        batch_indices(**{"seed": 0, "step": 0, "batch_size": 1, "num_examples": 1, **bad})


@pytest.mark.parametrize("left, right", [("[:95%]", "[95%:]"), ("[:-5%]", "[-5%:]"), ("[:30]", "[30:]")])
def test_slices_are_disjoint_and_together_everything(left, right):
    a, b = (split_rows("train" + part, num_examples=97) for part in (left, right))
    np.testing.assert_array_equal(np.sort(np.concatenate([a, b])), np.arange(97))
    assert len(a) == {"[:95%]": 92, "[:-5%]": 92, "[:30]": 30}[left]
    assert np.abs(np.diff(b)).max() > 1  # taken from all over, not from the end


def test_slices_of_slices_of_the_grammar():
    assert len(split_rows("train[25%:75%]", num_examples=8)) == 4
    assert len(split_rows("train", num_examples=8)) == len(split_rows("train[:]", num_examples=8)) == 8
    assert len(split_rows("train[-3:]", num_examples=8)) == 3


@pytest.mark.parametrize("split", ["train[", "train[5]", "train[a:b]", "", "train[:5][:2]", "../x"])
def test_a_malformed_split_is_refused(split):
    with pytest.raises(UserError, match="^split must be a name with at most one slice"):
        split_rows(split, num_examples=8)


def test_an_empty_slice_is_refused():
    with pytest.raises(UserError, match="selects none of the 8 images"):
        split_rows("train[:1%]", num_examples=8)
