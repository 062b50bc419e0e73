"""The image sources by name."""

from ddpm_jax.data.image_source import ImageSource
from ddpm_jax.runtime.errors import UserError, arg

_BUILT_IN = ("digits", "mnist", "fashion_mnist", "cifar10", "image_folder", "array")


def make_source(
    *,
    name: str,
    split: str = "train",
    image_size: tuple[int, int],
    num_channels: int,
    path: str = "",
    data_dir: str = "",
    dtype: str = "uint8",
) -> ImageSource:
    """The images of a named data set, each converted to uint8 [H, W, C].

    Images of another size are resized to cover image_size, with antialiasing, and centre-cropped. `array` also reads
    other data, as they are: signals, volumes, real numbers.

    Args:
        name: `digits` (embedded); `image_folder` (the folder `path`, or the file that a folder was packed into);
            `array` (the file `path`); `mnist`, `fashion_mnist`, `cifar10` (original files in `path`, else TFDS); any
            other name is a TFDS data set, such as `celeb_a`.
        split: `train`, `test`, ... and slices of them: `train[:95%]`, `train[95%:]`.
        image_size: (H, W) in pixels; for `array` also any other number of sizes, which are then those of its rows.
        num_channels: 1 or 3; for `array` also as many as its images have.
        path: the user's own folder or file; `~` is the home folder.
        data_dir: folder of prepared TFDS data sets (the default of TFDS if empty), or one prepared data set.
        dtype: "uint8"; for `array` also "float32", real numbers.

    Raises:
        UserError: one line with the remedy, if anything above is missing, unknown or damaged.

    Example:
        >>> import numpy as np
        >>> source = make_source(name="digits", split="test", image_size=(8, 8), num_channels=1)
        >>> len(source), source.image_shape, source.load(np.arange(2)).dtype
        (180, (8, 8, 1), dtype('uint8'))
    """
    image_size = tuple(image_size)
    fits = len(image_size) == 2 or (name == "array" and image_size)
    if not fits or not all(isinstance(n, int) and n >= 1 for n in image_size):
        other = "" if name == "array" else f"; only {arg('name')}='array' reads other data"
        raise UserError(f"{arg('image_size')} must be (H, W) in pixels, each 1 or more; got {image_size}{other}")
    if name != "array" and num_channels not in (1, 3):
        raise UserError(f"{arg('num_channels')} must be 1 (grey) or 3 (colour) for {name!r}; got {num_channels}")
    if dtype not in ("uint8", "float32") or (dtype != "uint8" and name != "array"):
        pixels = arg("dtype='uint8'")
        raise UserError(f"{name!r} has images of pixels, which need {pixels}; got {arg('dtype')} for {dtype} values")
    common = dict(split=split, image_size=image_size, num_channels=num_channels)
    if name in ("image_folder", "array") and data_dir:
        raise UserError(
            f"{arg('data_dir')} is only for TFDS; {name!r} reads {arg('path')}; got data_dir {data_dir!r}"
        )
    if name == "image_folder":
        from ddpm_jax.data.image_folder import make_folder
        from ddpm_jax.data.packed_file import is_packed, make_packed

        return (make_packed if is_packed(path) else make_folder)(path=path, **common)
    if name == "array":
        from ddpm_jax.data.array_file import make_array

        return make_array(path=path, dtype=dtype, **common)
    if name in ("mnist", "fashion_mnist", "cifar10") and path:
        from ddpm_jax.data.mnist_and_cifar10 import make_originals

        return make_originals(name=name, path=path, **common)
    if path:
        raise UserError(
            f"{arg('path')} is not read for {name!r} and must be ''; got {path!r}; for a folder of images set "
            f"{arg('name')}=image_folder, for an array file {arg('name')}=array, for a prepared TFDS set "
            f"{arg('data_dir')}"
        )
    if name == "digits":
        from ddpm_jax.data.digits import make_digits

        return make_digits(**common)
    from ddpm_jax.data.tfds import make_tfds

    return make_tfds(name=name, data_dir=data_dir, built_in=_BUILT_IN, **common)
