"""What every network that a config can name must do; one that is added is tested here by its line in `SMALL`."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.experiment.packaged_configs import base_config
from ddpm_jax.models.networks import NETWORKS, SHARED_FIELDS
from ddpm_jax.models.parameters import init_params
from ddpm_jax.runtime.errors import UserError

SMALL = {
    "unet": dict(channels=8, channel_mults=(1,), num_res_blocks=1, attention_resolutions=(), num_groups=4),
    "conv_net": dict(channels=8, num_layers=2),
}
SHAPE, BATCH = (8, 8, 3), 8
TOLERANCE = 2e-5  # some 20 layers of sums of some 100 products, in another order


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(kind):
    """fields -> (the small network with them, random parameters, apply jitted)."""
    done = {}

    def made(**fields):
        key = tuple(sorted(fields.items()))
        if key not in done:
            network = NETWORKS[kind].module(**SMALL[kind], **fields)
            rng = np.random.default_rng(1)
            params = jax.tree.map(
                lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), shapes_of(network)
            )
            done[key] = network, params, jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs))
        return done[key]

    return made


def shapes_of(network):
    return jax.eval_shape(lambda key: init_params(network, key, SHAPE), jax.random.key(0))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.standard_normal((BATCH, *SHAPE)), jnp.float32), jnp.arange(BATCH) * 100


@pytest.mark.parametrize("sizes", [(), (6,), (4, 3, 2)])
def test_conv_net_takes_any_number_of_axes(sizes):
    """A pattern that is shifted in the input is shifted in the output, along every axis, away from the borders."""
    network = NETWORKS["conv_net"].module(channels=8, num_layers=1, out_channels=5)
    rng = np.random.default_rng(0)
    # Receptive field 3 in every direction: the border is 3 wide.
    shape = tuple(n + 8 for n in sizes)
    x_t = np.zeros((1, *shape, 2), np.float32)
    x_t[(0, *(4 for _ in sizes))] = 1.0
    params = init_params(network, jax.random.key(0), (*shape, 2))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), params)
    apply = jax.jit(lambda x_t: network.apply({"params": params}, x_t, jnp.array([3])))
    out = np.asarray(apply(x_t))
    assert out.shape == (1, *shape, 5)
    inside = (0, *(slice(4, n - 4) for n in shape))
    for axis in range(1, len(shape) + 1):
        shifted = np.asarray(apply(np.roll(x_t, 1, axis)))
        np.testing.assert_allclose(np.roll(shifted, -1, axis)[inside], out[inside], rtol=TOLERANCE, atol=TOLERANCE)
        assert not np.allclose(shifted, out)


def test_the_unet_refuses_other_data_than_images():
    with pytest.raises(UserError, match=r"image_size must be \(height, width\) for the U-Net; got \(8,\)"):
        NETWORKS["unet"].check(NETWORKS["unet"].module(**SMALL["unet"]), (8,))


def test_every_network_is_tested():
    assert sorted(SMALL) == sorted(NETWORKS)


def test_its_config_group_has_its_own_fields_at_their_defaults(kind):
    module = NETWORKS[kind].module
    fields = {f.name: f.default for f in dataclasses.fields(module) if f.name not in ("parent", "name", "null_class")}
    assert set(SHARED_FIELDS) | {"out_channels"} < fields.keys()
    of_condition = ("out_channels", "spatial", "takes_level")
    own = {name: value for name, value in fields.items() if name not in (*SHARED_FIELDS, *of_condition)}
    assert {**base_config()[kind]} == own
    shared = {name: base_config().model[name] for name in SHARED_FIELDS}
    assert shared == {name: fields[name] for name in SHARED_FIELDS} | {"dtype": jnp.dtype(fields["dtype"]).name}


def test_the_prediction_has_the_shape_of_the_images_or_the_channels_that_are_asked_for(made, inputs):
    for fields, channels in (({}, 3), ({"out_channels": 6}, 6)):
        network, params, _ = made(**fields)
        out = jax.eval_shape(lambda params: network.apply({"params": params}, *inputs), params)  # noqa: B023
        assert out.shape == (BATCH, 8, 8, channels) and out.dtype == jnp.float32


def test_an_image_depends_on_itself_alone(made, inputs):
    x_t, t = inputs
    _, params, apply = made()
    out = apply(params, x_t, t)
    others = x_t.at[1:].set(7.0)
    np.testing.assert_allclose(apply(params, others, t.at[1:].set(3))[0], out[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert np.abs(apply(params, others, t)[1] - out[1]).max() > 1e-3


def test_the_step_is_seen_and_may_lie_between_two(made, inputs):
    x_t, t = inputs
    _, params, apply = made()
    out = [np.asarray(apply(params, x_t, t + shift)) for shift in (0.0, 1e-4, 0.5)]
    assert np.abs(out[1] - out[0]).max() < 0.01 * np.abs(out[2] - out[0]).max()
    np.testing.assert_allclose(out[0], apply(params, x_t, t), rtol=TOLERANCE, atol=TOLERANCE)


def test_labels_are_seen_needed_and_checked(made, inputs):
    network, params, apply = made(num_classes=3)
    labels = jnp.array([0, 1, 2, 0, 1, 2, 3, -1])
    out = np.asarray(apply(params, *inputs, {"label": labels}))
    assert np.isfinite(out[:6]).all() and np.isnan(out[6:]).all()
    other = np.asarray(apply(params, *inputs, {"label": labels.at[0].set(1)}))
    assert np.abs(other - out)[0].max() > 1e-3
    np.testing.assert_array_equal(other[1:6], out[1:6])
    # The row after the last class is for none, where there is one.
    network, params, apply = made(num_classes=3, null_class=True)
    out = np.asarray(apply(params, *inputs, {"label": labels}))
    assert np.isfinite(out[:7]).all() and np.isnan(out[7]).all()
    with pytest.raises(UserError, match="the network takes the condition"):
        network.apply({"params": params}, *inputs)
    plain, params, _ = made()
    with pytest.raises(UserError, match="the network takes the condition"):
        plain.apply({"params": params}, *inputs, {"label": labels})


def test_an_image_and_its_level_are_seen_and_needed(kind, inputs):
    """With 0 for the weights of both it is the network that is told nothing; and it has the parameters of that one."""
    x_t, t = inputs
    network = NETWORKS[kind].module(**SMALL[kind], spatial=("shown",), takes_level=True, out_channels=3)
    condition = {"shown": jnp.roll(x_t, 1, axis=0)[..., :2], "level": jnp.arange(BATCH)}
    one = {name: rows[:1] for name, rows in condition.items()}
    shapes = jax.eval_shape(lambda key: init_params(network, key, SHAPE, one), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)
    apply = jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs))
    out = np.asarray(apply(params, x_t, t, condition))
    for name in condition:
        other = np.asarray(apply(params, x_t, t, condition | {name: condition[name].at[0].add(3)}))
        assert np.abs(other - out)[0].max() > 1e-3
        np.testing.assert_array_equal(other[1:], out[1:])
    with pytest.raises(UserError, match=r"the network takes the condition \['level', 'shown'\]; got \['shown'\]"):
        network.apply({"params": params}, x_t, t, {"shown": condition["shown"]})
    conv_in = params["conv_in"]["kernel"]
    told = {name: jax.tree.map(jnp.zeros_like, layer) for name, layer in params.items() if name.startswith("level")}
    assert told
    deaf = params | told | {"conv_in": params["conv_in"] | {"kernel": conv_in.at[..., 3:, :].set(0.0)}}
    plain = {name: layer for name, layer in deaf.items() if name not in told}
    plain["conv_in"] = plain["conv_in"] | {"kernel": conv_in[..., :3, :]}
    alone = NETWORKS[kind].module(**SMALL[kind])
    assert jax.tree.structure(shapes_of(alone)) == jax.tree.structure(plain)
    wanted = jax.jit(lambda params: alone.apply({"params": params}, x_t, t))(plain)
    np.testing.assert_allclose(apply(deaf, x_t, t, condition), wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_training_is_a_function_of_the_key(made, inputs):
    network, params, _ = made()

    @jax.jit
    def train(key):
        return network.apply({"params": params}, *inputs, train=True, rngs={"dropout": key})

    np.testing.assert_array_equal(train(jax.random.key(1)), train(jax.random.key(1)))


def test_remat_changes_no_parameter_and_no_gradient(made, inputs):
    gradients = []
    for remat in (False, True):
        network, params, _ = made(remat=remat)

        def loss(params, network=network):
            return jnp.sum(jnp.sin(network.apply({"params": params}, *inputs)))

        gradients.append(jax.jit(jax.grad(loss))(params))
    plain, remat = gradients
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        assert np.abs(one - other).max() < 1e-4 * largest
    assert jax.tree.structure(plain) == jax.tree.structure(remat)


def test_half_precision_is_of_the_computation_alone(made, inputs):
    _, params, apply = made()
    _, half_params, half_apply = made(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half_params)} == {jnp.dtype("float32")}
    out, half = apply(params, *inputs), half_apply(params, *inputs)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - out).max() < 0.1 * np.abs(out).max()


def test_devices_do_not_speak_to_each_other(made, inputs):
    """Forward, with the batch cut over eight devices and the parameters whole."""
    _, params, apply = made()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    whole, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    arguments = jax.device_put(params, whole), *jax.device_put(inputs, cut)
    compiled = apply.lower(*arguments).compile()
    assert not re.findall(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", compiled.as_text())
    np.testing.assert_allclose(compiled(*arguments), apply(params, *inputs), rtol=TOLERANCE, atol=TOLERANCE)


def test_exports(made, inputs):
    _, params, apply = made()
    exported = jax.export.export(apply)(params, *inputs)
    np.testing.assert_array_equal(exported.call(params, *inputs), apply(params, *inputs))
