"""A JAX profiler trace of some steps of a run."""

import os

import jax

from ddpm_jax.errors import UserError

PROFILE_FOLDER = "profile"


class StepProfiler:
    """Traces the updates FIRST+1..LAST into <workdir>/profile, for TensorBoard or Perfetto.

    Args:
      steps: "FIRST:LAST", as a person types it; "" for none.

    Raises:
      UserError: another text, or LAST <= FIRST.
    """

    def __init__(self, steps: str, workdir: str):
        self._first = self._last = -1
        self._folder, self._is_open = os.path.join(workdir, PROFILE_FOLDER), False
        if steps:
            first, _, last = steps.partition(":")
            if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
                raise UserError(f"--profile_steps must be FIRST:LAST with FIRST < LAST, such as 100:105; got {steps!r}")
            self._first, self._last = int(first), int(last)

    def before(self, step: int) -> None:
        """To be called before the update from `step` to step + 1."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._is_open = True

    def after(self, step: int, outputs: object) -> None:
        """To be called after the update to `step`, with what it gave; waits for it where the trace ends."""
        if self._is_open and step == self._last:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still open."""
        if self._is_open:
            self._is_open = False
            jax.profiler.stop_trace()
