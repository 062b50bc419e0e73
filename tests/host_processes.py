"""Real processes that share a run over the loopback, each with some virtual CPU devices."""

import os
import re
import socket
import subprocess
import sys
import time

import jax


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class HostOutput:
    """What `HostProcesses` printed, from the files in its folder.

    gloo, which carries the collectives between CPUs, prints into the middle of lines: `lines` leaves that out.
    """

    def __init__(self, folder, verb, count=2):
        self._outputs = [folder / f"{verb}_{i}.out" for i in range(count)]
        self._errors = [folder / f"{verb}_{i}.err" for i in range(count)]

    def lines(self, index=0):
        """What process `index` has printed so far."""
        text = self._outputs[index].read_text()
        text = re.sub(r"\[Gloo\]\s*Rank\s*\d*|is connected to \d+ peer ranks[^:]*: \d+\n?", "", text)
        # Where its threads print at once, their numbers come apart from their words; no line of ours has digits alone.
        return [line for line in text.split("\n") if not re.fullmatch(r"\s*\d[\d\s]*", line)]

    def errors(self, index=0):
        return self._errors[index].read_text()

    def all_output(self):
        return "\n".join(path.read_text()[-3000:] for path in (*self._outputs, *self._errors))


class HostProcesses(HostOutput):
    """`python -m ddpm_jax.VERB` in `count` processes of `devices` devices; what they print goes into files."""

    def __init__(self, folder, verb, flags, *, count=2, devices=2):
        super().__init__(folder, verb, count)
        folder.mkdir(exist_ok=True, parents=True)
        port = free_port()
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir or folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        joining = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", "--heartbeat_seconds=10"]
        self.processes = []
        for i in range(count):
            own = [*joining, f"--process_id={i}"] if count > 1 else []
            with open(self._outputs[i], "w") as out, open(self._errors[i], "w") as err:
                command = [sys.executable, "-m", f"ddpm_jax.{verb}", *flags, *own]
                self.processes.append(subprocess.Popen(command, stdout=out, stderr=err, env=env))

    def wait_for(self, text, timeout=200):
        """Until process 0 has printed a line that begins so."""
        end = time.monotonic() + timeout
        while not any(line.strip().startswith(text) for line in self.lines()):
            assert time.monotonic() < end and self.processes[0].poll() is None, self.all_output()
            time.sleep(0.02)

    def codes(self, timeout=200):
        """The exit codes, when all have ended."""
        try:
            return [process.wait(timeout=timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
