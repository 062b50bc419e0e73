"""Models of the Hugging Face Hub, through the package huggingface_hub where it is installed."""

import re
import textwrap
from pathlib import Path

from ddpm_jax.runtime.errors import UserError

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_name(source: str) -> bool:
    """Whether it may be the name of a repository of the Hub: `OWNER/NAME`."""
    return _NAME.fullmatch(source) is not None and not source.startswith(".")


def download(name: str) -> Path:
    """The folder of a model of the Hub, such as google/ddpm-cifar10-32, in the cache of huggingface_hub.

    Raises:
      UserError: huggingface_hub is not installed, or the download fails.
    """
    by_hand = f"download it with 'hf download {name} --local-dir=FOLDER' and give --from=FOLDER"
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"--from={name}: there is no such folder; for a model of the Hugging Face Hub run "
            f"'pip install huggingface_hub' first, or {by_hand}"
        ) from None
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.rglob("*.safetensors")):  # older models
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.bin"]))
        return folder
    except Exception as error:  # each version of it raises others, down to those of its HTTP library
        what = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise UserError(
            f"--from={name}: there is no such folder, and the Hugging Face Hub did not give it "
            f"({type(error).__name__}: {what}): check the name and the connection, or {by_hand}"
        ) from error
