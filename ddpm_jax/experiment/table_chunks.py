"""A sampler's table in chunks of one length, each of which is one call of a compiled program."""

from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.diffusion.samplers.coefficient_table import SamplerTable
from ddpm_jax.runtime.chunked_loop import chunks_of

CHUNK_ROWS = 20  # T = 1000 fits in 50 chunks; twice as many rows per chunk for more steps, and so on


class Chunk(NamedTuple):
    """A part of a table: its first `num_rows` rows are used; padding rows give all chunks the same length."""

    rows: SamplerTable
    num_rows: int


def chunks_of_table(table: SamplerTable, *, learns_variance: bool, shifts_mean: bool, renoises: bool) -> list[Chunk]:
    """The rows of a table in order, as NumPy arrays, with the columns that the programs of a generator read."""
    parts = chunks_of(table.num_calls)
    length = CHUNK_ROWS
    while length < max(map(len, parts)):
        length *= 2
    table = jax.tree.map(np.asarray, table)
    columns = {"learns_variance": learns_variance, "shifts_mean": shifts_mean, "renoises": renoises}
    columns["rises"] = table.rise_scale is not None
    return [Chunk(table.rows(part.start, part.stop).padded(length, **columns), len(part)) for part in parts]


def first_step(chunks: list[Chunk]) -> int:
    """The step t that x is at before the first chunk."""
    return int(chunks[0].rows.t[0])


def step_after(chunks: list[Chunk], number: int) -> int:
    """The step t that x is at after a chunk: the end of its last row, or where x rose to from there; -1: x_0."""
    rows, num_rows = chunks[number]
    if rows.rise_noise is not None and rows.rise_noise[num_rows - 1] > 0:
        return int(chunks[number + 1].rows.t[0])
    return int(rows.s[num_rows - 1])
