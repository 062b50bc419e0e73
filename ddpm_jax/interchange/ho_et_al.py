"""The TensorFlow checkpoints of Ho et al. 2020's own code (hojonathanho/diffusion) by our names.

Their network is ours, layout included: kernels are [kH, kW, C_in, C_out] and [C_in, C_out] there too. Every variable
stands beside its average, `NAME/ExponentialMovingAverage`, and the optimiser's two, which are not read.
"""

import numpy as np

from ddpm_jax.experiment.config_files import Config, load_config
from ddpm_jax.interchange.imported_model import Imported, shapes_of
from ddpm_jax.interchange.tensor_mapping import Match, Path, params_from
from ddpm_jax.runtime.errors import check_one_of

# The experiment that each of their models is of, and what differs from it.
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
    """Is the tensor of this name read: a weight or its average, or the number of updates."""
    variable = name.removesuffix(_AVERAGE)
    return name == _STEP or (variable.startswith(_SCOPE) and variable.rpartition("/")[2] in _VARIABLES)


def read_original(tensors: dict[str, np.ndarray], model: str) -> Imported:
    """A checkpoint of one of their models, with the config of the experiment that it is of.

    Args:
      tensors: by name, as of `tensorflow_checkpoint.read_tensorflow_checkpoint`; others than `is_wanted` are left out.
      model: one of `MODELS`.

    Raises:
      UserError: another model, or tensors that are not those of that model.

    Example: `read_original(read_tensorflow_checkpoint("model.ckpt-790000", is_wanted), "cifar10")`
    """
    check_one_of("model", model, MODELS)
    return read_original_as(tensors, load_config(*MODELS[model]), what=model)


def read_original_as(tensors: dict[str, np.ndarray], config: Config, *, what: str = "the file") -> Imported:
    """A checkpoint that one trained with their code oneself, as the network of `config`.

    Raises:
      UserError: tensors that are not those of the config's network.
    """
    weights, averages = {}, {}
    for name, tensor in tensors.items():
        if is_wanted(name) and name != _STEP:
            (averages if name.endswith(_AVERAGE) else weights)[name.removesuffix(_AVERAGE)] = tensor
    notes = [f"it was trained for {int(tensors[_STEP]):,} updates"] if _STEP in tensors else []
    if not averages or not weights:
        notes.append("the file holds one set of weights: raw and averaged ones are the same here")
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
    is_norm = layers[-1:] == ["norm"]  # Flax's layer inside of ours, which is one layer there
    for layer in layers[:-1] if is_norm else layers:
        parts.append(_LAYERS.get(layer, layer))
    leaves = {"scale": "gamma", "bias": "beta"} if is_norm else {"kernel": "W", "bias": "b"}
    return _SCOPE + "/".join([*parts, leaves.get(leaf, leaf)])
