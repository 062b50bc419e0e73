"""The chunks of a long loop."""

import pytest

from ddpm_jax.runtime.chunked_loop import MAX_CHUNKS, chunks_of


@pytest.mark.parametrize("num_steps", [1, 2, 49, 50, 51, 73, 1000, 4001])
def test_chunks_cover_all_steps_in_one_or_two_lengths(num_steps):
    chunks = chunks_of(num_steps)
    assert [step for chunk in chunks for step in chunk] == list(range(num_steps))
    assert len(chunks) == min(num_steps, MAX_CHUNKS)
    lengths = {len(chunk) for chunk in chunks}
    assert max(lengths) - min(lengths) <= 1  # each length is one compilation
