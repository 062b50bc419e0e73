"""Ho et al. 2020's network as plain NumPy over variables by the names of their TensorFlow code; slow, float64."""

import numpy as np


class Variables(dict):
    """Random arrays by name, made when they are first asked for."""

    def __init__(self, seed=0):
        super().__init__()
        self._rng = np.random.default_rng(seed)

    def __call__(self, name, *shape):
        if name not in self:
            noise = self._rng.standard_normal(shape)
            spread = 1 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.3
            self[name] = np.float32(spread * noise + name.endswith("gamma"))
        assert self[name].shape == shape, name
        return self[name].astype(np.float64)


def _swish(x):
    return x / (1 + np.exp(-x))


def _nin(v, name, x, width):
    """The same matrix at every pixel, or of rows."""
    return x @ v(f"{name}/W", x.shape[-1], width) + v(f"{name}/b", width)


def _conv(v, name, x, width, stride=1):
    """3x3 with TensorFlow's SAME: at stride 2 an even side is padded behind alone."""
    front = 1 if stride == 1 else 0
    padded = np.pad(x, ((0, 0), (front, 1), (front, 1), (0, 0)))
    kernel, bias = v(f"{name}/W", 3, 3, x.shape[-1], width), v(f"{name}/b", width)
    out = np.zeros((len(x), x.shape[1] // stride, x.shape[2] // stride, width))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = padded[:, stride * i : stride * i + 3, stride * j : stride * j + 3]
            out[:, i, j] = np.tensordot(window, kernel, 3) + bias
    return out


def _norm(v, name, x, groups):
    """The defaults of tf.contrib: epsilon 1e-6."""
    batch, height, width, channels = x.shape
    grouped = x.reshape(batch, height * width, groups, channels // groups)
    mean, var = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape) * v(f"{name}/gamma", channels) + v(
        f"{name}/beta", channels
    )


def _nearest(x):
    """Twice the size, the corners of both aligned: pixel i is the nearest to i (H - 1)/(2H - 1)."""
    for axis in (1, 2):
        side = x.shape[axis]
        x = np.take(x, np.floor(np.arange(2 * side) * (side - 1) / (2 * side - 1) + 0.5).astype(int), axis)
    return x


def _block(v, name, x, time, width, groups):
    h = _conv(v, f"{name}/conv1", _swish(_norm(v, f"{name}/norm1", x, groups)), width)
    h = h + _nin(v, f"{name}/temb_proj", _swish(time), width)[:, None, None]
    h = _conv(v, f"{name}/conv2", _swish(_norm(v, f"{name}/norm2", h, groups)), width)
    return h + (x if x.shape[-1] == width else _nin(v, f"{name}/nin_shortcut", x, width))


def _attention(v, name, x, groups):
    batch, _, _, channels = x.shape
    h = _norm(v, f"{name}/norm", x, groups).reshape(batch, -1, channels)
    q, k, values = (_nin(v, f"{name}/{part}", h, channels) for part in "qkv")
    weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(channels))
    h = weights / weights.sum(-1, keepdims=True) @ values
    return x + _nin(v, f"{name}/proj_out", h, channels).reshape(x.shape)


def original_unet(v, x, t, *, channels, mults, blocks, attention, groups):
    """[B, H, W, C] in and out; `attention`: heights."""
    half = channels // 2
    angles = t[:, None] * np.exp(-np.log(10000) / (half - 1) * np.arange(half))
    time = _nin(v, "model/temb/dense0", np.concatenate([np.sin(angles), np.cos(angles)], 1), 4 * channels)
    time = _nin(v, "model/temb/dense1", _swish(time), 4 * channels)
    skips = [_conv(v, "model/conv_in", x, channels)]
    last = len(mults) - 1
    for level, mult in enumerate(mults):
        for i in range(blocks):
            h = _block(v, f"model/down_{level}/block_{i}", skips[-1], time, channels * mult, groups)
            if h.shape[1] in attention:
                h = _attention(v, f"model/down_{level}/attn_{i}", h, groups)
            skips.append(h)
        if level < last:
            skips.append(_conv(v, f"model/down_{level}/downsample/conv", h, h.shape[-1], stride=2))
    h = skips[-1]
    h = _block(v, "model/mid/block_1", h, time, h.shape[-1], groups)
    h = _attention(v, "model/mid/attn_1", h, groups)
    h = _block(v, "model/mid/block_2", h, time, h.shape[-1], groups)
    for level in range(last, -1, -1):
        for i in range(blocks + 1):
            h = np.concatenate([h, skips.pop()], -1)
            h = _block(v, f"model/up_{level}/block_{i}", h, time, channels * mults[level], groups)
            if h.shape[1] in attention:
                h = _attention(v, f"model/up_{level}/attn_{i}", h, groups)
        if level:
            h = _conv(v, f"model/up_{level}/upsample/conv", _nearest(h), h.shape[-1])
    return _conv(v, "model/conv_out", _swish(_norm(v, "model/norm_out", h, groups)), x.shape[-1])
