"""A JAX profiler trace of some steps of a run."""

import os

import jax

from ddpm_jax.runtime.errors import UserError

PROFILE_FOLDER = "profile"


class StepProfiler:
    """Traces the updates FIRST+1..LAST into <workdir>/profile, for TensorBoard or Perfetto.

    Args:
      steps: "FIRST:LAST", as given on the command line; "" for none.

    Raises:
      UserError: text of another form, or LAST <= FIRST.
    """

    def __init__(self, steps: str, workdir: str):
        self._first = self._last = -1
        self._folder, self._is_open = os.path.join(workdir, PROFILE_FOLDER), False
        if steps:
            first, _, last = steps.partition(":")
            if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
                raise UserError(f"--profile_steps must be FIRST:LAST with FIRST < LAST, such as 100:105; got {steps!r}")
            self._first, self._last = int(first), int(last)

    def missed(self, first_step: int, num_steps: int) -> str | None:
        """Why a run from `first_step` to `num_steps` traces nothing although steps were given; else None."""
        if self._first < 0 or first_step <= self._first < num_steps:
            return None
        asked = f"--profile_steps={self._first}:{self._last}"
        return f"{asked} traces nothing: this start makes the updates {first_step}:{num_steps}"

    def before(self, step: int) -> None:
        """Must be called before the update from `step` to step + 1."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._is_open = True

    def after(self, step: int, outputs: object) -> None:
        """Must be called after the update to `step`, with its outputs; waits for them if the trace ends there."""
        if self._is_open and step == self._last:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still open."""
        if self._is_open:
            self._is_open = False
            jax.profiler.stop_trace()
