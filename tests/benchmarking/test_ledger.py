"""The row that `benchmarks/ledger.py` appends."""

import jax

import ddpm_jax


def test_a_row_has_as_many_cells_as_the_head(benchmark_module):
    ledger = benchmark_module("ledger")
    report = {
        "bits_per_dim": {"total": {"mean": 4.39512, "standard_error": 0.0334}},
        "samples": [{"numbers": {"frechet": 9.0}}, {"numbers": {"frechet": 0.04849}}],
    }
    row = ledger.row_of(report, seconds=341.4, tests="-")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [cells[0], *cells[3:]] == [ddpm_jax.__version__, jax.__version__, "341", "0.0485", "4.395 +- 0.033", "-"]
    head = ledger.HEAD.splitlines()[-2]
    assert row.count("|") == head.count("|")
