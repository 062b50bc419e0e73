"""Everything that changes during training, as one pytree."""

import re
from collections.abc import Iterable, Mapping
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from ddpm_jax.runtime.errors import UserError, arg

RESERVED_ITEMS = ("params", "opt_state", "config", "metrics")  # of a checkpoint, in addition to the averages


def ema_item(name: str, primary: str) -> str:
    """The checkpoint item that holds the average `name`; the primary average is always "ema_params"."""
    return "ema_params" if name == primary else f"ema_{name}"


# A pytree's leaves may be shapes or shardings, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class TrainState:
    """Everything that changes in training. Noise and batches are functions of (seed, step), so no key is stored."""

    step: Int[Array, ""]  # the number of updates made
    params: PyTree
    ema: Mapping[str, PyTree]  # the averages of the parameters by name
    opt_state: PyTree
    # By name, state that is not trained by a gradient, such as "t_history" of a time sampler with memory.
    extra: Mapping[str, PyTree] = flax.struct.field(default_factory=dict)
    # The average that is sampled and evaluated. Not always the first of `ema`, because JAX sorts the keys of a dict.
    primary: str = flax.struct.field(pytree_node=False, kw_only=True)

    @property
    def ema_params(self) -> PyTree:
        """The primary average."""
        return self.ema[self.primary]

    def items(self) -> dict[str, PyTree]:
        """The trees by their names in a checkpoint; the step is the name of the checkpoint's folder."""
        averages = {ema_item(name, self.primary): tree for name, tree in self.ema.items()}
        extra = {name: {"value": tree} if _is_one_array(tree) else tree for name, tree in self.extra.items()}
        return {"params": self.params, **averages, "opt_state": self.opt_state, **extra}

    def with_items(self, step: Int[Array, ""], items: Mapping[str, PyTree]) -> "TrainState":
        """The state at `step` with other trees, named as in `items`."""
        ema = {name: items[ema_item(name, self.primary)] for name in self.ema}
        extra = {name: items[name]["value"] if _is_one_array(old) else items[name] for name, old in self.extra.items()}
        return self.replace(step=step, params=items["params"], ema=ema, opt_state=items["opt_state"], extra=extra)


def _is_one_array(tree: PyTree) -> bool:
    """Whether the tree is a single leaf, which Orbax cannot save as an item."""
    return jax.tree.structure(tree).num_nodes == 1 and jax.tree.structure(tree).num_leaves == 1


def average_of(leaf: Array) -> Array:
    """A copy of a parameter to start an average from: float32, unless it is no float or has more digits."""
    leaf = jnp.copy(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    ema_names: Iterable[str],
    extra: Mapping[str, PyTree] | None = None,
) -> TrainState:
    """The state at step 0: every average starts at the parameters, and untrained state starts at `extra`.

    Args:
      ema_names: names of the averages, such as the `ema_decays` of the train step; the first is the primary one.

    Raises:
      UserError: no name.
      ValueError: a duplicate name, or a name in `extra` that is taken or cannot be the name of a checkpoint item.
    """
    names = tuple(ema_names)
    if isinstance(ema_names, str) or len(set(names)) < len(names):
        raise ValueError(f"ema_names must be different names; got {ema_names!r}")
    unfit = [name for name in extra or {} if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", str(name))]
    if unfit:
        raise ValueError(f"the names in extra must be of up to 64 letters, digits and _; got {unfit}")
    taken = [name for name in extra or {} if name in RESERVED_ITEMS or name.startswith("ema_")]
    if taken:
        raise ValueError(f"extra must not have the names {[*RESERVED_ITEMS, 'ema_*']}; got {taken}")
    if not names:
        raise UserError(f"{arg('ema_names')} must name at least one average; got none")
    # Copies, so that a step may donate the whole state without donating one buffer twice. In float32, because a step of
    # an average is smaller than what bfloat16 resolves.
    ema = {name: jax.tree.map(average_of, params) for name in names}
    return TrainState(
        jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), dict(extra or {}), primary=names[0]
    )
