"""All that changes in training, as one pytree."""

import re
from collections.abc import Iterable, Mapping
from typing import no_type_check

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from ddpm_jax.runtime.errors import UserError, arg

RESERVED_ITEMS = ("params", "opt_state", "config", "metrics")  # of a checkpoint, beside those of the averages


def ema_item(name: str, primary: str) -> str:
    """The item of a checkpoint that holds the average `name`; the primary one has the name from when it was alone."""
    return "ema_params" if name == primary else f"ema_{name}"


# A pytree's leaves may be shapes or shardings, so its fields are not checked in tests.
@no_type_check
@flax.struct.dataclass
class TrainState:
    """All that changes in training. Randomness and batches are functions of (seed, step): no key is kept."""

    step: Int[Array, ""]  # the number of updates made
    params: PyTree
    ema: Mapping[str, PyTree]  # the averages of the parameters by name
    opt_state: PyTree
    # By name, what is not trained by a gradient: "t_history" of a time sampler that remembers something.
    extra: Mapping[str, PyTree] = flax.struct.field(default_factory=dict)
    # The average that is sampled and measured. Not the first of `ema`: JAX sorts the keys of a dict.
    primary: str = flax.struct.field(pytree_node=False, kw_only=True)

    @property
    def ema_params(self) -> PyTree:
        """The primary average."""
        return self.ema[self.primary]

    def items(self) -> dict[str, PyTree]:
        """The trees by the names that they have in a checkpoint, where the step is the folder's name."""
        averages = {ema_item(name, self.primary): tree for name, tree in self.ema.items()}
        extra = {name: {"value": tree} if _is_one_array(tree) else tree for name, tree in self.extra.items()}
        return {"params": self.params, **averages, "opt_state": self.opt_state, **extra}

    def with_items(self, step: Int[Array, ""], items: Mapping[str, PyTree]) -> "TrainState":
        """The state of `step` with other trees, by the names of `items`."""
        ema = {name: items[ema_item(name, self.primary)] for name in self.ema}
        extra = {name: items[name]["value"] if _is_one_array(old) else items[name] for name, old in self.extra.items()}
        return self.replace(step=step, params=items["params"], ema=ema, opt_state=items["opt_state"], extra=extra)


def _is_one_array(tree: PyTree) -> bool:
    """Whether it is a leaf; Orbax saves no item that is one."""
    return jax.tree.structure(tree).num_nodes == 1 and jax.tree.structure(tree).num_leaves == 1


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    ema_names: Iterable[str],
    extra: Mapping[str, PyTree] | None = None,
) -> TrainState:
    """Step 0; every average starts at the parameters, and what is not trained by a gradient at `extra`.

    Args:
      ema_names: of the averages, such as the `ema_decays` of the train step; the first is the primary one.

    Raises:
      UserError: no name.
      ValueError: a name twice, or an `extra` whose name cannot be that of an item of a checkpoint, or is taken.
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
    # Copies, so that a step may donate all without donating one buffer twice.
    ema = {name: jax.tree.map(jnp.copy, params) for name in names}
    return TrainState(
        jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), dict(extra or {}), primary=names[0]
    )
