"""Trains denoising-diffusion-pytorch on a small data set for a given wall time, and samples from it.

    pip install -r tests/parity/requirements.txt && pip install --no-deps denoising-diffusion-pytorch==2.3.4
    python benchmarks/lucidrains.py --data=digits --minutes=5 --out=peer.npz
    python benchmarks/digits_quality.py peer.npz
    python benchmarks/lucidrains.py --data=fashion_mnist --data-path=DIR --minutes=30 --num-samples=1000 --out=peer.npz
    python -m ddpm_jax.evaluate --samples=peer.npz --reference=fashion_mnist:train --data_path=DIR

The peer is used as published: its `Unet`, its `GaussianDiffusion` with default settings (v-prediction, sigmoid
schedule, T = 1000, images scaled to -1..1), and its samplers, on EMA weights. The loop is that of its `Trainer` (Adam
with betas 0.9 and 0.99, gradient norm clipped to 1, EMA by ema_pytorch) without files and logging.
Its defaults are meant for photographs and days of training. Where they do not suit some minutes on a CPU, they are
replaced: the network size, batch size and EMA in SETUPS; learning rate 1e-3 with warm-up and cosine decay; an EMA
update at every step (updating every 10 steps averages back beyond the start of a short run); channels-last memory (1.2
times the training steps per second, 1.7 times the samples). No flips, because a mirrored digit is not a digit. Samples
come from its DDIM sampler with the 250 steps that its README suggests; --sampling-steps=1000 is its ancestral sampler.

--minutes counts only training steps, not imports and sampling; both times are printed. With --cpu-time it is the CPU
time of the process, which other processes hardly change.
"""

import argparse
import sys
import time
import types
from pathlib import Path

import numpy as np
from digits_quality import is_training, load_real

from ddpm_jax.data import make_source
from ddpm_jax.runtime.errors import UserError, arguments_named

# Data set -> settings of the Unet, the batch size and the EMA; 0.83 M and 1.52 M parameters.
SETUPS = {
    "digits": {
        "dim": 32, "dim_mults": (1, 2), "batch_size": 128, "ema": 0.995, "image_size": 8, "num_samples": 1797,
    },
    "fashion_mnist": {
        "dim": 24, "dim_mults": (1, 2, 4), "batch_size": 32, "ema": 0.999, "image_size": 28, "num_samples": 1000,
    },
}  # fmt: skip
SECONDS_BETWEEN_LINES = 10.0
SAMPLE_BATCH = 600


def import_peer() -> tuple[types.ModuleType, types.ModuleType, type]:
    """torch, denoising_diffusion_pytorch and ema_pytorch.EMA.

    The peer imports torchvision only for the transforms of its `Trainer`, which is not used here, so an
    empty module replaces torchvision if it is not installed.

    Raises:
        ImportError: one of the packages is not installed.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        names = ("torchvision", "torchvision.transforms", "torchvision.utils")
        stubs = {name: types.ModuleType(name) for name in names}
        stubs["torchvision"].transforms = stubs["torchvision.transforms"]
        stubs["torchvision"].utils = stubs["torchvision.utils"]
        sys.modules.update(stubs)
    import denoising_diffusion_pytorch
    from ema_pytorch import EMA

    return torch, denoising_diffusion_pytorch, EMA


def load_images(data: str, path: str) -> np.ndarray:
    """The training images, uint8 [N, H, W].

    Raises:
      UserError: no files of that data set in the folder.
    """
    if data == "digits":
        real, _ = load_real()
        return real[is_training(len(real))]
    with arguments_named({"path": "--data-path", "path=DIR": "--data-path=DIR", "name": "--data"}.get):
        source = make_source(name=data, split="train", image_size=(28, 28), num_channels=1, path=path)
    return source.load(np.arange(len(source)))[..., 0]


def learning_rate_at(progress: float, peak: float, warmup: float = 0.02) -> float:
    """Linear warm-up over the first 2 % of the wall time, then a cosine to 0; `progress` is in 0..1."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", choices=sorted(SETUPS))
    parser.add_argument("--data-path", default="", metavar="DIR", help="folder with the original fashion_mnist files")
    parser.add_argument("--minutes", type=float, default=5.0, help="wall time of the training loop")
    parser.add_argument("--cpu-time", action="store_true", help="--minutes of CPU time of this process instead")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="uint8 arr_0 [N, H, W, 1]")
    parser.add_argument("--num-samples", type=int, help="by default that of SETUPS")
    parser.add_argument("--dim", type=int, help="width of the Unet's first level; by default that of SETUPS")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak of the warm-up and cosine")
    parser.add_argument("--constant-lr", action="store_true", help="no warm-up and no decay, as in its Trainer")
    parser.add_argument("--batch-size", type=int, help="by default that of SETUPS")
    parser.add_argument("--sampling-steps", type=int, default=250, help="DDIM steps, eta 0; 1000: ancestral sampling")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    setup = SETUPS[args.data]
    args.dim = setup["dim"] if args.dim is None else args.dim
    args.num_samples = setup["num_samples"] if args.num_samples is None else args.num_samples
    args.batch_size = setup["batch_size"] if args.batch_size is None else args.batch_size
    if args.data == "digits" and args.data_path:
        parser.error("--data-path is for --data=fashion_mnist; the digits come with scikit-learn")
    for name, low in (("num_samples", 1), ("dim", 8), ("batch_size", 1), ("threads", 1)):
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}; got {getattr(args, name)}")
    if args.minutes <= 0:
        parser.error(f"--minutes must be above 0; got {args.minutes}")
    if not 1 <= args.sampling_steps <= 1000:
        parser.error(f"--sampling-steps must be in 1..1000; got {args.sampling_steps}")
    if not args.out.endswith(".npz") or not Path(args.out).absolute().parent.is_dir():
        parser.error(f"--out must name an .npz file in a folder that exists; got {args.out!r}")
    try:
        torch, peer, EMA = import_peer()
    except ImportError as error:
        parser.error(f"{error}; install the peers as described at the top of this file")

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        images = torch.from_numpy(load_images(args.data, args.data_path)).float()[:, None] / 255
    except UserError as error:
        parser.error(str(error))
    unet = peer.Unet(dim=args.dim, dim_mults=setup["dim_mults"], channels=1, flash_attn=False)
    size = setup["image_size"]
    diffusion = peer.GaussianDiffusion(unet, image_size=size, sampling_timesteps=args.sampling_steps)
    diffusion = diffusion.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=setup["ema"], update_every=1)
    print(f"{len(images)} images, {sum(p.numel() for p in unet.parameters()):,} parameters", flush=True)

    seconds = 60 * args.minutes
    losses, step, order = [], 0, torch.empty(0, dtype=torch.int64)
    clock = time.process_time if args.cpu_time else time.perf_counter
    start, last_line = clock(), time.perf_counter()
    diffusion.train()
    while (elapsed := clock() - start) < seconds:
        if not args.constant_lr:
            optimizer.param_groups[0]["lr"] = learning_rate_at(elapsed / seconds, args.learning_rate)
        while len(order) < args.batch_size:
            order = torch.cat([order, torch.randperm(len(images))])
        batch, order = images[order[: args.batch_size]], order[args.batch_size :]
        loss = diffusion(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        losses.append(loss.item())
        step += 1
        if time.perf_counter() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.perf_counter()
            print(f"step {step}: {elapsed:.0f} s, loss {np.mean(losses[-200:]):.4f}", flush=True)
    train_seconds = clock() - start
    print(
        f"trained {step} steps of {args.batch_size} images in {train_seconds:.1f} s "
        f"({step / train_seconds:.1f} steps/s)",
        flush=True,
    )

    start = time.perf_counter()
    ema.ema_model.eval()
    num_batches = -(-args.num_samples // SAMPLE_BATCH)
    sizes = [len(block) for block in np.array_split(np.arange(args.num_samples), num_batches)]
    samples = torch.cat([ema.ema_model.sample(batch_size=size) for size in sizes])
    pixels = (samples.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    sample_seconds = time.perf_counter() - start
    np.savez(args.out, arr_0=pixels)
    print(
        f"sampled {len(pixels)} images in {sample_seconds:.1f} s ({args.sampling_steps} steps): {args.out}\n"
        f"wall time: {train_seconds + sample_seconds:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
