"""The Inception Score: how confident a classifier is about each image, and how many classes the images cover."""

import numpy as np
import scipy.special
from jaxtyping import Float, Num

from ddpm_jax.runtime.errors import UserError

NUM_SPLITS = 10


def inception_score(
    probabilities: Num[np.ndarray, "N K"], *, num_splits: int = NUM_SPLITS
) -> tuple[float, float]:
    """(mean, standard deviation) over the splits of exp(E_x KL(p(y|x) || p(y))), p(y) the mean over the split.

    Salimans et al. (2016), section 4. The splits are consecutive: split i has the rows i N/splits .. (i + 1) N/splits,
    rounded down, of all N rows, without shuffling. 0 log 0 is 0.

    Args:
        probabilities: [N, K], rows that sum to 1, N at least num_splits.

    Raises:
        UserError: fewer rows than splits.
    """
    num_rows = len(probabilities)
    if num_rows < num_splits:
        raise UserError(f"the score over {num_splits} splits needs at least as many images; got {num_rows}")
    scores = np.empty(num_splits)
    for split in range(num_splits):
        rows = slice(split * num_rows // num_splits, (split + 1) * num_rows // num_splits)
        part = np.asarray(probabilities[rows], np.float64)
        marginal = part.mean(axis=0)
        kl = scipy.special.rel_entr(part, marginal).sum(axis=1)  # p log(p/q)
        scores[split] = np.exp(kl.mean())
    return float(scores.mean()), float(scores.std())


def softmax(logits: Num[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """Probabilities of logits, in float64."""
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=1)
