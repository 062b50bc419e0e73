"""`python -m ddpm_jax.data pack`: packs a folder of images into one file that is fast to read."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

from ddpm_jax.runtime.command_line import CommandParser, image_size_of, run
from ddpm_jax.runtime.errors import UserError, arguments_named, did_you_mean
from ddpm_jax.runtime.progress import format_duration

USAGE = "usage: python -m ddpm_jax.data COMMAND ..."
EXAMPLE = "python -m ddpm_jax.data pack images images64.array_record --image_size=64,64"
PURPOSE = """\
Decodes and resizes every image below DIR once, and writes the pixels into the file OUT, in the order of the names.
Training with --config.data.path=OUT then uses the same batches, bit for bit, as --config.data.path=DIR at that size,
and loads them faster. OUT is complete or does not exist; DIR is only read."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0 done, 2 user error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    if {"-h", "--help"} & set(argv):
        print(f"{USAGE}\n\ncommands:\n  pack    packs a folder of images into one file that is fast to read\n\n"
              f"example:\n  {EXAMPLE}\n\nhelp on a command: python -m ddpm_jax.data COMMAND --help")  # fmt: skip
        return 0
    got = f"got {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}" if argv else "got none"
    print(f"error: the command must be one of {sorted(COMMANDS)}; {got}; see python -m ddpm_jax.data --help",
          file=sys.stderr, flush=True)  # fmt: skip
    return 2


def _pack_command(argv: Sequence[str]) -> int:
    parser = CommandParser("data pack", PURPOSE, EXAMPLE, compiles=False)
    parser.usage = "python -m ddpm_jax.data pack DIR OUT --image_size=H,W [flags]"
    parser.add_argument("folder", metavar="DIR", help="folder of the images, which may be in sub-folders")
    parser.add_argument("out", metavar="OUT", help="file to write; .array_record is appended if missing")
    parser.add_argument("--image_size", required=True, metavar="H,W", help="height and width in pixels, as in training")
    parser.add_argument("--num_channels", default="3", metavar="C", help="3 colour (default) or 1 grey")
    parser.add_argument(
        "--columns", default="", metavar="FILE",
        help="a .npz with more data per image: the array 'names' (such as a/1.png, below DIR) and others of its length",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    return run(_pack, parser, argv)


def _pack(args: argparse.Namespace) -> None:
    import time

    from ddpm_jax.data.pack_folder import pack_folder  # imported here, so that --help need not wait for Pillow

    for name, given in (("DIR", args.folder), ("OUT", args.out)):
        if not given.strip():  # of an unset shell variable
            raise UserError(f"{name} must not be empty")
    start = time.monotonic()
    flags = {name: f"--{name}" for name in ("overwrite", "columns", "image_size")}
    with arguments_named({"folder": "DIR", **flags}.get):
        packed = pack_folder(
            args.folder,
            args.out,
            image_size=image_size_of("--image_size", args.image_size),
            num_channels=_num_channels(args.num_channels),
            columns=args.columns,
            overwrite=args.overwrite,
        )
    for note in packed.notes:
        print(f"note: {note}", file=sys.stderr)
    size, took = f"{packed.num_bytes / 1e6:,.1f} MB", format_duration(time.monotonic() - start)
    stored = f" with the columns {', '.join(packed.columns)}" if packed.columns else ""
    print(f"packed {packed.num_images:,} images{stored} into {packed.path}: {size}, in {took}")
    path = shlex.quote(str(packed.path))
    height, width = image_size_of("--image_size", args.image_size)
    # Where the config's own levels with attention, of the heights 8 and 16, are not those of this height.
    if max(height, width) <= 32:
        config = "configs/image_folder_small.py"
        heights = "" if 8 in (height, height // 2, height // 4) else f"{height // 4}"
    else:
        config, heights = "configs/image_folder.py", "" if height == 64 else f"{height // 4},{height // 8}"
    attention = f"--config.unet.attention_resolutions={heights} " if heights else ""
    print(f"next: python -m ddpm_jax.train --config={config} {attention}--config.data.path={path} "
          f"--config.data.image_size={args.image_size} --config.data.num_channels={args.num_channels} "
          "--workdir=runs/packed")  # fmt: skip


def _num_channels(text: str) -> int:
    if text not in ("1", "3"):
        raise UserError(f"--num_channels must be 1 (grey) or 3 (colour); got {text!r}")
    return int(text)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"pack": _pack_command}


if __name__ == "__main__":
    sys.exit(main())
