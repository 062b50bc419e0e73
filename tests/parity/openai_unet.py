"""OpenAI's U-Net (improved-diffusion, guided-diffusion) as one plain PyTorch function over weights by their names."""

import math

import torch
import torch.nn.functional as F


class Weights(dict):
    """Tensors by name, made when they are first asked for: random ones, or on the device "meta" shapes alone."""

    def __init__(self, seed=0, device="cpu"):
        super().__init__()
        self._device, self._generator = device, torch.Generator().manual_seed(seed)

    def __call__(self, name, *shape):
        if name not in self:
            if self._device == "meta":
                self[name] = torch.empty(shape, device="meta")
            else:
                noise = torch.randn(shape, generator=self._generator)
                fan_in = math.prod(shape[1:])
                # A norm's scale and any bias are one-dimensional: around 1 it would say nothing of a swap.
                self[name] = noise / fan_in**0.5 if len(shape) > 1 else 0.3 * noise
        assert self[name].shape == shape, name
        return self[name]

    def count(self):
        return sum(tensor.numel() for tensor in self.values())


def _conv(w, name, x, width, side=3, stride=1):
    kernel = w(f"{name}.weight", width, x.shape[1], side, side)
    return F.conv2d(x, kernel, w(f"{name}.bias", width), stride=stride, padding=side // 2)


def _dense(w, name, x, width):
    return x @ w(f"{name}.weight", width, x.shape[1]).T + w(f"{name}.bias", width)


def _norm(w, name, x, groups):
    channels = x.shape[1]
    return F.group_norm(x, groups, 1 + w(f"{name}.weight", channels), w(f"{name}.bias", channels), eps=1e-5)


def _resized(x, resize):
    if resize == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2, mode="nearest") if resize == "up" else x


def _block(w, name, x, time, width, net, resize=""):
    h = _resized(F.silu(_norm(w, f"{name}.in_layers.0", x, net["groups"])), resize)
    h = _conv(w, f"{name}.in_layers.2", h, width)
    by_time = _dense(w, f"{name}.emb_layers.1", F.silu(time), width * (1 + net["scale_shift"]))[:, :, None, None]
    if net["scale_shift"]:
        h = _norm(w, f"{name}.out_layers.0", h, net["groups"])
        h = h * (1 + by_time[:, :width]) + by_time[:, width:]
    else:
        h = _norm(w, f"{name}.out_layers.0", h + by_time, net["groups"])
    h = _conv(w, f"{name}.out_layers.3", F.silu(h), width)
    skip = _resized(x, resize)
    return h + (skip if x.shape[1] == width else _conv(w, f"{name}.skip_connection", skip, width, side=1))


def _attention(w, name, x, net):
    batch, channels, height, wide = x.shape
    heads = channels // net["head_channels"] if net["head_channels"] else net["heads"]
    size = channels // heads
    h = _norm(w, f"{name}.norm", x, net["groups"]).reshape(batch, channels, -1)
    kernel, bias = w(f"{name}.qkv.weight", 3 * channels, channels, 1), w(f"{name}.qkv.bias", 3 * channels)
    fused = kernel[:, :, 0] @ h + bias[:, None]
    out = []
    for head in range(heads):
        if net["new_order"]:  # all q, then all k, then all v
            starts = [part * channels + head * size for part in range(3)]
        else:  # q, k and v of one head beside each other
            starts = [(3 * head + part) * size for part in range(3)]
        q, k, v = (fused[:, start : start + size] for start in starts)
        weights = torch.softmax(q.transpose(1, 2) @ k / size**0.5, dim=-1)
        out.append(v @ weights.transpose(1, 2))
    kernel, bias = w(f"{name}.proj_out.weight", channels, channels, 1), w(f"{name}.proj_out.bias", channels)
    return x + (kernel[:, :, 0] @ torch.cat(out, dim=1) + bias[:, None]).reshape(x.shape)


def _attention_pool(w, name, x, net):
    """The mean as a first token, positions, one attention, and its first token."""
    batch, channels, height, wide = x.shape
    tokens = x.reshape(batch, channels, -1)
    tokens = torch.cat([tokens.mean(2, keepdim=True), tokens], dim=2)
    tokens = tokens + w(f"{name}.positional_embedding", channels, height * wide + 1)
    kernel, bias = w(f"{name}.qkv_proj.weight", 3 * channels, channels, 1), w(f"{name}.qkv_proj.bias", 3 * channels)
    q, k, v = (kernel[:, :, 0] @ tokens + bias[:, None]).split(channels, dim=1)  # all q, then all k, then all v
    out, size = [], net["head_channels"]
    for start in range(0, channels, size):
        part = slice(start, start + size)
        weights = torch.softmax(q[:, part, :1].transpose(1, 2) @ k[:, part] / size**0.5, dim=-1)
        out.append(v[:, part] @ weights.transpose(1, 2))
    kernel, bias = w(f"{name}.c_proj.weight", net["out"], channels, 1), w(f"{name}.c_proj.bias", net["out"])
    return torch.cat(out, dim=1)[:, :, 0] @ kernel[:, :, 0].T + bias


def openai_classifier(w, x, t, **net):
    """Logits [B, out] of x [B, C, H, W]; `net` as for `openai_unet`, without classes."""
    h, _, _ = _way_down(w, x, t, None, net)
    return _attention_pool(w, "out.2", F.silu(_norm(w, "out.0", h, net["groups"])), net)


def openai_unet(w, x, t, labels=None, **net):
    """[B, C, H, W] in and out; `net`: channels, mults, blocks, attention (heights), heads, head_channels, scale_shift,
    new_order, resample_in_blocks, classes, out, groups, num_steps where t is rescaled."""
    h, skips, time = _way_down(w, x, t, labels, net)
    number = 0
    for level, mult in reversed(list(enumerate(net["mults"]))):
        for i in range(net["blocks"] + 1):
            parts = 1
            h = torch.cat([h, skips.pop()], 1)
            h = _block(w, f"output_blocks.{number}.0", h, time, int(mult * net["channels"]), net)
            if h.shape[2] in net["attention"]:
                h = _attention(w, f"output_blocks.{number}.{parts}", h, net)
                parts += 1
            if level and i == net["blocks"]:
                name = f"output_blocks.{number}.{parts}"
                if net["resample_in_blocks"]:
                    h = _block(w, name, h, time, h.shape[1], net, "up")
                else:
                    h = _conv(w, f"{name}.conv", _resized(h, "up"), h.shape[1])
            number += 1
    return _conv(w, "out.2", F.silu(_norm(w, "out.0", h, net["groups"])), net["out"])


def openai_super_res(w, x, t, labels, small, **net):
    """The upsamplers: a U-Net that gets x and, after it, the small image at the size of x, between pixel centres."""
    large = F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=False)
    return openai_unet(w, torch.cat([x, large], dim=1), t, labels, **net)


def _way_down(w, x, t, labels, net):
    """The result of the middle, what the way up takes over, and the embedding of t."""
    channels, mults = net["channels"], net["mults"]
    t = t * (1000 / net["num_steps"]) if net["num_steps"] else t
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(channels // 2, device=t.device) / (channels // 2))
    time = _dense(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()], dim=1), 4 * channels)
    time = _dense(w, "time_embed.2", F.silu(time), 4 * channels)
    if net["classes"]:
        time = time + w("label_emb.weight", net["classes"], 4 * channels)[labels]
    h = _conv(w, "input_blocks.0.0", x, int(mults[0] * channels))
    skips, number = [h], 0
    for level, mult in enumerate(mults):
        for _ in range(net["blocks"]):
            number += 1
            h = _block(w, f"input_blocks.{number}.0", h, time, int(mult * channels), net)
            if h.shape[2] in net["attention"]:
                h = _attention(w, f"input_blocks.{number}.1", h, net)
            skips.append(h)
        if level + 1 < len(mults):
            number += 1
            if net["resample_in_blocks"]:
                h = _block(w, f"input_blocks.{number}.0", h, time, h.shape[1], net, "down")
            else:
                h = _conv(w, f"input_blocks.{number}.0.op", h, h.shape[1], stride=2)
            skips.append(h)
    h = _block(w, "middle_block.0", h, time, h.shape[1], net)
    h = _attention(w, "middle_block.1", h, net)
    h = _block(w, "middle_block.2", h, time, h.shape[1], net)
    return h, skips, time
