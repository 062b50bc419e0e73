"""A contestant: a PyTorch U-Net in its fastest plain loop, named `PEER:FORM`, such as diffusers:channels_last.

Forms: plain (contiguous NCHW), channels_last, compile (torch.compile of the network, channels_last). The train step is
the same as ours: uint8 images, flips, t, noise, mean squared error, backward pass, clipping of the global norm, Adam
(fused), EMA (foreach); no number is read back to the host. The sampler uses the same coefficient table and clips x_0.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from contestant import serve
from nets import CHECKED_ROWS, Job
from peer_unets import build, load_facts, num_params

FORMS = ("plain", "channels_last", "compile")


class Peer:
    """The network of a peer, on its device and in its form."""

    def __init__(self, job: Job):
        peer, form = job.variant.split(":")
        self.facts, self._inputs = load_facts(Path(job.folder)), np.load(Path(job.folder) / "inputs.npz")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(job.threads)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as XLA does on a GPU
        module, predict = build(peer, Path(job.folder))
        self.format = torch.contiguous_format if form == "plain" else torch.channels_last
        self.module = module.to(self.device, memory_format=self.format)
        self._predict = torch.compile(predict) if form == "compile" else predict
        self._dtype = getattr(torch, job.dtype)
        columns = ("table_t", "table_c_x_0", "table_c_x_t", "table_sigma")
        self.rows = list(zip(*(self._inputs[name].tolist() for name in columns), strict=True))
        self.bars = self._inputs["alphas_bar"].tolist()

    def predict(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction in float32; the network computes in the dtype of the job."""
        low = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype) if low else nullcontext():
            return self._predict(x_t.contiguous(memory_format=self.format), t).float()

    def tensor(self, name: str) -> torch.Tensor:
        """An input by its name; images become [B, C, H, W]."""
        array = self._inputs[name]
        if array.ndim == 4:
            array = array.transpose(0, 3, 1, 2).copy()
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        return torch.from_numpy(array).to(self.device)

    def finish(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def setup(job: Job) -> tuple[Callable[[], None] | None, dict]:
    """The call of the job; None for a check, which writes its numbers to a file."""
    peer = Peer(job)
    about = {
        "versions": {"torch": torch.__version__},
        "device": torch.cuda.get_device_name() if peer.device.type == "cuda" else "cpu",
        "settings": {"threads": torch.get_num_threads(), "adam": "fused", "ema": "foreach", "form": job.variant,
                     "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")}},
        "num_params": num_params(peer.module.parameters()),
    }  # fmt: skip
    if job.work == "check":
        _check(job, peer)
        return None, about
    make = {"forward": _forward, "sample": _sample, "train": _train}[job.work]
    return make(job, peer), about


def _check(job: Job, peer: Peer) -> None:
    """See ours.py."""
    x, t, eps, bar = (peer.tensor(name) for name in ("x", "t", "eps", "alphas_bar"))
    t = t.long()
    peer.module.eval()
    bar_t = bar[t][:, None, None, None]
    with torch.no_grad():
        prediction, walked = peer.predict(x, t), _walk(peer, eps, CHECKED_ROWS, noise=0.0)
    loss = torch.mean((eps - peer.predict(bar_t.sqrt() * x + (1 - bar_t).sqrt() * eps, t)) ** 2)
    loss.backward()
    gradient_norm = torch.nn.utils.get_total_norm(p.grad for p in peer.module.parameters() if p.grad is not None)
    found = {"prediction": prediction, "loss": loss, "gradient_norm": gradient_norm, "walk": walked}
    found = {name: value.detach().cpu().numpy() for name, value in found.items()}
    for name in ("prediction", "walk"):
        found[name] = found[name].transpose(0, 2, 3, 1)
    np.savez(Path(job.folder) / f"check_{job.variant.replace(':', '_')}.npz", **found)


def _walk(peer: Peer, x: torch.Tensor, num_rows: int, *, noise: float = 1.0) -> torch.Tensor:
    """Ho et al. 2020, algorithm 2, from ddpm_jax's coefficient tables, which are on the host."""
    for t, c_x_0, c_x_t, sigma in peer.rows[:num_rows]:
        bar = peer.bars[t]
        eps = peer.predict(x, torch.full((len(x),), t, device=x.device))
        x_0 = eps.mul_(-((1 - bar) ** 0.5)).add_(x).mul_(bar**-0.5)
        if peer.facts["sample.clip_x_0"]:
            x_0.clamp_(-1, 1)
        x = x_0.mul_(c_x_0).add_(x, alpha=c_x_t)
        if noise:
            x.add_(torch.randn_like(x), alpha=sigma)
    return x


def _pictures(job: Job, peer: Peer) -> torch.Tensor:
    height, width, channels = peer.facts["image_shape"]
    return torch.randn(job.batch_size, channels, height, width, device=peer.device)


def _forward(job: Job, peer: Peer) -> Callable[[], None]:
    x, t = _pictures(job, peer), torch.zeros(job.batch_size, dtype=torch.long, device=peer.device)
    peer.module.eval()

    def call() -> None:
        with torch.inference_mode():
            peer.predict(x, t)
        peer.finish()

    return call


def _sample(job: Job, peer: Peer) -> Callable[[], None]:
    x = _pictures(job, peer)
    peer.module.eval()

    def call() -> None:
        with torch.inference_mode():
            _walk(peer, x, job.num_rows)
        peer.finish()

    return call


def _train(job: Job, peer: Peer) -> Callable[[], None]:
    facts, device = peer.facts, peer.device
    height, width, channels = facts["image_shape"]
    images = torch.randint(0, 256, (job.batch_size, channels, height, width), dtype=torch.uint8, device=device)
    bar = peer.tensor("alphas_bar")
    signal, noise = bar.sqrt(), (1 - bar).sqrt()
    params = [p for p in peer.module.parameters() if p.requires_grad]
    ema = [p.detach().clone() for p in params]
    betas = (facts["optim.b1"], facts["optim.b2"])
    adam = torch.optim.Adam(params, facts["optim.learning_rate"], betas, facts["optim.eps"], fused=True)
    peer.module.train()

    def call() -> None:
        x_0 = images.float().div_(127.5).sub_(1)
        if facts["data.flip"]:
            flips = torch.rand(job.batch_size, 1, 1, 1, device=device) < 0.5
            x_0 = torch.where(flips, x_0.flip(3), x_0)
        t = torch.randint(0, len(bar), (job.batch_size,), device=device)
        eps = torch.randn_like(x_0)
        x_t = signal[t][:, None, None, None] * x_0 + noise[t][:, None, None, None] * eps
        torch.nn.functional.mse_loss(peer.predict(x_t, t), eps).backward()
        if facts["optim.grad_clip"]:
            torch.nn.utils.clip_grad_norm_(params, facts["optim.grad_clip"], foreach=True)
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - facts["optim.ema_decays"][0])
        peer.finish()

    return call


if __name__ == "__main__":
    serve(setup)
