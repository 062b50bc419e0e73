"""Maps tensors of other code to ours: one list of matches serves both import and export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_jax.runtime.errors import UserError

Path = tuple[str, ...]  # of a leaf in our tree, such as ("down_0_block_1", "conv_1", "kernel")


@dataclass(frozen=True)
class Layout:
    """How the axes of one tensor differ between their code and ours; `to_theirs` inverts `to_ours`."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda theirs: theirs, lambda ours: ours)
CONV = Layout(  # PyTorch [C_out, C_in, kH, kW], ours [kH, kW, C_in, C_out]
    lambda theirs: theirs.transpose(2, 3, 1, 0), lambda ours: ours.transpose(3, 2, 0, 1)
)
DENSE = Layout(np.transpose, np.transpose)  # PyTorch [C_out, C_in], ours [C_in, C_out]
# A dense layer stored as a convolution over one pixel: [C_out, C_in, 1] and [C_out, C_in, 1, 1].
POINT_1D = Layout(lambda theirs: theirs[:, :, 0].T, lambda ours: ours.T[:, :, None])
POINT_2D = Layout(lambda theirs: theirs[:, :, 0, 0].T, lambda ours: ours.T[:, :, None, None])


@dataclass(frozen=True)
class Match:
    """One of our leaves, and the corresponding tensor of the other code."""

    ours: Path
    theirs: str
    layout: Layout = SAME


def params_from(matches: Sequence[Match], tensors: dict[str, np.ndarray], shapes: dict[Path, tuple], what: str) -> dict:
    """Our tree of float32 weights.

    Args:
      matches: one for each of our leaves; a fused tensor of theirs may be in several.
      tensors: theirs, by name; any float type.
      shapes: of our leaves, by path (see `leaf_shapes`).
      what: names the file in error messages.

    Raises:
      UserError: a tensor is missing, left over, of another shape, or not of numbers.
    """
    wanted = {match.theirs for match in matches}
    for problem, names in (
        ("lacks", sorted(wanted - tensors.keys())),
        ("has, but the network of its config lacks,", sorted(tensors.keys() - wanted)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{what} {problem} {', '.join(names[:3])}{more}: its config describes another network")
    leaves = {}
    for match in matches:
        theirs = tensors[match.theirs]
        try:
            with np.errstate(over="ignore"):  # to infinity, which is refused
                leaf = np.ascontiguousarray(match.layout.to_ours(theirs), np.float32)
        except (ValueError, IndexError, TypeError):
            leaf = None
        if leaf is None or leaf.shape != shapes[match.ours]:
            raise UserError(
                f"{match.theirs} of {what} is {theirs.dtype} {theirs.shape}, which does not fit "
                f"{'/'.join(match.ours)} {shapes[match.ours]}: its config describes another network"
            )
        leaves[match.ours] = leaf
    return _nested(leaves)


def tensors_from(matches: Sequence[Match], params: dict) -> dict[str, np.ndarray]:
    """Their tensors, by name, from our tree; `params_from` restores exactly the same tree."""
    return {match.theirs: np.ascontiguousarray(match.layout.to_theirs(_leaf(params, match.ours))) for match in matches}


def leaf_shapes(params: dict, prefix: Path = ()) -> dict[Path, tuple[int, ...]]:
    """Path -> shape of every leaf of a tree of arrays, or of a tree from `jax.eval_shape`."""
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
