"""Images per second from a folder of JPEG files and from its packed file, and the startup time of a large folder.

    python benchmarks/data_rates.py --pictures=DIR
    python benchmarks/data_rates.py --num_files=1000000

The first command takes the images in DIR, enlarges them to 256 pixels on the shorter side and saves --num_images of
them as JPEG (quality 90) in a temporary folder. Then it reads random batches of 128 at --image_size through
`BatchLoader`, for --seconds each: from the folder and from the packed file, both treated as too large for memory, and
from memory. Its second table compares encodings for a packed file, with one thread.

The second command makes a folder of that many small PNG files (hard links of a few) and times what a training run does
at its start with a folder too large for memory: it opens a split to train on and another one that is held out.
"""

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm_jax.data import BatchLoader, image_source, make_source
from ddpm_jax.data.image_listing import list_images
from ddpm_jax.data.pack_folder import pack_folder
from ddpm_jax.data.packed_file import array_record_module

IN_MEMORY = image_source.MEMORY_BUDGET_BYTES
BATCH = 128


def make_jpegs(pictures: str, folder: Path, num_images: int) -> None:
    """`num_images` JPEG files of 256 pixels on the shorter side; those of `pictures` in turn."""
    listing = list_images(pictures)
    folder.mkdir()
    for number in range(num_images):
        with Image.open(listing.openable(number % len(listing.files))) as image:
            scale = 256 / min(image.size)
            size = [max(round(side * scale), 256) for side in image.size]
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(
                folder / f"{number:06d}.jpg", quality=90
            )


def loader_rate(path: str, size: tuple[int, int], seconds: float, budget: int) -> float:
    """Images per second of `BatchLoader`."""
    image_source.MEMORY_BUDGET_BYTES = budget
    images = make_source(name="image_folder", path=path, image_size=size, num_channels=3)
    if budget:
        images.load(np.arange(len(images)))  # the first epoch, which decodes
    with BatchLoader(images, batch_size=BATCH, seed=0, first_step=0) as loader:
        next(loader)
        loader.take_counts()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            next(loader)
        counts = loader.take_counts()
    return counts.images / counts.load_seconds


def encodings(images: np.ndarray, seconds: float) -> None:
    """Size and rate of array_record files with one image per record."""
    module = array_record_module()
    shape = images.shape[1:]

    def to_png(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()

    def from_raw(record: bytes) -> np.ndarray:
        return np.frombuffer(record, np.uint8).reshape(shape)

    def from_png(record: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(record)))

    rows: list[tuple[str, str, Callable, Callable]] = [
        ("raw pixels", "uncompressed", np.ndarray.tobytes, from_raw),
        ("raw pixels, zstd", "zstd:3", np.ndarray.tobytes, from_raw),
        ("raw pixels, brotli", "brotli:6", np.ndarray.tobytes, from_raw),
        ("PNG", "uncompressed", to_png, from_png),
    ]
    print("\n| encoding | bytes per image | images/s, one thread |\n| --- | ---: | ---: |")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, compression, encode, decode in rows:
            file = os.path.join(folder, "x")
            writer = module.ArrayRecordWriter(file, f"group_size:1,{compression}")
            for image in images:
                writer.write(encode(image))
            writer.close()
            reader, count, start = module.ArrayRecordReader(file), 0, time.monotonic()
            while time.monotonic() - start < seconds:
                np.stack([decode(record) for record in reader.read(rng.integers(0, len(images), BATCH).tolist())])
                count += BATCH
            rate = count / (time.monotonic() - start)
            print(f"| {name} | {os.path.getsize(file) / len(images):,.0f} | {rate:,.0f} |", flush=True)


def measure_rates(args: argparse.Namespace, folder: Path) -> None:
    """The two tables of --pictures."""
    size = tuple(int(part) for part in args.image_size.split(","))
    jpegs, packed = folder / "jpegs", folder / "packed.array_record"
    make_jpegs(args.pictures, jpegs, args.num_images)
    stored = sum(file.stat().st_size for file in jpegs.iterdir())
    start = time.monotonic()
    pack_folder(str(jpegs), str(packed), image_size=size, num_channels=3)
    seconds = time.monotonic() - start
    print(f"{args.num_images} JPEG files, {stored / 1e6:.1f} MB; packed at {args.image_size} in {seconds:.1f} s: "
          f"{packed.stat().st_size / 1e6:.1f} MB; {os.cpu_count()} cores")  # fmt: skip
    print("\n| read from | images/s |\n| --- | ---: |")
    for name, path, budget in [
        ("the folder of JPEG files", jpegs, 0),
        ("the packed file", packed, 0),
        ("memory", packed, IN_MEMORY),
    ]:
        print(f"| {name} | {loader_rate(str(path), size, args.seconds, budget):,.0f} |", flush=True)
    image_source.MEMORY_BUDGET_BYTES = IN_MEMORY
    images = make_source(name="image_folder", path=str(packed), image_size=size, num_channels=3)
    encodings(images.load(np.arange(len(images))), args.seconds)


def measure_start(num_files: int, folder: Path) -> None:
    """Startup time and memory for a folder of `num_files` files."""
    rng, most_links = np.random.default_rng(0), 20_000  # file systems allow some 65,000 links per file
    for number in range(num_files):
        if number % most_links == 0:
            original = folder / f"original{number}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(original)
        if number % 1000 == 0:
            place = folder / "set" / f"class{number // 1000:05d}"
            place.mkdir(parents=True)
        os.link(original, place / f"{number:08d}.png")
    path, stamp = str(folder / "set"), time.time() - 3600
    for place in (folder / "set", *(folder / "set").iterdir()):
        os.utime(place, (stamp, stamp))  # an older time stamp, as a real data set has
    image_source.MEMORY_BUDGET_BYTES = 0

    def memory() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, start = memory(), time.monotonic()
    listing = list_images(path)
    print(f"{len(listing.files):,} files\nlisting and sorting: {time.monotonic() - start:.1f} s")
    used = []
    for split in ("train[:95%]", "train[95%:]"):
        start = time.monotonic()
        used.append(make_source(name="image_folder", path=path, split=split, image_size=(64, 64), num_channels=3))
        print(f"{split}, headers checked: {time.monotonic() - start:.1f} s", flush=True)
    print(f"peak memory: {memory():.0f} MB, of which {before:.0f} MB before the start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="folder of images to make the JPEG files from")
    parser.add_argument("--num_images", type=int, default=3000)
    parser.add_argument("--image_size", default="64,64")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--num_files", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.pictures:
            measure_rates(args, Path(folder))
        if args.num_files:
            measure_start(args.num_files, Path(folder))


if __name__ == "__main__":
    main()
