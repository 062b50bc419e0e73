"""A short digest of weights, by which a report says which ones were used."""

import hashlib

import jax
import numpy as np
from jaxtyping import PyTree


def weights_digest(params: PyTree) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the names and values of all leaves."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
