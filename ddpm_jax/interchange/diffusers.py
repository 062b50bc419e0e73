"""Import and export of diffusers folders: a UNet2DModel with its scheduler, as DDPMPipeline stores them."""

import json
import os
from pathlib import Path
from typing import Any

from ddpm_jax.experiment.config_files import Config
from ddpm_jax.experiment.config_json import config_to_json, whole_config_from_json
from ddpm_jax.experiment.config_overrides import fields_by_group
from ddpm_jax.interchange.diffusers_names import matches_of_unet, with_new_names
from ddpm_jax.interchange.diffusers_scheduler import fields_of_scheduler, scheduler_of_fields
from ddpm_jax.interchange.diffusers_unet_config import fields_of_unet, unet_of_fields
from ddpm_jax.interchange.imported_model import OWN_CONFIG, Imported, config_of, shapes_of
from ddpm_jax.interchange.tensor_files import Tensors, read_json, read_tensors, write_safetensors
from ddpm_jax.interchange.tensor_mapping import leaf_shapes, params_from, tensors_from
from ddpm_jax.runtime.atomic_files import new_folder
from ddpm_jax.runtime.errors import UserError

CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
WEIGHTS = tuple(
    f"diffusion_pytorch_model.{kind}" for kind in ("safetensors", "safetensors.index.json", "bin", "bin.index.json")
)


def is_diffusers(path: Path) -> bool:
    """Whether a path is a folder of diffusers, or a file of weights with a config.json in the same folder."""
    if path.is_dir():
        return any((path / name).exists() for name in (PIPELINE, CONFIG, f"unet/{CONFIG}"))
    beside = path.parent / CONFIG
    return path.is_file() and beside.is_file() and "_class_name" in read_json(beside)


def read_diffusers(path: str | os.PathLike) -> Imported:
    """Reads the folder of a pipeline, that of a model (flat, as for the google/ddpm-* models), or its file of weights.

    Raises:
      UserError: names a missing or damaged file, a model or scheduler that is not supported, or tensors that do not
        fit the config.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    pipeline = _pipeline_of(folder)
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    unet_config = _read_config(unet / CONFIG, "UNet2DModel")
    scheduler_path = _scheduler_of(folder)
    scheduler_config = read_json(scheduler_path)
    read = fields_of_unet(unet_config, str(unet / CONFIG))
    groups, notes = fields_of_scheduler(scheduler_config, str(scheduler_path), pipeline)
    _check_out_channels(read, groups["diffusion"]["variance"], unet / CONFIG)
    config = config_of(
        image_size=read["image_size"],
        num_channels=read["num_channels"],
        model=read["model"],
        unet=read["unet"],
        **groups,
    )
    weights = path if path.is_file() else _weights_of(unet)
    tensors, texts = read_tensors(weights)
    own = _own_config(texts, unet_config, scheduler_config, weights)
    if own is None:
        notes.append("the file does not say which images, learning rate and EMA were used for training")
        notes.append("it has one set of weights, used for both raw and averaged weights")
    params = params_of(own or config, tensors, weights)
    return Imported(own or config, params, params, tuple(notes))


def params_of(config: Config, tensors: Tensors, weights: Path) -> dict:
    """Our tree from the tensors of UNet2DModel."""
    shapes = shapes_of(config)
    return params_from(matches_of_unet(shapes), with_new_names(tensors), shapes, str(weights))


def write_diffusers(path: str | os.PathLike, config: Config, params: dict) -> None:
    """Writes the folder of a DDPMPipeline, which must be new or empty.

    Our config is also stored with the tensors, so that `read_diffusers` restores exactly the same config.

    Raises:
      UserError: names a field that diffusers does not support, or a folder that is not empty.
    """
    groups = fields_by_group(config)
    unet, scheduler = unet_of_fields(groups), scheduler_of_fields(groups)
    tensors = tensors_from(matches_of_unet(leaf_shapes(params)), params)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    with new_folder("--to", path) as folder:
        for name, value in ((PIPELINE, index), (f"unet/{CONFIG}", unet), (f"scheduler/{SCHEDULER}", scheduler)):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        texts = {"format": "pt", OWN_CONFIG: config_to_json(config)}
        write_safetensors(folder / "unet" / WEIGHTS[0], tensors, texts)


def _read_config(path: Path, wanted: str) -> dict[str, Any]:
    given = read_json(path)
    if given.get("_class_name") != wanted:
        raise UserError(f"{path} is the config of a {given.get('_class_name')!s:.100}; only a {wanted} can be imported")
    return given


def _pipeline_of(folder: Path) -> str | None:
    """The class of the pipeline, or None without a model_index.json; raises UserError if it has further parts."""
    if not (folder / PIPELINE).is_file():
        return None
    index = read_json(folder / PIPELINE)
    parts = {name for name, value in index.items() if not name.startswith("_") and value not in (None, [None, None])}
    if parts != {"unet", "scheduler"}:
        raise UserError(
            f"{folder / PIPELINE} is a {index.get('_class_name')} of {sorted(parts)}; only pipelines of a unet "
            "and a scheduler that work on pixels can be imported"
        )
    name = index.get("_class_name")
    return name if isinstance(name, str) else None


def _scheduler_of(folder: Path) -> Path:
    """scheduler_config.json in the folder of a pipeline, in a flat folder, or next to the folder of the unet."""
    places = [folder / "scheduler" / SCHEDULER, folder / SCHEDULER, folder.parent / "scheduler" / SCHEDULER]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"{folder} has no {SCHEDULER}, and weights do not say which noise schedule they need: put the file that "
        f"they came with there, in scheduler/ or next to {CONFIG}"
    )


def _weights_of(unet: Path) -> Path:
    for name in WEIGHTS:
        if (unet / name).is_file():
            return unet / name
    found = sorted(unet.glob("diffusion_pytorch_model.*"))
    variants = [path for path in found if path.suffix in (".safetensors", ".bin")]
    if not variants:
        raise UserError(f"{unet} holds no weights: there is none of {', '.join(WEIGHTS)}")
    raise UserError(f"{unet} holds only weights of a variant: give the file, such as --from={variants[0]}")


def _check_out_channels(read: dict[str, Any], variance: str, what: Path) -> None:
    wanted = read["num_channels"] * (2 if variance == "learned_range" else 1)
    if read["out_channels"] != wanted:
        raise UserError(
            f"{what} has out_channels={read['out_channels']} for in_channels={read['num_channels']}; with "
            f"variance_type={variance!r} of the scheduler it must be {wanted}"
        )


def _own_config(
    texts: dict[str, str], unet: dict[str, Any], scheduler: dict[str, Any], what: Path
) -> Config | None:
    """The config that `write_diffusers` stored there, unless the settings of the folder were changed since."""
    if OWN_CONFIG not in texts:
        return None
    config = whole_config_from_json(texts[OWN_CONFIG], str(what))
    groups = fields_by_group(config)
    for written, given in ((unet_of_fields(groups), unet), (scheduler_of_fields(groups), scheduler)):
        if any(given.get(name) != value for name, value in written.items()):
            return None
    return config
