"""The pages of docs/: their tables are whole, and their Python examples run as written, in a folder of their own.

The examples are run by `pytest -m slow tests/test_docs.py`.

Training is cut to a few updates of the small run, `runs/digits` is the run that comes with the package, and
`runs/digits_classes` a small one.
"""

import os
import re
from pathlib import Path

import pytest

import ddpm_jax as dj
from ddpm_jax.experiment.config_files import load_config
from ddpm_jax.experiment.training import train

ROOT = Path(__file__).parent.parent
NEED_FILES_OF_OTHERS = {"edit_gallery.md", "published_models.md", "weights.md"}


def examples():
    """(page, line, code) of each example that is a program; fragments do not begin with an import."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text("utf-8")
        for block in re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            if re.match("(import|from) ", block[1]):
                yield page.name, text[: block.start()].count("\n") + 1, block[1]


EXAMPLES = list(examples())


def test_examples_compile():
    assert len({page for page, _, _ in EXAMPLES}) >= 8
    for page, line, code in EXAMPLES:
        compile(code, f"{page}, line {line}", "exec")


def tables(text):
    """(line, cells by row) of each run of lines that begin with "|", outside of code blocks."""
    text = re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
    for rows in re.finditer(r"(^[ ]*\|.*\n?)+", text, re.MULTILINE):
        cells = [re.split(r"(?<!\\)\|", row.strip()) for row in rows[0].splitlines()]
        yield text[: rows.start()].count("\n") + 1, cells


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_tables_are_whole(page):
    """A header, a separator, at least one row, and as many cells in each; pasted fragments are none."""
    for line, (header, *others) in tables(page.read_text("utf-8")):
        where = f"{page.name}, line {line}"
        assert len(others) >= 2, f"{where}: a table needs a header, a separator and a row"
        assert all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in others[0][1:-1]), f"{where}: no separator"
        for row in (header, *others):
            assert row[0] == row[-1] == "" and len(row) == len(header), f"{where}: {'|'.join(row)}"


def test_fragments_of_tables_are_found():
    text = "a | b\n\n| c): d\n\n```\n| in code |\n```\n\n| e | `f \\| g` |\n| --- | ---: |\n| 1 | 2 |"
    assert list(tables(text)) == [
        (3, [["", " c): d"]]),
        (9, [["", " e ", " `f \\| g` ", ""], ["", " --- ", " ---: ", ""], ["", " 1 ", " 2 ", ""]]),
    ]


@pytest.fixture
def small(monkeypatch, tmp_path, tiny_overrides):
    """`dj.load_config` and `dj.open_run` for small runs, in an empty folder."""
    load_config, open_run = dj.load_config, dj.open_run
    fixed = [name for name in tiny_overrides if not name.startswith(("model.name", "data.eval_split"))]

    def small_config(name, overrides=()):
        return load_config(name, ["model.name=conv_net", *fixed, *overrides, "train.num_steps=4"])

    def small_run(workdir, **settings):
        if workdir == "runs/digits_classes" and not os.path.exists(workdir):
            return dj.train_model(load_config("digits_classes", ["train.num_steps=4", *fixed]), workdir)
        if workdir == "runs/waves" and not os.path.exists(workdir):
            exec(next(code for page, _, code in EXAMPLES if page == "data.md" and workdir in code), {})
        return open_run(workdir if os.path.exists(workdir) else workdir.removeprefix("runs/"), **settings)

    monkeypatch.chdir(tmp_path)
    os.mkdir("runs")
    monkeypatch.setattr(dj, "load_config", small_config, raising=False)
    monkeypatch.setattr(dj, "open_run", small_run, raising=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [pytest.param(code, id=f"{page}:{n}") for page, n, code in EXAMPLES if page not in NEED_FILES_OF_OTHERS]
)
def test_examples_run(code, small):
    names = {"__name__": "docs"}
    if "runs/classifier_digits" in code:
        short = load_config("classifier_digits", ["train.num_steps=2", "train.log_every_steps=1"])
        train(short, "runs/classifier_digits")
    if "denoise_fn, table" in code and "open_run" not in code:
        # It continues the second example of the README.
        second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
        exec(second.replace("range(200)", "range(2)"), names)
    exec(compile(code, "docs", "exec"), names)
