"""Columns of a packed file, fixed and ragged, each row with its image; and what a network is told of ragged ones."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import BatchLoader, make_source, packed_columns
from ddpm_jax.data import __main__ as command
from ddpm_jax.data.batch import Batch
from ddpm_jax.data.condition import Entry, drop, mirror
from ddpm_jax.data.image_source import ArraySource, check_columns, load_rows
from ddpm_jax.data.ragged import Ragged
from ddpm_jax.runtime.errors import UserError

array_record = pytest.importorskip("array_record.python.array_record_module")

SPEC = {
    "score": Entry((2,), "float32"),
    "tokens": Entry((5,), "int32", "sequence", null=0),
    "tokens_mask": Entry((5,), "bool", "mask", null=False),
}


@pytest.fixture
def folder(tmp_path):
    """20 grey images whose one value is 10 times their number, in two classes; a `.npz` of columns in another order."""
    names = []
    for number in range(20):
        name = f"{['a', 'b'][number % 2]}/{number:02d}.png"
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 10 * number, np.uint8)).save(path)
        names.append(name)
    order = np.random.default_rng(0).permutation(20)
    rows = [np.arange(number % 6) + 100 * number for number in order]  # of 0 to 5 numbers
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    np.savez(
        tmp_path / "columns.npz", names=np.array(names)[order], score=np.stack([order, 2.5 * order], 1),
        **{"tokens.values": np.concatenate(rows), "tokens.offsets": offsets},
    )  # fmt: skip
    return tmp_path / "images"


def pack(folder, *flags):
    out = str(folder.parent / "packed.array_record")
    assert command.main(["pack", str(folder), out, "--image_size=4,4", "--num_channels=1", *flags]) == 0
    return out


def source_of(path, split="train"):
    return make_source(name="image_folder", path=str(path), split=split, image_size=(4, 4), num_channels=1)


def check_rows(batch):
    """What is told of an image is its own."""
    numbers = np.asarray(batch.image, int)[:, 0, 0, 0] // 10
    np.testing.assert_array_equal(batch.condition["score"], np.stack([numbers, 2.5 * numbers], 1).astype(np.float32))
    for number, tokens, mask in zip(numbers, batch.condition["tokens"], batch.condition["tokens_mask"], strict=True):
        expected = np.arange(number % 6) + 100 * number
        assert tokens.tolist() == [*expected, *[0] * (5 - len(expected))]
        assert mask.tolist() == [True] * len(expected) + [False] * (5 - len(expected))


@pytest.mark.parametrize("block", [7, 2**24])
@pytest.mark.parametrize("split", ["train", "b", "train[:60%]"])
def test_rows_stay_with_their_images(folder, monkeypatch, split, block, capsys):
    monkeypatch.setattr(packed_columns, "BLOCK_BYTES", block)
    packed = source_of(pack(folder, f"--columns={folder.parent / 'columns.npz'}"), split)
    assert "packed 20 images with the columns score, tokens into" in capsys.readouterr().out
    assert set(packed.columns) == {"score", "tokens"} and len(packed.columns) == 2
    assert np.array_equal(packed.load(np.arange(len(packed))), source_of(folder, split).load(np.arange(len(packed))))
    with BatchLoader(packed, batch_size=8, seed=1, first_step=0, spec=SPEC) as batches:
        for _ in range(4):
            batch = next(batches)
            assert batch.condition["tokens_mask"].dtype == bool and batch.condition["tokens"].dtype == np.int32
            check_rows(batch)


def test_the_row_of_a_replaced_image_is_that_of_the_image_in_its_place(folder, monkeypatch):
    path = pack(folder, f"--columns={folder.parent / 'columns.npz'}")
    monkeypatch.setattr("ddpm_jax.data.image_source.MEMORY_BUDGET_BYTES", 1)
    data = bytearray(open(path, "rb").read())
    where = data.find(bytes([30] * 16))  # the pixels of image 3
    assert where > 0
    data[where] ^= 255
    open(path, "wb").write(data)
    packed = source_of(path)
    batch = load_rows(packed, np.arange(20), SPEC)
    assert 30 not in batch.image and len(packed.notes) == 1
    check_rows(batch)


def test_files_of_version_1_are_read(folder):
    """They had no columns."""
    new = pack(folder)
    old = str(folder.parent / "old.array_record")
    reader = array_record.ArrayRecordReader(new)
    *records, header = reader.read(list(range(reader.num_records())))
    facts = json.loads(header)
    assert facts.pop("columns") == [] and facts["version"] == 2 and len(records) == 21
    writer = array_record.ArrayRecordWriter(old, "group_size:1,uncompressed")
    for record in [*records, json.dumps(facts | {"version": 1}).encode()]:
        writer.write(record)
    writer.close()
    assert zlib.decompress(records[-1]).decode().startswith("a/00.png\0")
    sources = [source_of(path) for path in (old, new, folder)]
    assert not sources[0].columns
    for source in sources[1:]:
        assert np.array_equal(source.load(np.arange(20)), sources[0].load(np.arange(20)))
        assert np.array_equal(source.labels, sources[0].labels)


def test_a_damaged_column_is_one_line(folder):
    path = pack(folder, f"--columns={folder.parent / 'columns.npz'}")
    data = bytearray(open(path, "rb").read())
    where = data.find(np.array([0, 0, 2, 5], "<f8").tobytes())  # score, of a/00 and a/02
    data[where] ^= 1
    open(path, "wb").write(data)
    with pytest.raises(UserError, match="has a damaged column .*; pack the folder again"):
        source_of(path).columns["score"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, "--columns must name a .npz file; got"),
        ({"score": np.arange(20)}, "must hold the array 'names', the image file of each row, such as"),
        ({"names": ["a/00.png"]}, "must have one row for each of the 20 images; it has no row for 'a/02.png'"),
        ({"score": np.arange(19)}, "must have 20 rows in 'score', one per image; got 19"),
        ({"score": np.array(["x"] * 20)}, "'score' must hold numbers; got <U1"),
        ({"score": np.array([{}] * 20)}, "cannot be read as a NumPy file"),
        ({"t.values": np.arange(5), "t.offsets": np.arange(21)},
         "'t.offsets': offsets must be whole numbers that rise from 0 to 5"),
        ({"label": np.arange(20)}, "must not hold 'label': labels come from the sub-folders of the images"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(folder, columns, message, capsys):
    path = folder.parent / "bad.npz"
    if columns is not None:
        names = [f"{'ab'[n % 2]}/{n:02d}.png" for n in range(20)]
        np.savez(path, **({"names": np.array(names)} if message.split()[1] != "hold" else {}) | columns)
    out = folder.parent / "out.array_record"
    line = ["pack", str(folder), str(out), "--image_size=4,4", f"--columns={path}"]
    assert command.main(line) == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.strip().splitlines()) == 1 and not out.exists()


def test_ragged_rows():
    column = Ragged(np.arange(6).reshape(6, 1), np.array([0, 2, 2, 6]))
    assert len(column) == 3 and column.lengths.tolist() == [2, 0, 4]
    assert column[np.array([2, 0])].lengths.tolist() == [4, 2]
    assert column[np.array([2, 0])].padded(4)[..., 0].tolist() == [[2, 3, 4, 5], [0, 1, 0, 0]]
    assert column[np.array([], np.int64)].padded(4).shape == (0, 4, 1)
    for values, offsets in [(3, [0, 3, 2, 3]), (3, [1, 3]), (3, [0, 2]), (3, []), (3, [0.0, 3.0])]:
        with pytest.raises(ValueError, match="offsets must be whole numbers that rise from 0 to 3"):
            Ragged(np.arange(values), np.array(offsets))


def test_sequences_are_dropped_with_their_mask_and_not_mirrored():
    condition = {"tokens": np.arange(10, dtype=np.int32).reshape(2, 5), "tokens_mask": np.ones((2, 5), bool)}
    spec = {name: SPEC[name] for name in condition}
    left = drop(spec, condition, np.array([True, False]))
    assert left["tokens"].tolist() == [[0] * 5, [5, 6, 7, 8, 9]]
    assert left["tokens_mask"].tolist() == [[False] * 5, [True] * 5]
    flipped = mirror(spec, condition, np.ones((2, 1, 1, 1), bool))
    assert all(np.array_equal(flipped[name], condition[name]) for name in condition)


def test_what_does_not_fit_the_spec_is_refused():
    source = ArraySource(np.zeros((2, 4, 4, 1), np.uint8))
    source.columns = {"tokens": Ragged(np.arange(7), np.array([0, 6, 7])), "score": np.zeros((2, 3))}
    for spec, message in [
        ({"tokens": SPEC["tokens"]}, "has rows of up to 6 values in its column 'tokens'; spec has 5"),
        ({"tokens_mask": SPEC["tokens_mask"]}, "has rows of up to 6 values in its column 'tokens'; spec has 5"),
        ({"tokens": Entry((6, 2), "int32", "sequence")}, r"must have rows of shape \[6, 2\] .* 'tokens'; got \[6\]"),
        ({"tokens": Entry((6,))}, "has a ragged column 'tokens', and spec has it as 'global'"),
        ({"score": Entry((3,), "float32", "sequence")}, "has a column whose rows are of one length 'score'"),
        ({"score_mask": Entry((3,), "bool", "mask")}, "has a column whose rows are of one length 'score'"),
        ({"score": Entry((3,))}, "must have values that fit int32 in its column 'score'; got float64"),
        ({"tokens": Entry((6,), "bool", "sequence")}, "must have values that fit bool .* 'tokens'; got int64, 0..6"),
        ({"score": SPEC["score"]}, r"must have rows of shape \[2\] in its column 'score'; got \[3\]"),
    ]:
        with pytest.raises(UserError, match=message):
            check_columns(source, spec)
    assert isinstance(load_rows(source, np.arange(2), {"score": Entry((3,), "float32")}), Batch)
    source.columns = {"x": np.array([-1, 300])}
    for dtype, fits in [("int32", True), ("float32", True), ("uint8", False), ("int8", False), ("bool", False)]:
        if fits:
            check_columns(source, {"x": Entry((), dtype)})
            continue
        with pytest.raises(UserError, match=f"must have values that fit {dtype} in its column 'x'; got int64, -1..300"):
            check_columns(source, {"x": Entry((), dtype)})
