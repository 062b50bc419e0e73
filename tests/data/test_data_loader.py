"""The loader gives the batches of batch_indices, ahead of time, and leaves nothing running."""

import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ddpm_jax.data import BatchLoader, LoaderCounts, batch_indices
from ddpm_jax.data.condition import Entry
from ddpm_jax.data.image_source import ArraySource
from ddpm_jax.runtime.errors import UserError


class Counting:
    """Images whose pixels are their own index; raises at one index, and counts the loads."""

    image_shape = (2, 3, 1)
    labels = None
    notes = ()

    def __init__(self, num_examples=50, broken=None):
        self.num_examples, self.broken, self.num_loads = num_examples, broken, 0

    def __len__(self):
        return self.num_examples

    def load(self, indices):
        self.num_loads += 1
        if self.broken in indices:
            raise OSError(f"disk gone at {self.broken}")
        return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), 2, 3, 1))


def _threads():
    return [t for t in threading.enumerate() if t.name == "ddpm_jax-batches"]


def test_batches_are_those_of_batch_indices():
    with BatchLoader(Counting(), batch_size=8, seed=2, first_step=11) as loader:
        for step in range(11, 25):
            batch = next(loader)
            batch = batch.image
            assert batch.dtype == np.uint8 and batch.shape == (8, 2, 3, 1)
            expected = batch_indices(seed=2, step=step, batch_size=8, num_examples=50)
            np.testing.assert_array_equal(batch[:, 0, 0, 0], expected)


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(process_count):
    loaders = [
        BatchLoader(Counting(), batch_size=8, seed=0, first_step=3, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    with BatchLoader(Counting(), batch_size=8, seed=0, first_step=3) as single:
        for _ in range(9):
            np.testing.assert_array_equal(np.concatenate([next(p).image for p in loaders]), next(single).image)
    for loader in loaders:
        loader.close()


def test_an_error_arrives_at_its_batch_with_its_message():
    order = batch_indices(seed=0, step=0, batch_size=50, num_examples=50)
    with BatchLoader(Counting(broken=int(order[17])), batch_size=5, seed=0, first_step=0) as loader:
        for _ in range(3):
            next(loader)
        for _ in range(2):  # and again, for whoever asks again
            with pytest.raises(OSError, match=f"disk gone at {order[17]}"):
                next(loader)
    assert not _threads()


def test_prefetch_is_bounded_and_ahead():
    source = Counting()
    with BatchLoader(source, batch_size=5, seed=0, first_step=0, num_prefetch=3) as loader:
        deadline = time.monotonic() + 5
        while source.num_loads < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert source.num_loads == 4  # three wait in the queue, one in the thread's hands
        next(loader)


def test_close_ends_the_thread_and_the_iteration():
    loader = BatchLoader(Counting(), batch_size=5, seed=0, first_step=0)
    next(loader)
    assert len(_threads()) == 1
    loader.close()
    loader.close()
    assert not _threads()
    with pytest.raises(StopIteration):
        next(loader)


def test_leaving_the_block_by_an_error_ends_the_thread():
    with pytest.raises(KeyboardInterrupt):
        with BatchLoader(Counting(), batch_size=5, seed=0, first_step=0) as loader:
            next(loader)
            raise KeyboardInterrupt
    assert not _threads()


def test_a_dropped_loader_ends_its_thread():
    loader = BatchLoader(Counting(), batch_size=5, seed=0, first_step=0)
    next(loader)
    del loader
    gc.collect()
    assert not _threads()


def test_a_consumer_in_another_thread_is_woken_by_close():
    class Slow(Counting):
        def load(self, indices):
            time.sleep(0.3)
            return super().load(indices)

    loader = BatchLoader(Slow(), batch_size=5, seed=0, first_step=0)
    ended = threading.Event()
    consumer = threading.Thread(target=lambda: (list(loader), ended.set()), daemon=True)
    consumer.start()
    loader.close()
    assert ended.wait(5)


@pytest.mark.parametrize(
    "end", ["", "raise KeyboardInterrupt", "import sys; sys.exit(3)"], ids=["end", "ctrl-c", "exit"]
)
def test_the_interpreter_exits_with_a_loader_open(end):
    code = (
        "from ddpm_jax.data import BatchLoader, make_source\n"
        "source = make_source(name='digits', image_size=(16, 16), num_channels=3)\n"
        "loader = BatchLoader(source, batch_size=64, seed=0, first_step=0)\n"
        f"next(loader)\n{end}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode in {"": (0,), "raise KeyboardInterrupt": (1, -2, 130)}.get(end, (3,))
    assert "Fatal" not in done.stderr and "daemon" not in done.stderr
    assert ("Traceback" in done.stderr) == ("Keyboard" in end)


def test_bad_arguments_are_refused():
    source = Counting()
    with pytest.raises(UserError, match="^batch_size must be a positive multiple .* 3; got 8"):
        BatchLoader(source, batch_size=8, seed=0, first_step=0, process_count=3)
    with pytest.raises(UserError, match="holds no images"):
        BatchLoader(ArraySource(np.zeros((0, 2, 2, 1), np.uint8)), batch_size=8, seed=0, first_step=0)
    for bad in ({"process_index": 1}, {"num_prefetch": 0}, {"first_step": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            BatchLoader(source, **{"batch_size": 8, "seed": 0, "first_step": 0, **bad})
    assert not _threads()


def test_the_counts_tell_how_long_the_data_took_and_were_waited_for():
    """On a clock of our own: the load begins once `next` waits, and takes 3 s."""
    now, waiting = [10.0], threading.Event()
    main = threading.current_thread()

    def clock():
        time_now = now[0]
        if threading.current_thread() is main:
            waiting.set()
        return time_now

    class Slow(Counting):
        def load(self, indices):
            waiting.wait(20)
            now[0] += 3.0
            return super().load(indices)

    slow = Slow(broken=7)  # the first batch that holds image 7 is the last
    last = next(s for s in range(99) if 7 in batch_indices(seed=0, step=s, batch_size=4, num_examples=50)[:2])
    with BatchLoader(slow, batch_size=4, seed=0, first_step=0, process_count=2, clock=clock) as loader:
        next(loader)
        first = loader.take_counts()
        assert first.wait_seconds >= 3.0 and first.load_seconds >= 3.0 and first.images >= 2
        with pytest.raises(OSError):
            list(loader)
        rest = loader.take_counts()
        # Each batch is half of the 4 images; the one that failed made none.
        assert first.images + rest.images == 2 * last
        assert first.load_seconds + rest.load_seconds == 3.0 * last
        assert loader.take_counts() == LoaderCounts()


def test_counts_taken_while_threads_count_lose_nothing():
    with BatchLoader(Counting(), batch_size=5, seed=0, first_step=0) as loader:
        taken = []
        taker = threading.Thread(target=lambda: taken.extend(loader.take_counts() for _ in range(2000)))
        taker.start()
        for _ in range(300):
            next(loader)
        taker.join()
    total = sum(counts.images for counts in [*taken, loader.take_counts()])
    assert 300 * 5 <= total <= 303 * 5  # two wait in the queue, one in the thread's hands


def test_a_transform_runs_in_the_background_on_every_batch_in_order():
    where = set()

    def transform(batch):
        where.add(threading.current_thread().name)
        return batch.image.astype(np.int32) + 1000

    with BatchLoader(Counting(), batch_size=8, seed=2, first_step=5, transform=transform) as loader:
        for step in range(5, 12):
            expected = batch_indices(seed=2, step=step, batch_size=8, num_examples=50) + 1000
            np.testing.assert_array_equal(next(loader)[:, 0, 0, 0], expected)
    assert where == {"ddpm_jax-batches"}


def test_an_error_of_the_transform_arrives_at_its_batch():
    def transform(batch):
        raise MemoryError("the device is full")

    with BatchLoader(Counting(), batch_size=8, seed=0, first_step=0, transform=transform) as loader:
        with pytest.raises(MemoryError, match="the device is full"):
            next(loader)
    assert not _threads()


def test_batches_put_on_the_devices_in_the_background_are_those_of_the_loop():
    from ddpm_jax.runtime.devices import batch_sharded, make_mesh, put_batch

    mesh = make_mesh(4)
    source = Counting()
    source.labels = np.arange(50)
    settings = dict(batch_size=8, seed=0, first_step=3, spec={"label": Entry()})
    with BatchLoader(source, **settings) as host, BatchLoader(
        source, **settings, transform=lambda batch: put_batch(batch, mesh)
    ) as device:
        for _ in range(8):
            images, condition = next(device)
            assert images.sharding == batch_sharded(mesh) and images.dtype == np.uint8
            expected = next(host)
            np.testing.assert_array_equal(images, expected.image)
            np.testing.assert_array_equal(condition["label"], expected.condition["label"])
