"""Converts the TensorFlow checkpoints of Ho et al. 2020's own code (hojonathanho/diffusion) to our names.

Their network is ours, including the layout: kernels are [kH, kW, C_in, C_out] and [C_in, C_out] there too. Next to
every variable are its average, `NAME/ExponentialMovingAverage`, and two of the optimiser, which are not read.
"""

import numpy as np

from ddpm_jax.experiment.config_files import Config, load_config
from ddpm_jax.interchange.imported_model import Imported, shapes_of
from ddpm_jax.interchange.tensor_mapping import Match, Path, params_from
from ddpm_jax.runtime.errors import UserError, check_one_of

# The experiment of each of their models, and the settings that differ from it.
MODELS = {
    "cifar10": ("cifar10_paper", ()),
    "celebahq256": ("celeba_hq_256", ()),
    "lsun_church": ("lsun", ()),
    "lsun_bedroom": ("lsun", ("data.name=lsun/bedroom", "train.num_steps=2400000")),
    "lsun_cat": ("lsun", ("data.name=lsun/cat", "train.num_steps=1800000", "data.flip=false")),
}

_SCOPE = "model/"
_AVERAGE = "/ExponentialMovingAverage"
_VARIABLES = ("W", "b", "gamma", "beta")
_STEP = "global_step"
_MODULES = {
    "time_1": "temb/dense0",
    "time_2": "temb/dense1",
    "middle_block_0": "mid/block_1",
    "middle_attention": "mid/attn_1",
    "middle_block_1": "mid/block_2",
}
_LAYERS = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "time": "temb_proj",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "nin_shortcut",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "proj_out",
}


def is_wanted(name: str) -> bool:
    """Whether the tensor of this name is read: a weight, its average, or the number of updates."""
    variable = name.removesuffix(_AVERAGE)
    return name == _STEP or (variable.startswith(_SCOPE) and variable.rpartition("/")[2] in _VARIABLES)


def read_original(tensors: dict[str, np.ndarray], model: str) -> Imported:
    """A checkpoint of one of their models, with the config of its experiment.

    Args:
      tensors: by name, from `tensorflow_checkpoint.read_tensorflow_checkpoint`; only those of `is_wanted` are used.
      model: one of `MODELS`.

    Raises:
      UserError: an unknown model, or tensors that do not fit it.

    Example: `read_original(read_tensorflow_checkpoint("model.ckpt-790000", is_wanted), "cifar10")`
    """
    check_one_of("model", model, MODELS)
    return read_original_as(tensors, load_config(*MODELS[model]), what=model)


def read_original_as(tensors: dict[str, np.ndarray], config: Config, *, what: str = "the file") -> Imported:
    """A checkpoint that you trained with their code, as the network of `config`.

    Raises:
      UserError: the tensors do not fit the config's network.
    """
    weights, averages = {}, {}
    for name, tensor in tensors.items():
        if is_wanted(name) and name != _STEP:
            (averages if name.endswith(_AVERAGE) else weights)[name.removesuffix(_AVERAGE)] = tensor
    step = tensors.get(_STEP)
    if step is not None and (step.size != 1 or step.dtype.kind not in "fiu" or not np.all(np.isfinite(step))):
        raise UserError(f"{what} has no number of updates in {_STEP}: it is damaged, or of another code")
    notes = [] if step is None else [f"it was trained for {int(step.reshape(())):,} updates"]
    if not averages or not weights:
        notes.append("the file has one set of weights, used for both raw and averaged weights")
    shapes = shapes_of(config)
    matches = [Match(path, _variable(path)) for path in shapes]
    params = params_from(matches, weights or averages, shapes, what)
    same = not averages or not weights
    ema_params = params if same else params_from(matches, averages, shapes, f"the averages of {what}")
    return Imported(config, params, ema_params, tuple(notes))


def _variable(path: Path) -> str:
    """("down_1_block_0", "norm_1", "norm", "scale") -> "model/down_1/block_0/norm1/gamma"."""
    module, *layers, leaf = path
    side, _, rest = module.partition("_")
    if side in ("down", "up"):  # down_LEVEL_block_0, down_LEVEL_attention_0, down_LEVEL_downsample
        level, _, block = rest.partition("_")
        module = f"{side}_{level}/{block.replace('attention', 'attn')}"
    parts = [_MODULES.get(module, module)]
    is_norm = layers[-1:] == ["norm"]  # in our network Flax's layer is inside another one; theirs has one layer
    for layer in layers[:-1] if is_norm else layers:
        parts.append(_LAYERS.get(layer, layer))
    leaves = {"scale": "gamma", "bias": "beta"} if is_norm else {"kernel": "W", "bias": "b"}
    return _SCOPE + "/".join([*parts, leaves.get(leaf, leaf)])
