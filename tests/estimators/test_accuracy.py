"""The formulas against measured runs: the bars that the project promises, on real GPUs' figures."""

import statistics

import pytest

from benchmarks.accuracy import FILES, Row, rows_of

DEVELOPED, HELD_OUT = "h200_facts", "h200_single"


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    return {name: rows_of(name) for name in FILES}


def errors(rows: list[Row], figure: str) -> list[float]:
    return [abs(error) for row in rows if (error := row.error(figure)) is not None]


@pytest.mark.parametrize("name", [DEVELOPED, HELD_OUT])
def test_the_allocated_peak_is_within_4_percent_on_average_and_12_at_worst(
    rows: dict[str, list[Row]], name: str
) -> None:
    off = errors(rows[name], "peak_allocated")
    assert len(off) >= 31
    assert statistics.mean(off) <= 0.04
    assert max(off) <= 0.12


@pytest.mark.parametrize("name", [DEVELOPED, HELD_OUT])
def test_half_of_the_step_times_are_within_20_percent(rows: dict[str, list[Row]], name: str) -> None:
    assert statistics.median(errors(rows[name], "step_seconds")) <= 0.20


@pytest.mark.parametrize("figure", ["peak_allocated", "peak_reserved", "process", "step_seconds"])
def test_the_error_bars_hold_what_they_promise(rows: dict[str, list[Row]], figure: str) -> None:
    """95 of 100 on one GPU, where there are enough runs to say so."""
    held = [
        row.held(figure)
        for name in (DEVELOPED, HELD_OUT)
        for row in rows[name]
        if row.run.recipe.parallelism.devices == 1 and row.held(figure) is not None
    ]
    assert len(held) >= 60
    assert sum(map(bool, held)) >= 0.95 * len(held)


def test_the_foreach_optimizer_holds_one_more_copy_than_the_fused_one(rows: dict[str, list[Row]]) -> None:
    """62.8 against 50.3 GiB on a 7B: the term that most estimators forget."""
    row = next(row for row in rows[DEVELOPED] if row.run.name == "llama7-full-bf16-s2048-b1-ck")
    assert row.cost.peak_moment == "optimizer step"
    assert row.cost.peak_allocated.value == pytest.approx(62.82 * 2**30, rel=0.002)
