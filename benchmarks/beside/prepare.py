"""Input files for all contestants of a net: weights, images, a sampler table. The driver runs prepare.py NET FOLDER."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from nets import NETS, NUM_ROWS
from peer_unets import openai_weights

from ddpm_jax.experiment import config_checks, model_factory, sampler_factory
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.config_overrides import flatten
from ddpm_jax.interchange.diffusers import write_diffusers
from ddpm_jax.interchange.native_files import write_npz
from ddpm_jax.interchange.openai import read_openai_as
from ddpm_jax.models.parameters import init_params, num_params

CHECKED = 2  # images


def main() -> None:
    net, folder = sys.argv[1], Path(sys.argv[2])
    experiment, changes = NETS[net]
    config = load_config(experiment, [*changes, "train.num_devices=1"])
    process, image_shape = model_factory.build_process(config), config_checks.image_shape_of(config)
    params = _openai_params(config, folder) if net.startswith("improved") else _random_params(config)
    if not net.startswith("improved"):
        write_diffusers(folder / "diffusers", config, params)
    write_npz(folder / "ours.npz", config, params)
    table = sampler_factory.build_table(config, process)
    x, eps = np.random.default_rng(0).standard_normal((2, CHECKED, *image_shape)).astype(np.float32)
    np.savez(
        folder / "inputs.npz", x=x, eps=eps, t=np.array([17, process.num_steps // 2], np.int32),
        alphas_bar=np.asarray(process.schedule.host_alphas_bar),
        # From the middle: at the start x_0 is the difference of two large numbers, that is, only rounding.
        **{
            f"table_{name}": np.asarray(getattr(table, name))[table.num_calls // 2 :][:NUM_ROWS]
            for name in ("t", "c_x_0", "c_x_t", "sigma")
        },
    )  # fmt: skip
    facts = flatten(config) | {"num_params": num_params(params), "image_shape": image_shape}
    (folder / "facts.json").write_text(json.dumps(facts))


def _random_params(config: ConfigDict) -> dict:
    """Random weights for every layer, so that layers that start at zero count as well."""
    model, image_shape = model_factory.build_model(config), config_checks.image_shape_of(config)
    shapes = jax.eval_shape(lambda key: init_params(model, key, image_shape), jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        noise, name = rng.standard_normal(shape.shape).astype(np.float32), path[-1].key
        if name == "kernel":
            return noise / np.sqrt(np.prod(shape.shape[:-1], dtype=np.float32))
        return 0.1 * noise + (name == "scale")

    return jax.tree.map_with_path(draw, shapes)


def _openai_params(config: ConfigDict, folder: Path) -> dict:
    """Weights by the names of OpenAI's code, written to a file, and the same weights by our names."""
    tensors = openai_weights(config)
    np.savez(folder / "openai.npz", **tensors)
    # Their function multiplies by 1 + the scale of a norm.
    norms = ("in_layers.0.weight", "out_layers.0.weight", "norm.weight", "out.0.weight")
    return read_openai_as({name: array + name.endswith(norms) for name, array in tensors.items()}, config).params


if __name__ == "__main__":
    main()
