"""The flags of a run that several processes share, and how the processes connect."""

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping

from ddpm_jax.runtime.errors import UserError, check_between
from ddpm_jax.runtime.rendezvous import meet

_TIMEOUT_SECONDS = 300


def add_host_flags(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --num_processes and --process_id, for `joined`."""
    group = parser.add_argument_group("several hosts (not needed under SLURM, Open MPI or on a TPU pod)")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help="address of process 0; 'auto': JAX detects the cluster; 'none': run as a single process",
    )  # fmt: skip
    group.add_argument("--num_processes", type=int, metavar="N", help="number of processes that share the run")
    group.add_argument("--process_id", type=int, metavar="I", help="index of this process, 0..N-1")
    group.add_argument(
        "--heartbeat_seconds", type=int, default=100, metavar="N",
        help="a process silent for this long counts as dead, and the others exit (default %(default)s)",
    )  # fmt: skip


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """While open, this process is connected to the other processes of the run; does nothing for a single process.

    Raises:
      UserError: inconsistent flags, missing processes, or no answer from the coordinator.
    """
    how = _how_to_join(args, os.environ)
    if how is None:
        yield
        return
    if how:
        meet(how["coordinator_address"], how["num_processes"], how["process_id"], _TIMEOUT_SECONDS)
    import jax  # imported here, so that --help need not wait for it

    try:
        jax.distributed.initialize(
            **how, initialization_timeout=_TIMEOUT_SECONDS, heartbeat_timeout_seconds=args.heartbeat_seconds
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of the run did not find each other ({reason}): start all of them within "
            f"{_TIMEOUT_SECONDS} s with the same --coordinator and --num_processes; --coordinator=none runs one process"
        ) from error
    yield
    # Not after an error, which may concern only this process: shutdown waits for the others.
    jax.distributed.shutdown()


def _how_to_join(args: argparse.Namespace, environ: Mapping[str, str]) -> dict | None:
    """Arguments of `jax.distributed.initialize`; None for a single process."""
    check_between("--heartbeat_seconds", args.heartbeat_seconds, 10, 86_400)
    given = {"--num_processes": args.num_processes, "--process_id": args.process_id}
    if args.coordinator in (None, "none", "auto"):
        for flag, value in given.items():
            if value is not None:
                raise UserError(f"{flag}={value} needs --coordinator=HOST:PORT, where process 0 listens")
        found = args.coordinator == "auto" or (args.coordinator is None and _shares_a_cluster_job(environ))
        return {} if found else None
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator must be HOST:PORT, 'auto' or 'none'; got {args.coordinator!r}")
    for flag, value in given.items():
        if value is None:
            raise UserError(f"--coordinator={args.coordinator} needs {flag}")
    check_between("--num_processes", args.num_processes, 1)
    if not 0 <= args.process_id < args.num_processes:
        raise UserError(
            f"--process_id must be in 0..{args.num_processes - 1}, below --num_processes; got {args.process_id}"
        )
    return {
        "coordinator_address": args.coordinator,
        "num_processes": args.num_processes,
        "process_id": args.process_id,
    }


def _shares_a_cluster_job(environ: Mapping[str, str]) -> bool:
    """Whether a launcher started several processes; a batch script not started by `srun` is a single process."""
    counts = (environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(count.isdecimal() and int(count) > 1 for count in counts) or (
        "," in environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environ
    )
