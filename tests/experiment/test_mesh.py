"""One program, any mesh: parameters whole or cut, on 1 to 8 devices, the same losses, samples and checkpoints."""

import jax
import numpy as np
import optax
import pytest

from ddpm_jax.data.batch import Batch
from ddpm_jax.experiment import sampler_factory
from ddpm_jax.experiment.build import build_experiment
from ddpm_jax.experiment.config_json import config_to_json
from ddpm_jax.runtime.devices import batch_sharded, local_mesh, make_mesh, state_sharded
from ddpm_jax.runtime.errors import UserError
from ddpm_jax.workdir.checkpoints import Checkpoints

# Wide enough that most parameters have the 1,024 numbers from which they are cut.
WIDE = ("conv_net.channels=32", "optim.learning_rate=2e-4", "optim.ema_decays=0.9,0.5", "optim.ema_start=constant")
# (devices, mesh.fsdp): data alone, parameters alone, both.
MESHES = ((1, 1), (2, 1), (4, 2), (8, 1), (8, 8))


@pytest.fixture(scope="module")
def trained(tiny_config):
    """(devices, fsdp) -> (experiment, the losses of three steps, the state after them)."""
    batch = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    done = {}

    def trained(devices, fsdp):
        if (devices, fsdp) not in done:
            experiment = build_experiment(tiny_config(*WIDE, f"train.num_devices={devices}", f"mesh.fsdp={fsdp}"))
            state, losses, step_fn = experiment.fresh_state(), [], experiment.jitted_step()
            images = jax.device_put(Batch(batch), batch_sharded(experiment.mesh))
            for _ in range(3):
                state, metrics = step_fn(state, images, experiment.keys.train)
                losses.append(float(metrics["loss"]))
            done[devices, fsdp] = experiment, losses, state
        return done[devices, fsdp]

    return trained


@pytest.mark.parametrize(("devices", "fsdp"), MESHES[1:])
def test_trains_alike_on_every_mesh(trained, devices, fsdp):
    _, wanted, one = trained(1, 1)
    _, losses, state = trained(devices, fsdp)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    assert state.primary == "0.9" and state.ema.keys() == {"0.9", "0.5"}
    # Adam divides by sqrt(nu): where a gradient is noise, so is its update, of at most the learning rate a step.
    params = [jax.tree.leaves(jax.device_get(s.params)) for s in (one, state)]
    far = [np.abs(a - b) for a, b in zip(*params, strict=True)]
    assert np.mean(np.concatenate([d.ravel() for d in far])) < 1e-6
    assert max(d.max() for d in far) < 2 * 3 * 2e-4


def test_parameters_moments_and_ema_are_cut_alike(trained):
    experiment, _, state = trained(8, 8)
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    total, here = 0, 0
    for tree in (state.params, *state.ema.values(), *moments):
        for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(state.params), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
            assert len(leaf.sharding.device_set) == 8
            total, here = total + leaf.nbytes, here + leaf.addressable_shards[0].data.nbytes
    assert here < 0.2 * total  # an eighth, and the small arrays whole
    assert experiment.mesh.shape == {"data": 1, "fsdp": 8}


def test_only_long_arrays_are_cut_and_along_their_longest_axis():
    mesh = make_mesh(8, 4)
    shapes = {"kernel": (3, 3, 64, 128), "odd": (3, 3, 67, 33), "bias": (512,), "tall": (1024, 6), "scalar": ()}
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {name: tuple(sharding.spec) for name, sharding in state_sharded(mesh, shapes).items()}
    assert specs == {
        "kernel": (None, None, None, "fsdp"), "odd": (), "bias": (), "tall": ("fsdp",), "scalar": ()
    }  # fmt: skip
    assert {tuple(s.spec) for s in state_sharded(make_mesh(8, 1), shapes).values()} == {()}


def test_samples_of_cut_parameters(trained):
    pictures = []
    for devices, fsdp in ((1, 1), (8, 8)):
        experiment, _, _ = trained(devices, fsdp)
        table = sampler_factory.build_preview_table(experiment.config, experiment.process)
        generator = sampler_factory.build_generator(
            experiment.config, experiment.process, table, experiment.model, experiment.mesh
        )
        # The same weights on both: of one device, moved onto the other mesh.
        params = jax.device_put(jax.device_get(trained(1, 1)[2].ema_params), experiment.state_sharding.params)
        pictures.append(generator.generate(params, seed=0, num_samples=8).astype(int))
    np.testing.assert_allclose(pictures[0], pictures[1], atol=1)
    assert np.mean(pictures[0] != pictures[1]) < 0.01


def test_a_checkpoint_moves_between_meshes(trained, tmp_path):
    """Saved on 8 devices, read on 2, saved there, read on 1: the same bits."""
    _, _, state = trained(8, 8)
    wanted = jax.device_get(state)
    for number, mesh in enumerate(((2, 1), (4, 2), (1, 1))):
        experiment = trained(*mesh)[0]
        checkpoints = Checkpoints(str(tmp_path / str(number)), create=True)
        checkpoints.save(state, config_to_json(experiment.config))
        checkpoints.wait()
        state = checkpoints.restore_state(experiment.abstract_state)
        checkpoints.close()
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(experiment.state_sharding), strict=True):
            assert leaf.sharding == sharding
        for one, other in zip(jax.tree.leaves(jax.device_get(state)), jax.tree.leaves(wanted), strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("num_devices", "fsdp", "message"),
    [
        (8, 3, r"^fsdp must divide the number of devices, 8 \(0: all of them\); got 3$"),
        (0, 16, r"^fsdp must divide the number of devices, 8 \(0: all of them\); got 16$"),
        (2, -1, r"^fsdp must divide the number of devices, 2 \(0: all of them\); got -1$"),
        (9, 1, r"^num_devices must be in 0..8 \(0: all of them\); got 9$"),
    ],
)
def test_what_does_not_fit(num_devices, fsdp, message):
    with pytest.raises(UserError, match=message):
        make_mesh(num_devices, fsdp)


def test_a_batch_is_spread_over_both_axes():
    for mesh in (make_mesh(8, 1), make_mesh(8, 8), make_mesh(8, 2)):
        assert batch_sharded(mesh).shard_shape((16, 5)) == (2, 5)
        assert batch_sharded(mesh, axis=1).shard_shape((5, 16)) == (5, 2)


def test_the_devices_of_this_process():
    assert local_mesh(make_mesh(8, 4)).shape == {"data": 8, "fsdp": 1}


def test_fsdp_of_0_is_all_devices():
    assert make_mesh(4, 0).shape == {"data": 1, "fsdp": 4}
