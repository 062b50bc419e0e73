"""What the processes of a run compare; two threads stand in for two processes."""

import threading

import numpy as np
import pytest

from ddpm_jax.runtime import multi_host
from ddpm_jax.runtime.errors import UserError

CONFIG = {"optim.learning_rate": "0.1", "train.batch_size": "8"}


def errors_of_two(monkeypatch, *texts):
    """What `check_same` says in each of two processes: an error, or None."""
    barrier, sent, said = threading.Barrier(2, timeout=20), {}, {}

    def gather(x):
        sent[threading.current_thread().name] = x
        barrier.wait()
        everywhere = np.stack([sent["0"], sent["1"]])
        barrier.wait()
        return everywhere

    def process(name, texts):
        try:
            multi_host.check_same(texts, "config")
        except UserError as error:
            said[name] = str(error)

    monkeypatch.setattr(multi_host.jax, "process_count", lambda: 2)
    monkeypatch.setattr(multi_host.multihost_utils, "process_allgather", gather)
    threads = [threading.Thread(target=process, args=(str(i), texts[i]), name=str(i)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said.get("0"), said.get("1")]


def test_equal_configs_pass_in_any_order(monkeypatch):
    assert errors_of_two(monkeypatch, CONFIG, dict(reversed(CONFIG.items()))) == [None, None]


@pytest.mark.parametrize(
    ("theirs", "which"),
    [
        (CONFIG | {"train.batch_size": "16"}, ": train.batch_size;"),
        ({name: "5" for name in CONFIG}, ": optim.learning_rate, train.batch_size;"),
        ({"train.batch_size": "8"}, ";"),  # other fields
        ({"optim.b1": "0.1", "train.batch_size": "8"}, ";"),
    ],
)
def test_both_processes_name_the_fields_that_differ(theirs, which, monkeypatch):
    message = f"the processes of the run differ in their config{which} start all of them with the same flags"
    assert errors_of_two(monkeypatch, CONFIG, theirs) == [message, message]


def test_one_process_compares_nothing():
    multi_host.check_same(CONFIG, "config")
