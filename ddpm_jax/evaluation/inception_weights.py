"""Weights of the FID's Inception v3 from a file of pytorch-fid, of StyleGAN2 or of ours; no pickle is executed."""

import os
import zipfile

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation.inception import Inception
from ddpm_jax.runtime.errors import UserError

_EPSILON = 1e-3  # of the graph's batch norms
# Names of blocks and branches in pytorch-fid and torchvision -> names in the graph.
_STEM = {"1a_3x3": "conv", "2a_3x3": "conv_1", "2b_3x3": "conv_2", "3b_1x1": "conv_3", "4a_3x3": "conv_4"}
_BLOCKS = dict(zip(("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"), range(11), strict=True))
_BRANCHES_35 = {
    "branch1x1": "conv",
    "branch5x5_1": "tower_conv",
    "branch5x5_2": "tower_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3": "tower_1_conv_2",
    "branch_pool": "tower_2_conv",
}
_BRANCHES_TO_17 = {
    "branch3x3": "conv",
    "branch3x3dbl_1": "tower_conv",
    "branch3x3dbl_2": "tower_conv_1",
    "branch3x3dbl_3": "tower_conv_2",
}
_BRANCHES_17 = {
    "branch1x1": "conv",
    "branch7x7_1": "tower_conv",
    "branch7x7_2": "tower_conv_1",
    "branch7x7_3": "tower_conv_2",
    "branch7x7dbl_1": "tower_1_conv",
    "branch7x7dbl_2": "tower_1_conv_1",
    "branch7x7dbl_3": "tower_1_conv_2",
    "branch7x7dbl_4": "tower_1_conv_3",
    "branch7x7dbl_5": "tower_1_conv_4",
    "branch_pool": "tower_2_conv",
}
_BRANCHES_TO_8 = {
    "branch3x3_1": "tower_conv",
    "branch3x3_2": "tower_conv_1",
    "branch7x7x3_1": "tower_1_conv",
    "branch7x7x3_2": "tower_1_conv_1",
    "branch7x7x3_3": "tower_1_conv_2",
    "branch7x7x3_4": "tower_1_conv_3",
}
_BRANCHES_8 = {
    "branch1x1": "conv",
    "branch3x3_1": "tower_conv",
    "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1",
    "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1",
    "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1",
    "branch_pool": "tower_2_conv",
}
_BRANCHES = [*[_BRANCHES_35] * 3, _BRANCHES_TO_17, *[_BRANCHES_17] * 4, _BRANCHES_TO_8, *[_BRANCHES_8] * 2]


def load_inception(path: str) -> dict:
    """The parameters of `Inception`, with `logits_kernel` if the file has the output layer.

    Args:
        path: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid or the same weights of torch-fidelity;
            `inception-2015-12-05.pt` of StyleGAN2-ADA (TorchScript); or an `.npz` that `save_inception` wrote.

    Raises:
        UserError: no such file, one that cannot be read, or weights of another network.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"--inception_weights must be a file; there is no {path!r}: docs/metrics.md says where to get one"
        )
    if path.endswith(".npz"):
        try:
            with np.load(path, allow_pickle=False) as file:
                leaves = {name: file[name] for name in file}
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"--inception_weights: {path!r} cannot be read as an .npz ({error})") from None
    else:
        from ddpm_jax.interchange.torch_files import read_torch_file

        leaves = leaves_from_torch(_flat(read_torch_file(path)), path)
    return _checked(leaves, path)


def save_inception(path: str | os.PathLike, params: dict) -> None:
    """Writes our own layout: `<layer>/conv/kernel` and `<layer>/conv/bias`, float32, in an `.npz`."""
    np.savez(path, **flax.traverse_util.flatten_dict(params, sep="/"))


def leaves_from_torch(tensors: dict[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    """The leaves of our tree, by path, from the tensors of pytorch-fid's or StyleGAN2's file.

    Args:
        tensors: by name, such as `Mixed_5b.branch1x1.conv.weight` or `layers.mixed.conv.weight`.
        what: names the file in error messages.

    Raises:
        UserError: the names match neither.
    """
    prefixes = {name.rpartition("layers.")[0] for name in tensors if "layers.mixed" in name}
    if "Mixed_5b.branch1x1.conv.weight" in tensors:
        convs, output = _pytorch_fid_convs(), "fc.weight"
        parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    elif len(prefixes) == 1:
        (prefix,) = prefixes
        convs, output = _stylegan_convs(tensors, f"{prefix}layers."), f"{prefix}output.weight"
        parts = ("weight", None, "beta", "mean", "var")
    else:
        raise UserError(
            f"--inception_weights: {what!r} is not the FID's Inception v3: it must hold pytorch-fid's tensors "
            "(Mixed_5b.branch1x1.conv.weight, ...) or StyleGAN2's (layers.mixed.conv.weight, ...); see docs/metrics.md"
        )
    leaves = {}
    for theirs, ours in convs.items():
        try:
            weight, gamma, beta, mean, var = (
                None if part is None else np.asarray(tensors[f"{theirs}.{part}"], np.float64) for part in parts
            )
        except KeyError as error:
            raise UserError(f"--inception_weights: {what!r} lacks {error.args[0]}; see docs/metrics.md") from None
        # Batch norm with fixed statistics is a factor and a shift per channel; computed in float64, rounded once.
        factor = (1.0 if gamma is None else gamma) / np.sqrt(var + _EPSILON)
        kernel = weight.transpose(2, 3, 1, 0) * factor  # [kH, kW, C_in, C_out]
        leaves[f"{ours}/conv/kernel"] = kernel.astype(np.float32)
        leaves[f"{ours}/conv/bias"] = (beta - mean * factor).astype(np.float32)
    if output in tensors:
        leaves["logits_kernel"] = np.ascontiguousarray(np.asarray(tensors[output], np.float32).T)
    return leaves


def _pytorch_fid_convs() -> dict[str, str]:
    names = {f"Conv2d_{theirs}": ours for theirs, ours in _STEM.items()}
    for block, index in _BLOCKS.items():
        name = f"mixed_{index}" if index else "mixed"
        names |= {f"Mixed_{block}.{theirs}": f"{name}_{ours}" for theirs, ours in _BRANCHES[index].items()}
    return names


def _stylegan_convs(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, str]:
    names = [name.removesuffix(".weight") for name in tensors if name.startswith(prefix) and name.endswith(".weight")]
    return {name: name.removeprefix(prefix).replace(".", "_") for name in names}


def _flat(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """{"a": {"b": x}} -> {"a.b": x}, only arrays."""
    flat = {}
    for name, child in tree.items():
        if isinstance(child, dict):
            flat |= _flat(child, f"{prefix}{name}.")
        elif isinstance(child, np.ndarray):
            flat[f"{prefix}{name}"] = child
    return flat


def _checked(leaves: dict[str, np.ndarray], path: str) -> dict:
    """The nested tree, after checking that every leaf has the network's shape."""
    network = Inception(has_output="logits_kernel" in leaves)
    wanted = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 299, 299, 3))))["params"]
    shapes = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(wanted, sep="/").items()}
    for name in sorted(shapes.keys() | leaves.keys()):
        got = leaves[name].shape if name in leaves else "missing"
        if got != shapes.get(name):
            raise UserError(
                f"--inception_weights: {path!r} is not the FID's Inception v3: {name} is {got} and must be "
                f"{shapes.get(name, 'absent')}; see docs/metrics.md"
            )
    return flax.traverse_util.unflatten_dict({name: np.asarray(x, np.float32) for name, x in leaves.items()}, sep="/")
