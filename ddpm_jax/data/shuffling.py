"""The order of the images, a pure function of the seed: the same for a resumed and an uninterrupted run."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)  # a batch spans one or two epochs; a resumed run or an evaluation one more
def permutation(*, seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """pi_epoch, a permutation of 0..num_examples-1 that depends on (seed, epoch) alone; int64 [N], read-only.

    It sorts the raw output of a Philox generator instead of using `Generator.permutation`, because NumPy guarantees the
    raw stream across its versions, but not the algorithms built on it.
    """
    raw = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(raw, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def batch_indices(*, seed: int, step: int, batch_size: int, num_examples: int) -> np.ndarray:
    """stream[step * B : (step + 1) * B], where stream = pi_0, pi_1, pi_2, ... (one permutation per epoch).

    A batch may span two epochs or, if B > N, more. Each image appears exactly once per epoch.

    Args:
        seed: any integer; another seed gives another stream.
        step: number of the batch, from 0.
        batch_size: B, images in the global batch.
        num_examples: N, images in the set.

    Returns:
        int64 [B], values in 0..N-1.

    Raises:
        ValueError: a count is below 1 or the step below 0.

    Example:
        >>> batch_indices(seed=0, step=0, batch_size=6, num_examples=3).tolist()[:3]
        [0, 2, 1]
        >>> sorted(batch_indices(seed=0, step=7, batch_size=3, num_examples=3).tolist())
        [0, 1, 2]
    """
    if batch_size < 1 or num_examples < 1 or step < 0:
        raise ValueError(
            "batch_size and num_examples must be at least 1 and step at least 0; "
            f"got batch_size={batch_size}, num_examples={num_examples}, step={step}"
        )
    position, end = step * batch_size, (step + 1) * batch_size
    parts = []
    while position < end:
        epoch, offset = divmod(position, num_examples)
        take = min(num_examples - offset, end - position)
        order = permutation(seed=seed, epoch=epoch, num_examples=num_examples)
        parts.append(order[offset : offset + take])
        position += take
    return np.concatenate(parts)
