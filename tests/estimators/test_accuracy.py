"""Both estimators against measured runs: the bars that the project promises, on real GPUs' figures.

What the dry run said is read from benchmarks/dry_run_figures.json, which tests/runners/test_dry.py holds to the code.
"""

import statistics
from collections.abc import Iterable

import pytest

from benchmarks.accuracy import Estimator, Row, comparisons, rows_of, verdicts_of
from benchmarks.figures import CAPPED, FILES
from benchmarks.published import SPEED_BAR, speed_medians

DEVELOPED, HELD_OUT = "h200_facts", ("h200_single", "h200_held_out")
BLIND = "h200_blind"
TWO = ("h200_two", "h200_two_predicted")
MEMORY = ("peak_allocated", "peak_reserved", "process")
Rows = dict[str, list[Row]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return {name: rows_of(name) for name in FILES}


def errors(rows: Iterable[Row], figure: str, estimator: Estimator = "formula") -> list[float]:
    return [abs(error) for row in rows if (error := row.error(figure, estimator)) is not None]


def alone(rows: Iterable[Row]) -> list[Row]:
    """Those of one GPU, without DeepSpeed."""
    return [row for row in rows if row.run.recipe.parallelism.kind == "none"]


@pytest.mark.parametrize("name", [DEVELOPED, *HELD_OUT])
def test_the_formulas_allocated_peak_is_within_4_percent_on_average_and_12_at_worst(rows: Rows, name: str) -> None:
    off = errors(rows[name], "peak_allocated")
    assert len(off) >= 24
    assert statistics.mean(off) <= 0.04
    assert max(off) <= 0.12


@pytest.mark.parametrize("name", [DEVELOPED, *HELD_OUT, BLIND])
def test_half_of_the_step_times_are_within_20_percent(rows: Rows, name: str) -> None:
    assert statistics.median(errors(rows[name], "step_seconds")) <= 0.20


@pytest.mark.parametrize("name", [DEVELOPED, *HELD_OUT])
def test_the_dry_run_traces_every_run_on_one_gpu(rows: Rows, name: str) -> None:
    """But for one that ran on transformers 5.17: later versions refuse to build Gemma 2 with sdpa."""
    untraced = {row.run.name for row in alone(rows[name]) if not row.traced}
    assert untraced <= {"gemma-2-2b-lora-qv-sdpa-ck"}


@pytest.mark.parametrize("name", [DEVELOPED, *HELD_OUT, BLIND])
def test_the_dry_runs_allocated_peak_is_exact_on_one_gpu(rows: Rows, name: str) -> None:
    off = errors(alone(rows[name]), "peak_allocated", "dry run")
    assert sum(error <= 0.0005 for error in off) >= 0.8 * len(off)
    assert statistics.mean(off) <= 0.002
    assert max(off) <= 0.01


@pytest.mark.parametrize("name", [DEVELOPED, *HELD_OUT, BLIND])
@pytest.mark.parametrize("figure", ["peak_reserved", "process"])
def test_the_dry_runs_reserved_peak_and_process_on_one_gpu(rows: Rows, name: str, figure: str) -> None:
    off = errors(alone(rows[name]), figure, "dry run")
    assert statistics.mean(off) <= 0.015
    assert max(off) <= 0.06


def test_the_dry_runs_allocated_peak_of_a_rank_on_two_gpus(rows: Rows) -> None:
    several = [row for name in (DEVELOPED, "h200_two") for row in rows[name] if row not in alone(rows[name])]
    off = errors(several, "peak_allocated", "dry run")
    assert len(off) == len(several) == 14
    assert statistics.mean(off) <= 0.03
    assert max(off) <= 0.08


@pytest.mark.parametrize("estimator", ["formula", "dry run"])
def test_half_of_the_steps_on_two_gpus_are_within_15_percent(rows: Rows, estimator: Estimator) -> None:
    """DDP, ZeRO, FSDP2 and offloading, those among them that were predicted before."""
    several = [row for name in (DEVELOPED, *TWO) for row in rows[name] if row not in alone(rows[name])]
    off = errors(several, "step_seconds", estimator)
    assert len(off) == len(several) == 24
    assert statistics.median(off) <= 0.15


@pytest.mark.parametrize("estimator", ["formula", "dry run"])
def test_half_of_each_sources_published_steps_are_within_15_percent(estimator: Estimator) -> None:
    medians = speed_medians(estimator)
    assert len(medians) == 4
    assert max(medians.values()) <= SPEED_BAR, medians


def test_the_dry_runs_reserved_peak_under_ddp(rows: Rows) -> None:
    """The flat copies of a broadcast at the start decide what the step is cut from."""
    several = [row for name in (DEVELOPED, *TWO) for row in rows[name] if row.run.recipe.parallelism.kind == "ddp"]
    off = errors(several, "peak_reserved", "dry run")
    assert len(off) == 7
    assert max(off) <= 0.005


@pytest.mark.parametrize("estimator", ["formula", "dry run"])
@pytest.mark.parametrize("figure", [*MEMORY, "step_seconds"])
def test_the_error_bars_hold_what_they_promise(rows: Rows, figure: str, estimator: Estimator) -> None:
    """95 of 100 on one GPU, where there are enough runs to say so."""
    held = [
        row.held(figure, estimator)
        for name in (DEVELOPED, *HELD_OUT, BLIND)
        for row in alone(rows[name])
        if row.held(figure, estimator) is not None
    ]
    assert len(held) >= 80
    assert sum(map(bool, held)) >= 0.95 * len(held)


@pytest.mark.parametrize("figure", MEMORY)
@pytest.mark.parametrize(("estimator", "narrow"), [("formula", 0.08), ("dry run", 0.02)])
def test_the_error_bars_are_narrow(rows: Rows, figure: str, estimator: Estimator, narrow: float) -> None:
    for name in (DEVELOPED, *HELD_OUT):
        widths = [one.half_width for one in comparisons(alone(rows[name]), figure, estimator)]
        assert statistics.median(widths) <= narrow


@pytest.mark.parametrize("verdict", ["through_the_error_bar", "formula"])
def test_a_run_that_died_under_its_cap_is_never_said_to_survive(verdict: str) -> None:
    died = [run for name in CAPPED for run in verdicts_of(name) if not run.lived]
    assert len(died) >= 18
    assert [run.name for run in died if getattr(run, verdict)] == []


def test_few_runs_that_lived_are_said_to_die() -> None:
    """On caps 2 to 9 % above the allocated peak, as the bar means; the other file's are at the edge on purpose."""
    lived = [run for run in verdicts_of("h200_capped") if run.lived]
    assert sum(not run.through_the_error_bar for run in lived) <= 0.3 * len(lived)


def test_the_foreach_optimizer_holds_one_more_copy_than_the_fused_one(rows: Rows) -> None:
    """62.8 against 50.3 GiB on a 7B: the term that most estimators forget."""
    row = next(row for row in rows[DEVELOPED] if row.run.name == "llama7-full-bf16-s2048-b1-ck")
    assert row.cost.peak_moment == "optimizer step"
    assert row.cost.peak_allocated.value == pytest.approx(62.82 * 2**30, rel=0.002)
