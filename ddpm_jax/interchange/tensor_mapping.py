"""Which tensor of another code is which of ours: one list of matches gives the way in and the way out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_jax.runtime.errors import UserError

Path = tuple[str, ...]  # of a leaf in our tree, such as ("down_0_block_1", "conv_1", "kernel")


@dataclass(frozen=True)
class Layout:
    """How the axes of one tensor differ there and here; `to_theirs` undoes `to_ours`."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda theirs: theirs, lambda ours: ours)
CONV = Layout(  # PyTorch [C_out, C_in, kH, kW], here [kH, kW, C_in, C_out]
    lambda theirs: theirs.transpose(2, 3, 1, 0), lambda ours: ours.transpose(3, 2, 0, 1)
)
DENSE = Layout(np.transpose, np.transpose)  # PyTorch [C_out, C_in], here [C_in, C_out]
# The same layer as a convolution of one pixel: [C_out, C_in, 1] and [C_out, C_in, 1, 1].
POINT_1D = Layout(lambda theirs: theirs[:, :, 0].T, lambda ours: ours.T[:, :, None])
POINT_2D = Layout(lambda theirs: theirs[:, :, 0, 0].T, lambda ours: ours.T[:, :, None, None])


@dataclass(frozen=True)
class Match:
    """A leaf of ours and the tensor that it is in the other code."""

    ours: Path
    theirs: str
    layout: Layout = SAME


def params_from(matches: Sequence[Match], tensors: dict[str, np.ndarray], shapes: dict[Path, tuple], what: str) -> dict:
    """Our tree of float32 weights.

    Args:
      matches: for each leaf of ours one; a tensor of theirs may be in several (a fused one).
      tensors: theirs, by name; any float type.
      shapes: of our leaves, by path (see `leaf_shapes`).
      what: names the file in complaints.

    Raises:
      UserError: a tensor is missing, left over, of another shape, or not of numbers.
    """
    wanted = {match.theirs for match in matches}
    for problem, names in (
        ("lacks", sorted(wanted - tensors.keys())),
        ("has, and the network of its config has not,", sorted(tensors.keys() - wanted)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{what} {problem} {', '.join(names[:3])}{more}: it holds another network than it says")
    leaves = {}
    for match in matches:
        theirs = tensors[match.theirs]
        try:
            leaf = np.ascontiguousarray(match.layout.to_ours(theirs), np.float32)
        except (ValueError, IndexError, TypeError):
            leaf = None
        if leaf is None or leaf.shape != shapes[match.ours]:
            raise UserError(
                f"{match.theirs} of {what} is {theirs.dtype} {theirs.shape}, which does not fit "
                f"{'/'.join(match.ours)} {shapes[match.ours]}: it holds another network than it says"
            )
        leaves[match.ours] = leaf
    return _nested(leaves)


def tensors_from(matches: Sequence[Match], params: dict) -> dict[str, np.ndarray]:
    """Their tensors, by name, from our tree: `params_from` gives the very same tree back."""
    return {match.theirs: np.ascontiguousarray(match.layout.to_theirs(_leaf(params, match.ours))) for match in matches}


def leaf_shapes(params: dict, prefix: Path = ()) -> dict[Path, tuple[int, ...]]:
    """Path -> shape of every leaf of a tree of arrays, or of `jax.eval_shape`'s."""
    shapes = {}
    for name, child in params.items():
        path = (*prefix, name)
        shapes |= leaf_shapes(child, path) if isinstance(child, dict) else {path: tuple(child.shape)}
    return shapes


def _leaf(params: dict, path: Path) -> np.ndarray:
    for name in path:
        params = params[name]
    return np.asarray(params)


def _nested(leaves: dict[Path, np.ndarray]) -> dict:
    tree: dict = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree
