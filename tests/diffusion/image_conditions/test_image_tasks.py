"""What a model is shown of an image, for every task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.diffusion.image_conditions import (
    TASKS,
    SuperResolution,
    gaussian_blur,
    grey,
    jpeg_round_trip,
    make_image_task,
)
from ddpm_jax.runtime.errors import UserError

MODULE = "ddpm_jax.diffusion.image_conditions.tasks"
NUM, SIZE = 6, (12, 18)
LEVELS = np.random.default_rng(0).integers(0, 256, (NUM, *SIZE, 3), dtype=np.uint8)
X_0 = jnp.asarray(LEVELS / 127.5 - 1, jnp.float32)
KEYS = jax.random.split(jax.random.key(0), NUM)
HOLES = {"inpaint", "uncrop"}
# Images of other sizes than multiples of the factor are refused, and 18 is no multiple of 4.
make_image_task = functools.partial(make_image_task, super_resolution=SuperResolution(factor=2))


@functools.cache
def program(name):
    return jax.jit(jax.vmap(make_image_task(name).make))


@functools.cache
def shown(name):
    return jax.tree.map(np.asarray, program(name)(X_0, KEYS))


@pytest.mark.parametrize("name", TASKS)
def test_shape_type_and_range(name):
    task, (image, known, level) = make_image_task(name), shown(name)
    assert image.shape == (NUM, *SIZE, task.num_channels(3)) and image.dtype == np.float32
    assert np.abs(image).max() <= 1
    assert task.name == name and task.has_hole == (name in HOLES) == (known is not None)
    assert level is None and task.max_level == 0
    if known is not None:
        assert known.shape == (NUM, *SIZE, 1) and known.dtype == np.float32 and set(np.unique(known)) == {0, 1}


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_is_its_images_one_by_one_and_x64_changes_no_number(name):
    """Another program may round elsewhere in the last digit, so that a level, or a coefficient of JPEG, falls to the
    other side of a half."""
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        make = jax.jit(make_image_task(name).make)
        one = jax.tree.map(lambda *leaves: np.stack(leaves), *map(make, X_0, KEYS))
    assert {leaf.dtype for leaf in jax.tree.leaves(one)} == {np.dtype(np.float32)}
    if name in HOLES:
        np.testing.assert_array_equal(one.known, shown(name).known)
    apart = np.abs(one.image - shown(name).image) * 127.5
    assert apart.max() < 1.1 or name == "jpeg"
    assert np.mean(apart > 0.1) < 0.01


@pytest.mark.parametrize("name", TASKS)
def test_an_image_depends_on_its_own_key(name):
    """Not on its neighbours, nor on its place in the batch."""
    order = np.array([3, 0, 5, 1, 4, 2])
    jax.tree.map(
        lambda got, wanted: np.testing.assert_array_equal(got, wanted[order]),
        program(name)(X_0[order], KEYS[order]), shown(name),
    )  # fmt: skip
    others = program(name)(X_0, jax.random.split(jax.random.key(1), NUM))
    same = np.all(np.asarray(others.image) == shown(name).image, axis=(1, 2, 3))
    assert same.all() if name in ("colourise", "super_resolve") else not same.all()


@pytest.mark.parametrize("name", sorted(HOLES))
def test_known_pixels_are_kept_and_others_are_0(name):
    image, known, _ = shown(name)
    np.testing.assert_array_equal(image, np.where(known == 1, X_0, 0))
    shares = 1 - known.mean(axis=(1, 2, 3))
    assert np.all((shares >= 0.1) & (shares <= 0.6))


def test_the_hole_hides_values_that_are_not_finite():
    known = np.ones((*SIZE, 1))
    known[2, 3] = 0
    image, *_ = make_image_task("inpaint").of_given(X_0[0].at[2, 3].set(jnp.nan), known)
    assert np.all(np.isfinite(image)) and not image[2, 3].any()


def test_grey_is_that_of_pillow():
    for levels, image in zip(LEVELS, shown("colourise").image, strict=True):
        wanted = np.asarray(Image.fromarray(levels).convert("L"), int)
        got = (image[..., 0] + 1) * 127.5
        np.testing.assert_allclose(got, np.round(got), atol=3e-5)
        np.testing.assert_array_equal(np.round(got), wanted)


def test_inpaint_has_the_share_of_its_settings(monkeypatch):
    def mask(key, height, width, share):
        assert share == (0.3, 0.4)
        return jnp.arange(height)[:, None, None] + jnp.zeros((1, width, 1)) < 3

    monkeypatch.setattr(f"{MODULE}.free_form_mask", mask)
    image, known, _ = make_image_task("inpaint", hole_share=(0.3, 0.4)).make(X_0[0], KEYS[0])
    np.testing.assert_array_equal(known, np.arange(SIZE[0])[:, None, None] + np.zeros((1, SIZE[1], 1)) < 3)
    np.testing.assert_array_equal(image[:3], X_0[0, :3])


def test_jpeg_is_a_round_trip_of_some_quality_in_the_range():
    make = jax.jit(make_image_task("jpeg", jpeg_quality=(5, 8), jpeg_subsampling="4:4:4").make)
    of_qualities = jax.vmap(lambda quality: jpeg_round_trip(X_0[0], quality, subsampling="4:4:4"))
    of_qualities = np.asarray(jax.jit(of_qualities)(jnp.arange(5, 9)))
    found = set()
    for key in jax.random.split(jax.random.key(0), 30):
        apart = np.mean(np.abs(np.asarray(make(X_0[0], key).image) - of_qualities), axis=(1, 2, 3))
        assert apart.min() < 0.1 * np.sort(apart)[1]
        found.add(5 + int(np.argmin(apart)))
    assert found == {5, 6, 7, 8}


def test_how_often_each_jpeg_quality_comes(monkeypatch):
    """exp(-q / 10), normalised; five standard deviations of the counts of 20,000 draws, and of their mean."""
    monkeypatch.setattr(f"{MODULE}.jpeg_round_trip", lambda x_0, quality, subsampling: jnp.full_like(x_0, quality))
    make = jax.jit(jax.vmap(lambda key: make_image_task("jpeg").make(jnp.zeros((1, 1, 1)), key).image[0, 0, 0]))
    drawn = np.asarray(make(jax.random.split(jax.random.key(0), 20_000))).astype(int)
    shares = np.exp(-np.arange(5, 31) / 10)
    wanted = 20_000 * shares / shares.sum()
    counts = np.bincount(drawn, minlength=31)
    assert counts[:5].sum() == 0 and len(counts) == 31
    assert np.all(np.abs(counts[5:] - wanted) < 5 * np.sqrt(wanted))
    mean = np.average(np.arange(5, 31), weights=shares)
    assert abs(drawn.mean() - mean) < 5 * drawn.std() / np.sqrt(20_000)


def test_deblur_is_a_blur_of_some_width_in_the_range(monkeypatch):
    monkeypatch.setattr(
        f"{MODULE}.gaussian_blur", lambda x_0, std, highest_std: jnp.full_like(x_0, std) + 0 * highest_std
    )
    task = make_image_task("deblur", blur_std=(0.7, 2.0))
    make = jax.jit(jax.vmap(lambda key: task.make(jnp.zeros((1, 1, 1)), key).image[0, 0, 0]))
    drawn = np.asarray(make(jax.random.split(jax.random.key(0), 2000)))
    assert 0.7 <= drawn.min() < 0.71 and 1.99 < drawn.max() <= 2.0
    assert abs(drawn.mean() - 1.35) < 5 * 1.3 / np.sqrt(12 * 2000)
    monkeypatch.undo()
    one = jax.jit(make_image_task("deblur", blur_std=(1.5, 1.5)).make)(X_0[0], KEYS[0]).image
    wanted = jax.jit(lambda x_0: gaussian_blur(x_0, 1.5, highest_std=1.5))(X_0[0])
    assert np.mean(np.abs(np.asarray(one) - np.asarray(wanted)) > 1e-6) < 0.01  # a level rounded to the other side


def test_what_a_user_gives():
    known = np.ones((*SIZE, 1), bool)
    known[3:5] = False
    for name in HOLES:
        for mask in (known, jnp.asarray(known, jnp.float32)):
            got = make_image_task(name).of_given(X_0[0], mask)
            np.testing.assert_array_equal(got.image, np.where(known, X_0[0], 0))
            np.testing.assert_array_equal(got.known, known)
            assert got.known.dtype == jnp.float32
    for name in ("jpeg", "deblur"):
        got = make_image_task(name).of_given(X_0[0], None)
        assert got.known is None
        np.testing.assert_array_equal(got.image, X_0[0])
    colourise = make_image_task("colourise")
    np.testing.assert_array_equal(colourise.of_given(X_0[0], None).image, grey(X_0[0]))
    np.testing.assert_array_equal(colourise.of_given(X_0[0, ..., :1], None).image, X_0[0, ..., :1])


@pytest.mark.parametrize("name", TASKS)
def test_equal_settings_give_one_task(name):
    one, same = make_image_task(name), make_image_task(name, hole_share=(0.1, 0.6), jpeg_quality=(5, 30))
    assert one is same and hash(one) == hash(same)
    other = make_image_task(name, hole_share=(0.2, 0.6), jpeg_quality=(5, 31), blur_std=(0.5, 4.0))
    assert (other is one) == (name in {"uncrop", "colourise", "super_resolve"})


@pytest.mark.parametrize("settings, message", [
    ({"name": "inpain"}, "name must be one of .* did you mean 'inpaint'"),
    ({"hole_share": (0.0, 0.5)}, "hole_share must be LOW,HIGH with 0 < LOW <= HIGH < 1; got 0.0,0.5"),
    ({"hole_share": (0.5, 1.0)}, "hole_share"), ({"hole_share": (0.5, 0.4)}, "hole_share"),
    ({"hole_share": (float("nan"), 0.4)}, "hole_share"), ({"hole_share": (0.5,)}, "hole_share .* got 0.5"),
    ({"jpeg_quality": (0, 5)}, "jpeg_quality must be LOW,HIGH with 1 <= LOW <= HIGH <= 100; got 0,5"),
    ({"jpeg_quality": (5, 101)}, "jpeg_quality"),
    ({"jpeg_subsampling": "4:2:2"}, "jpeg_subsampling must be one of"),
    ({"blur_std": (0.0, 1.0)}, "blur_std must be LOW,HIGH with 0.01 <= LOW <= HIGH <= 100; got 0.0,1.0"),
    ({"hole_share": (1e-50, 0.5)}, "hole_share"), ({"hole_share": (0.5, 1 - 1e-12)}, "hole_share"),
    ({"blur_std": (1e-50, 1e-49)}, "blur_std .* got 1e-50,1e-49"),
    ({"jpeg_quality": (1, 10**400)}, "jpeg_quality"),
    ({"blur_std": ()}, "blur_std .* got nothing"), ({"blur_std": (1.0, 101.0)}, "blur_std"),
])  # fmt: skip
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        make_image_task(**{"name": "inpaint"} | settings)


@pytest.mark.parametrize("settings", [
    {"jpeg_quality": (5.5, 7.5)}, {"hole_share": 0.5}, {"hole_share": ("a", "b")}, {"hole_share": "ab"},
    {"hole_share": None},
])  # fmt: skip
def test_other_types(settings):
    """A TypeError where the tests check types."""
    with pytest.raises((UserError, TypeError), match=next(iter(settings))):
        make_image_task("jpeg", **settings)


@pytest.mark.parametrize("name, channels", [("colourise", 1), ("colourise", 4), ("jpeg", 2)])
def test_channels_that_a_task_refuses(name, channels):
    task = make_image_task(name)
    message = rf"name='{name}' needs images with .*3 \(RGB\) channels; got {channels}"
    with pytest.raises(UserError, match=message):
        task.num_channels(channels)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(task.make, jnp.zeros((4, 4, channels)), KEYS[0])


def test_what_else_is_refused():
    for name in HOLES:
        task = make_image_task(name)
        with pytest.raises(UserError, match=f"name='{name}' needs images of at least 2 x 2 pixels; got 1 x 9"):
            task.make(jnp.zeros((1, 9, 3)), KEYS[0])
        with pytest.raises(UserError, match="known must be given"):
            task.of_given(X_0[0], None)
        with pytest.raises(UserError, match="known must be boolean.* take known > 127 of an image"):
            task.of_given(X_0[0], np.full((*SIZE, 1), 255))
    with pytest.raises(UserError, match="known must be None for name='jpeg'"):
        make_image_task("jpeg").of_given(X_0[0], np.ones((*SIZE, 1)))
    with pytest.raises(UserError, match=r"needs images with 1 \(grey\) or 3 \(RGB\) channels; got 2"):
        make_image_task("colourise").of_given(X_0[0, ..., :2], None)
    with pytest.raises(UserError, match=r"x_0 must have 3 channels \(RGB\); got 1"):
        grey(X_0[0, ..., :1])
