"""`python -m ddpm_jax.convert`: imports trained weights of other programs into a workdir, and exports them."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_jax.experiment.config_flags import OverridesParser
from ddpm_jax.runtime.command_line import run
from ddpm_jax.runtime.errors import UserError, check_one_of

EXAMPLE = (
    "python -m ddpm_jax.convert --from=ddpm-ema-church-256 --workdir=runs/church\n"
    "  python -m ddpm_jax.convert --workdir=runs/digits --to=digits_for_diffusers"
)
PURPOSE = """\
Imports (--from) and exports (--to) weights. --from makes a workdir from a trained network, for sample, evaluate, train:
  diffusers    a folder of DDPMPipeline or UNet2DModel (google/ddpm-*), or its .safetensors or .bin file
  openai       FILE.pt of improved-diffusion or guided-diffusion, under its published name, with --model, or, if you
               trained it, with --architecture
  original     PREFIX of a TensorFlow checkpoint of the code of Ho et al. (PREFIX.index), with --model or --architecture
  safetensors, npz   files written by --to
--to writes the weights of a workdir: a folder for DDPMPipeline.from_pretrained, or a .safetensors or .npz file.
No code in a file is executed. Supported models and settings: docs/weights.md."""


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
      recognises: whether a path to import from has this format.
      read: path -> Imported; (path, model) -> Imported if the file does not say which network it belongs to.
      read_as: (path, config, qkv_order) -> Imported, the network of a config; None if the file says which it is.
      write: (path, config, params) -> None; None if the format cannot be written.
      models: the networks that a file may belong to, if it does not say so itself.
      named: whether a recognised file says by its name which network it belongs to.
    """

    recognises: Callable[[Path], bool]
    read: Callable[..., Any]
    read_as: Callable[[Path, Any, str], Any] | None = None
    write: Callable[[Path, Any, dict], None] | None = None
    models: Sequence[str] = ()
    named: bool = False


def _formats() -> dict[str, Format]:
    """The formats by name, in the order in which they are tried."""
    # Imported here, so that --help need not wait for JAX.
    from ddpm_jax.interchange import diffusers, ho_et_al, native_files, openai, tensor_files, tensorflow_checkpoint

    def is_openai(path: Path) -> bool:
        return path.suffix == ".pt" and path.stem in openai.MODELS

    def read_openai(path: Path, model: str) -> Any:
        return openai.read_openai(tensor_files.read_tensors(path)[0], model)

    def read_openai_as(path: Path, config: Any, qkv_order: str) -> Any:
        return openai.read_openai_as(
            tensor_files.read_tensors(path)[0], config, qkv_order=qkv_order, what=str(path)
        )

    def is_original(path: Path) -> bool:
        return Path(f"{path}.index").is_file() or path.suffix == ".index"

    def read_original(path: Path, model: str) -> Any:
        return ho_et_al.read_original(tensors_of_original(path), model)

    def read_original_as(path: Path, config: Any, qkv_order: str) -> Any:
        if qkv_order != "heads_first":
            raise UserError("--qkv_order is only for openai: leave it out")
        return ho_et_al.read_original_as(tensors_of_original(path), config, what=str(path))

    def tensors_of_original(path: Path) -> dict:
        prefix = str(path).removesuffix(".index")
        return tensorflow_checkpoint.read_tensorflow_checkpoint(prefix, ho_et_al.is_wanted)

    own = native_files
    return {
        "npz": Format(own.is_npz, own.read_npz, write=own.write_npz),
        "diffusers": Format(diffusers.is_diffusers, diffusers.read_diffusers, write=diffusers.write_diffusers),
        "safetensors": Format(own.is_own_safetensors, own.read_own_safetensors, write=own.write_own_safetensors),
        "openai": Format(is_openai, read_openai, read_openai_as, models=sorted(openai.MODELS), named=True),
        "original": Format(is_original, read_original, read_original_as, models=sorted(ho_et_al.MODELS)),
    }


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = OverridesParser("convert", PURPOSE, EXAMPLE)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run; with --from a new folder")
    parser.add_argument(
        "--from", dest="source", metavar="PATH", help="file or folder to import, or OWNER/NAME of the Hugging Face Hub"
    )
    parser.add_argument("--to", metavar="PATH", help="export to a new folder, FILE.safetensors or FILE.npz")
    parser.add_argument("--format", metavar="NAME", help="one of the formats above; by default guessed from PATH")
    parser.add_argument("--model", metavar="NAME", help="for openai and original: a name in docs/published_models.md")
    parser.add_argument(
        "--architecture", metavar="CONFIG",
        help="for openai and original, in place of --model: the config of the network that you trained there, such as\n"
             "improved_cifar10, a file, and --config.GROUP.FIELD=VALUE",
    )  # fmt: skip
    parser.add_argument(
        "--qkv_order", metavar="NAME",
        help="with --architecture: heads_first (default), or qkv_first for --use_new_attention_order True",
    )
    parser.add_argument(
        "--weights", metavar="ema|ema/NAME|raw",
        help="with --to: ema, the first average (default); ema/0.9999, the one with this decay; ema/std_0.1, the one\n"
             "of this length in optim.ema_stds; raw, not averaged",
    )  # fmt: skip
    parser.add_argument(
        "--ema_std", type=float, metavar="S",
        help="with --to, instead: the average of this length, from the snapshots of a run with optim.ema_stds",
    )  # fmt: skip
    parser.add_argument("--step", type=int, metavar="N", help="with --to: the checkpoint; by default the newest")
    parser.add_argument("--best", action="store_true", help="with --to: the checkpoint with the lowest eval loss")
    return run(_convert, parser, argv)


def _convert(args: argparse.Namespace) -> None:
    if (args.source is None) == (args.to is None):
        raise UserError("give one of --from=PATH, to import into --workdir, and --to=PATH, to write its weights")
    for name, path in (("from", args.source), ("to", args.to)):
        if path == "":
            raise UserError(f"--{name} must name a file or a folder; got ''")
    formats = _formats()
    if args.format is not None:
        check_one_of("--format", args.format, formats)
    if args.to is not None:
        if args.architecture is not None or args.qkv_order is not None:
            raise UserError("--architecture is only for --from: a run already has its network")
        if args.overrides:
            raise UserError(f"--config.{args.overrides[0]} is only for --from: a run already has its config")
        _export(args, formats)
        return
    for name in ("weights", "ema_std", "step", "best"):
        if getattr(args, name) is not None and getattr(args, name) is not False:  # 0 == False
            raise UserError(f"--{name} is only for --to: an import takes the weights that the file holds")
    if args.architecture is not None and args.model is not None:
        raise UserError("--model names a published network, and --architecture describes another: give one of them")
    if args.qkv_order is not None:
        if args.architecture is None:
            raise UserError("--qkv_order is only for --architecture: a published network has its own")
        check_one_of("--qkv_order", args.qkv_order, ("heads_first", "qkv_first"))
    _import(args, formats)


def _import(args: argparse.Namespace, formats: dict[str, Format]) -> None:
    from ddpm_jax.experiment.config_changes import changed_import
    from ddpm_jax.experiment.config_files import changed, load_config
    from ddpm_jax.experiment.model_factory import build_network, check_params
    from ddpm_jax.experiment.packaged_configs import base_config
    from ddpm_jax.interchange.hub import download, is_hub_name
    from ddpm_jax.interchange.imported_model import described, next_command
    from ddpm_jax.interchange.imported_workdir import write_workdir
    from ddpm_jax.runtime.atomic_files import check_new_folder
    from ddpm_jax.workdir.workdir_path import check_workdir

    check_workdir(args.workdir)
    check_new_folder("--workdir", args.workdir)
    changed(base_config(), args.overrides)  # before a download; once more with the config of the weights
    path = Path(os.path.expanduser(args.source))
    if not path.exists() and not Path(f"{path}.index").exists():  # the prefix of a TensorFlow checkpoint is not a file
        if not is_hub_name(args.source) or path.parent.exists():
            hidden = f"; for a model of the Hub run it where there is no folder {str(path.parent)!r}"
            hidden = hidden if is_hub_name(args.source) else ""
            raise UserError(f"--from must be a folder or a file that exists; there is no {args.source!r}{hidden}")
        if args.model is not None or args.architecture is not None or args.format not in (None, "diffusers"):
            raise UserError(
                f"--from={args.source} is a model of the Hub for diffusers: leave out --format, --model, --architecture"
            )
        path = download(args.source)
    name = args.format or next((name for name, kind in formats.items() if kind.recognises(path)), None)
    if name is None and args.architecture is not None and path.suffix == ".pt":
        name = "openai"
    if name is None:
        own = (
            "; one that you trained with improved-diffusion or guided-diffusion needs --architecture=CONFIG"
            if path.suffix == ".pt"
            else ""
        )
        raise UserError(
            f"--from={args.source}: its format is not recognised; a file of weights needs its config.json and "
            f"scheduler_config.json in the same folder; or give --format, one of {sorted(formats)}{own}"
        )
    if args.architecture is not None:
        if formats[name].read_as is None:
            raise UserError(f"--architecture is not for {name}: its files say which network they belong to")
        config = load_config(args.architecture, args.overrides)
        imported = formats[name].read_as(path, config, args.qkv_order or "heads_first")
    else:
        imported = formats[name].read(path, *_model(args.model, formats[name], name, path))
        imported = dataclasses.replace(imported, config=changed_import(imported.config, args.overrides))
    check_params(imported.config, build_network(imported.config), imported.params)
    write_workdir(imported, args.workdir)
    for line in described(name, imported):
        print(line)
    print(f"wrote {os.path.abspath(args.workdir)}")
    print(f"next: python -m ddpm_jax.{next_command(imported, args.workdir)}")


def _model(given: str | None, kind: Format, name: str, path: Path) -> tuple[str, ...]:
    """The network that a file belongs to, as arguments of the format's reader."""
    if not kind.models:
        if given is not None:
            raise UserError(f"--model={given} is not for {name}: its files say which network they belong to")
        return ()
    if given is None and not (kind.named and kind.recognises(path)):
        raise UserError(
            f"{path} does not say which network it belongs to: give --model, one of {kind.models}, or --architecture"
        )
    return (given or path.stem,)


def _export(args: argparse.Namespace, formats: dict[str, Format]) -> None:
    from ddpm_jax.experiment.open_run import open_run, weights_text

    path = Path(os.path.expanduser(args.to))
    name = args.format or {".npz": "npz", ".safetensors": "safetensors", "": "diffusers"}.get(path.suffix)
    if name is None:
        raise UserError(f"--to must be a folder, FILE.safetensors or FILE.npz; got {args.to!r}: or give --format")
    if args.format is not None and formats[name].write is None:
        raise UserError(f"--format={name} can only be imported: take diffusers, safetensors or npz")
    if args.model is not None:
        raise UserError("--model is only for --from: a run already has its network")
    weights = "ema" if args.weights is None else args.weights
    trained = open_run(args.workdir, step=args.step, best=args.best, weights=weights, ema_std=args.ema_std)
    trained.check_params()
    replaced = ", in place of what was there" if path.is_file() else ""
    formats[name].write(path, trained.config, trained.params)
    if trained.post_hoc is not None:
        print(trained.post_hoc)
    print(f"wrote {path} ({weights_text(weights, args.ema_std)} weights of step {trained.step}) for {name}{replaced}")
    if name == "diffusers" and not trained.condition:  # their pipeline passes no classes
        T = trained.process.num_steps
        print(f'next: diffusers.DDPMPipeline.from_pretrained({str(path)!r})(num_inference_steps={T}).images[0]')


if __name__ == "__main__":
    sys.exit(main())
