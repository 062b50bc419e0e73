"""Every mode and format decodes to what the eye would see, and resizing does not alias."""

import io

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.image_decoding import decode_image, fit_array


def _encoded(image: Image.Image, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def _decode(data: bytes, size=(8, 8), num_channels=3) -> np.ndarray:
    image = decode_image(data, image_size=size, num_channels=num_channels)
    assert image.dtype == np.uint8 and image.shape == (*size, num_channels)
    return image


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "WEBP", "JPEG", "GIF"])
def test_formats(picture, fmt):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(fmt, {})
    decoded = _decode(_encoded(picture(48, 48), fmt, **options), (48, 48))
    tolerance = {"JPEG": 4, "GIF": 26}.get(fmt, 0)  # GIF has 256 colours
    assert np.abs(decoded.astype(int) - np.asarray(picture(48, 48))).max() <= tolerance


def test_a_path_is_read_by_content_not_by_ending(picture, tmp_path):
    (tmp_path / "really_png.jpg").write_bytes(_encoded(picture(8, 8)))
    decoded = decode_image(tmp_path / "really_png.jpg", image_size=(8, 8), num_channels=3)
    np.testing.assert_array_equal(decoded, np.asarray(picture(8, 8)))


def test_grey_and_black_white():
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    np.testing.assert_array_equal(_decode(_encoded(grey), num_channels=1)[..., 0], np.asarray(grey))
    np.testing.assert_array_equal(_decode(_encoded(grey))[..., 2], np.asarray(grey))
    bits = Image.fromarray(np.eye(8, dtype=bool))
    np.testing.assert_array_equal(_decode(_encoded(bits), num_channels=1)[..., 0], 255 * np.eye(8))


def test_colour_to_grey_is_luma():
    decoded = _decode(_encoded(Image.new("RGB", (8, 8), (200, 100, 50))), num_channels=1)
    assert np.all(np.abs(decoded - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1)


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    decoded = _decode(_encoded(Image.fromarray(values)), num_channels=1)[..., 0]
    np.testing.assert_allclose(decoded, values / 257, atol=0.5)
    assert decoded[0, 0] == 0 and decoded[-1, -1] == 255 and 120 < decoded[4, 0] < 135


def test_cmyk_jpeg():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    red = _decode(_encoded(cmyk, "JPEG", quality=95), (16, 16)).reshape(-1, 3).mean(0)
    assert red[0] > 220 and red[1] < 40 and red[2] < 40


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(mode):
    opaque, clear = ((0, 0, 0, 255), (0, 0, 0, 0)) if mode == "RGBA" else ((0, 255), (0, 0))
    image = Image.new(mode, (8, 8), clear)
    image.paste(opaque, (0, 0, 4, 8))
    decoded = _decode(_encoded(image))
    assert np.all(decoded[:, :4] == 0) and np.all(decoded[:, 4:] == 255)


def test_half_transparent_is_half_white():
    decoded = _decode(_encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))))
    assert np.all(np.abs(decoded.astype(int) - 127) <= 1)


def test_palette_and_palette_with_transparency():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(1, (0, 0, 4, 8))
    np.testing.assert_array_equal(_decode(_encoded(image))[0, [0, 7]], [[10, 200, 30], [0, 0, 0]])
    for fmt in ("PNG", "GIF"):
        decoded = _decode(_encoded(image, fmt, transparency=0))
        np.testing.assert_array_equal(decoded[0, [0, 7]], [[10, 200, 30], [255, 255, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(picture, orientation):
    """The eight ways to store one picture decode to that picture."""
    upright = picture(16, 16)
    store = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }.get(orientation, [])
    stored = upright
    for step in store:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = _decode(_encoded(stored, "PNG", exif=exif), (16, 16))
    np.testing.assert_array_equal(decoded, np.asarray(upright))


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for fmt, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = _encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(_decode(data)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("data", [b"", b"text, no picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_raises(data):
    with pytest.raises(Exception):  # noqa: B017  Pillow's types, many
        _decode(data)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_truncated_image_raises(picture, fmt):
    data = _encoded(picture(64, 64), fmt)
    with pytest.raises(Exception):  # noqa: B017  not half a picture with grey below
        _decode(data[: len(data) // 2])


def test_formats_that_start_other_programs_are_refused():
    with pytest.raises(Image.UnidentifiedImageError):
        _decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")


@pytest.mark.parametrize("cell, factor", [(1, 4), (1, 8), (2, 16), (3, 7)])
def test_a_fine_checkerboard_shrinks_to_its_mean(cell, factor):
    """Against the area average, which has no aliasing; picking pixels would give 0 or 255."""
    n = 16 * factor
    y, x = np.mgrid[:n, :n]
    board = (((y // cell + x // cell) % 2) * 255).astype(np.uint8)
    area = board.reshape(16, factor, 16, factor).mean((1, 3))
    small = fit_array(board[..., None], image_size=(16, 16), num_channels=1)[..., 0]
    inner = np.abs(small.astype(float) - area)[1:-1, 1:-1]
    assert inner.max() <= 22 and np.abs(small.mean() - 127.5) < 2
    assert np.abs(small[1:-1, 1:-1] - 127.5).max() <= 22


def test_large_jpegs_are_not_aliased_either(picture):
    """The decoder's own shrinking and the boxes before the bicubic kernel agree with the area average."""
    large = picture(800, 1200)
    area = np.asarray(large, float)[:, 200:1000].reshape(16, 50, 16, 50, 3).mean((1, 3))
    small = _decode(_encoded(large, "JPEG", quality=95, subsampling=0), (16, 16))
    assert np.abs(small - area).max() <= 3


@pytest.mark.parametrize("height, width", [(40, 20), (20, 40), (7, 31), (64, 64), (5, 5)])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_covers_and_cuts_to_the_centre(picture, height, width, size):
    """Each gradient keeps its slope in pixels and its middle: no side is squeezed or shifted."""
    decoded = _decode(_encoded(picture(height, width)), size).astype(float)
    scale = max(size[0] / height, size[1] / width)
    for axis, channel, extent in ((1, 0, width), (0, 1, height)):
        profile = decoded[..., channel].mean(1 - axis)
        at = (np.arange(size[axis]) - (size[axis] - 1) / 2) / scale + (extent - 1) / 2
        expected = np.clip(at, 0, extent - 1) / (extent - 1) * 255
        inner = slice(1, -1)
        assert np.abs(profile - expected)[inner].max() <= 0.15 * 255 / min(extent, 16) + 1.5


def test_equal_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_array(image, image_size=(8, 12), num_channels=3), image)


def test_arrays_change_channels_and_keep_unusual_ones():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    colour = fit_array(image, image_size=(8, 8), num_channels=3)
    np.testing.assert_array_equal(colour, np.repeat(image, 3, -1))
    np.testing.assert_array_equal(fit_array(colour, image_size=(8, 8), num_channels=1), image)
    five = np.repeat(image, 5, -1)
    small = fit_array(five, image_size=(4, 4), num_channels=5)
    assert small.shape == (4, 4, 5) and np.ptp(small, axis=-1).max() == 0
    with pytest.raises(ValueError, match="5 channels cannot become 3"):
        fit_array(five, image_size=(4, 4), num_channels=3)
