"""What measured runs teach the next estimate: a slower machine is learned, chance is not, and the bars stay honest."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.recalibration import average, cluster_of, drawn, entries_of, judged, slower
from estimators.calibration import DEFAULT, Rates
from estimators.catalogue import find_device
from estimators.fit import Sample, bars_after, fit_steps
from estimators.knobs import KNOBS, LEAST, MOST, turned
from estimators.outcome import End, Outcome, Phase, RankReport, Result
from estimators.process import outside_bytes
from estimators.recalibration import kind_of, recalibrate
from estimators.record import Entry, Measured, measured_of
from estimators.regression import shrunk, student
from tests.entries import LORA, cluster, entry, expected, rank

H200 = find_device("h200-sxm")
DEFAULT_BARS = DEFAULT.error_bars.step_seconds
DISPATCH = {"issuing kernels": 1.7}


def agreeing(count: int, *, off: float = 0.0, kinds: bool = True) -> list[Sample]:
    """Runs that took e^off of their estimate, give or take 1 %."""
    chance = random.Random(5)
    return [
        Sample(
            kind=str(number) if kinds else "one",
            measured_seconds=math.exp(off + chance.gauss(0, 0.01)),
            estimate=lambda rates: 0.635 / rates.hopper.matmul,
        )
        for number in range(count)
    ]


def width(bars: tuple[float, float]) -> float:
    return math.log(bars[1] / bars[0])


@pytest.fixture(scope="module")
def measured() -> list[Entry]:
    return entries_of("h200_facts", "h200_single")


def split(entries: Sequence[Entry], count: int) -> tuple[list[Entry], list[Entry]]:
    shown = random.Random(7).sample(entries, count)
    return shown, [one for one in entries if one not in shown]


def test_without_runs_the_estimate_is_the_one_before() -> None:
    fit = recalibrate([], cluster())
    assert (fit.calibration, fit.changes, fit.runs) == (DEFAULT, (), 0)


def test_one_ordinary_run_moves_no_rate() -> None:
    fit = fit_steps(agreeing(1, off=0.12), H200)
    assert fit.calibration.rates == DEFAULT.rates


@pytest.mark.parametrize("ratio", [0.4, 0.6, 1.7, 3.0])
def test_one_run_far_off_moves_the_whole_machine_by_a_part_of_it(ratio: float) -> None:
    fit = fit_steps(agreeing(1, off=math.log(ratio)), H200)
    common = {fit.factors[knob.name] for knob in KNOBS if knob.common}
    assert len(common) == 1 and fit.factors.keys() == {knob.name for knob in KNOBS if knob.common}
    assert 0 < math.log(common.pop()) / math.log(ratio) < 0.5


def test_two_runs_single_out_no_cause(measured: list[Entry]) -> None:
    pair = slower(measured[:2], {"matrix products": 2.0})
    assert len(set(recalibrate(pair, cluster()).factors.values())) <= 1


def test_an_older_host_is_told_from_a_slower_card(measured: list[Entry]) -> None:
    shown, rest = split(slower(measured, DISPATCH), 20)
    fit = recalibrate(shown, cluster_of(measured))
    assert fit.factors["issuing kernels"] > 1.35
    assert fit.factors["matrix products"] < 1.2
    before, after = (judged(rest, cluster_of(measured), one) for one in (DEFAULT, fit.calibration))
    assert after.median_error < before.median_error / 2
    assert after.held >= 0.9 > before.held


def test_a_slower_card_is_told_from_an_older_host(measured: list[Entry]) -> None:
    shown, _ = split(slower(measured, {"matrix products": 1.6}), 40)
    factors = recalibrate(shown, cluster_of(measured)).factors
    assert factors["matrix products"] > 1.2
    assert factors["matrix products"] > factors["issuing kernels"] + 0.15


@pytest.mark.parametrize("runs", [1, 3, 10])
@pytest.mark.parametrize("files", [("h200_facts", "h200_single", "h200_held_out"), ("h100_single",)])
def test_on_a_machine_like_the_measured_ones_nothing_gets_worse(files: tuple[str, ...], runs: int) -> None:
    entries = entries_of(*files)
    before, after = drawn(entries, min(runs, len(entries) - 3), draws=8)
    assert after.mean_error <= before.mean_error + 0.005
    assert after.held >= 0.9


def test_the_bars_narrow_as_runs_that_agree_arrive() -> None:
    widths = [width(fit_steps(agreeing(count), H200).calibration.error_bars.step_seconds) for count in range(51)]
    assert widths[0] == pytest.approx(width(DEFAULT_BARS))
    assert widths == sorted(widths, reverse=True)
    assert widths[7] < widths[0] * 0.65
    assert widths[50] < widths[0] / 3


def test_runs_that_disagree_widen_the_bars() -> None:
    for count in (2, 10, 50):
        apart = [
            replace(one, measured_seconds=math.exp(0.6 * (-1) ** number))
            for number, one in enumerate(agreeing(count))
        ]  # fmt: skip
        bars = fit_steps(apart, H200).calibration.error_bars.step_seconds
        assert bars[0] < DEFAULT_BARS[0] and bars[1] > DEFAULT_BARS[1]
        assert bars[0] < math.exp(-0.6) and bars[1] > math.exp(0.6)


def test_a_run_measured_again_proves_nothing_of_other_kinds() -> None:
    once, often = (fit_steps(agreeing(count, kinds=False), H200) for count in (1, 40))
    assert often.runs == 40 and often.kinds == 1
    assert width(often.calibration.error_bars.step_seconds) == pytest.approx(
        width(once.calibration.error_bars.step_seconds), rel=0.05
    )


def test_a_rank_or_a_seed_makes_no_other_kind_but_a_length_does() -> None:
    assert kind_of(LORA) == kind_of(replace(LORA, adapter=replace(LORA.adapter, rank=64), seed=7))
    others = [replace(LORA, sequence_length=8192), replace(LORA, quantization="nf4"), replace(LORA, model="gpt2")]
    assert len({kind_of(LORA), *map(kind_of, others)}) == 4


@given(
    logs=st.lists(st.floats(-5, 5), min_size=1, max_size=12),
    shares=st.lists(st.floats(0.05, 0.95), min_size=12, max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_no_runs_lead_to_an_absurd_calibration(logs: list[float], shares: list[float]) -> None:
    samples = [
        Sample(
            kind=str(number),
            measured_seconds=math.exp(log),
            estimate=lambda rates, share=share: (  # type: ignore[misc]
                share * 0.635 / rates.hopper.matmul + (1 - share) * rates.forward_dispatch_seconds / 46.6e-6
            ),
        )
        for number, (log, share) in enumerate(zip(logs, shares, strict=False))
    ]
    fit = fit_steps(samples, H200)
    low, high = fit.calibration.error_bars.step_seconds
    assert 0 < low < 1 < high < math.inf
    assert all(LEAST <= factor <= MOST for factor in fit.factors.values())
    assert fit.calibration.rates.hopper.matmul <= 1
    assert fit.runs + len(fit.left_out) == len(logs)


def test_a_run_that_took_ten_times_as_long_is_left_out_and_named() -> None:
    good = agreeing(5)
    fit = fit_steps([*good, replace(good[0], kind="swapping", measured_seconds=10.0)], H200)
    assert replace(fit, left_out=()) == fit_steps(good, H200)
    assert len(fit.left_out) == 1 and fit.left_out[0].startswith("swapping: took 10 times")


def test_disturbed_and_failed_runs_teach_nothing(measured: list[Entry]) -> None:
    good = measured[:6]
    disturbed = [
        replace(one, number=number, measured=replace(one.measured, step_seconds=9.0, marks=("a co-tenant",)))
        for number, one in enumerate(measured[6:9])
    ]
    dead = [replace(one, measured=Measured(outcome=Outcome.OUT_OF_MEMORY, step_seconds=9.0)) for one in measured[9:12]]
    fit = recalibrate([*disturbed, *good, *dead], cluster_of(measured))
    assert fit.calibration == recalibrate(good, cluster_of(measured)).calibration
    assert fit.left_out == ("run 0: a co-tenant", "run 1: a co-tenant", "run 2: a co-tenant")


def test_runs_that_cannot_be_estimated_again_are_named_not_fatal(measured: list[Entry]) -> None:
    gone = replace(entry("gone"), recipe=replace(LORA, model="/nowhere/config.json"), number=4)
    fit = recalibrate([gone, *(one for one in measured if one.recipe.parallelism.devices == 2)], cluster())
    assert fit.runs == 0 and fit.calibration == DEFAULT
    assert "/nowhere/config.json" in fit.left_out[0]
    assert "2 GPUs, of which 1 are here" in fit.left_out[1]


def test_another_card_of_the_machine_is_no_evidence(measured: list[Entry]) -> None:
    assert recalibrate(measured, cluster("rtx-4090")).calibration == DEFAULT


def test_a_card_nobody_measured_counts_as_measured_after_three_kinds() -> None:
    lengths = (512, 1024, 2048, 4096)
    runs = [entry(str(size), gpu="rtx-4090", recipe=replace(LORA, sequence_length=size)) for size in lengths]
    runs = [replace(run, measured=replace(run.measured, step_seconds=_expected_seconds(run))) for run in runs]
    two, four = (recalibrate(some, cluster("rtx-4090")).calibration for some in (runs[:2], runs))
    assert "rtx-4090" not in two.seen_devices and "rtx-4090" in four.seen_devices
    bars = two.error_bars.unseen_step_seconds, four.error_bars.step_seconds
    assert width(bars[1]) < width(bars[0]) < width(DEFAULT.error_bars.unseen_step_seconds)


def _expected_seconds(run: Entry) -> float:
    prediction = expected(run).prediction
    assert prediction is not None
    return prediction.step_seconds.value


def test_what_a_context_takes_here_is_the_middle_of_two_runs_or_more() -> None:
    reserved = 9 << 30
    law = reserved + outside_bytes(H200, LORA)
    peaks = [rank(8 << 30, reserved=reserved, process=law + (more << 20)) for more in (40, 50, 900)]
    runs = [entry(str(peak), measured=Measured(outcome=Outcome.OK, ranks=(peak,))) for peak in peaks]
    paged = replace(runs[2], recipe=replace(LORA, optimizer="paged_adamw_8bit"))
    assert recalibrate(runs[:1], cluster()).outside_bytes == 0
    assert recalibrate(runs, cluster()).outside_bytes == 50 << 20
    flushed = replace(runs[2], measured=replace(runs[2].measured, allocator_retries=1))
    assert recalibrate([*runs[:2], paged, flushed], cluster()).outside_bytes == 45 << 20
    assert [str(one) for one in recalibrate(runs, cluster()).changes] == [
        "context and libraries +0 MiB -> +50 MiB from 3 runs"
    ]


def test_bars_of_memory_widen_where_runs_took_more_and_never_narrow() -> None:
    run = expected(entry())
    assert run.prediction is not None
    said = round(run.prediction.peak_allocated.value)
    reserved = round(run.prediction.peak_reserved.value)

    def bars(factor: float) -> tuple[float, float]:
        peak = rank(round(said * factor), reserved=reserved)
        one = replace(run, measured=Measured(outcome=Outcome.OK, ranks=(peak,)))
        return recalibrate([one], cluster()).calibration.error_bars.allocated

    assert bars(1.0) == DEFAULT.error_bars.allocated
    assert bars(1.10)[1] > 1.10


def test_batches_of_many_widths_say_nothing_of_what_torch_keeps_of_others() -> None:
    """Its cache keeps blocks for every width; with expandable segments it does not."""
    length = LORA.sequence_length

    def bar(factor: float, widths: tuple[int, ...], figure: str = "reserved", **recipe: bool) -> tuple[float, float]:
        run = expected(entry(recipe=replace(LORA, **recipe)))  # type: ignore[arg-type]
        assert run.prediction is not None
        said = {name: round(getattr(run.prediction, f"peak_{name}").value) for name in ("allocated", "reserved")}
        peak = rank(round(said["allocated"] * factor), reserved=round(said["reserved"] * factor))
        one = replace(run, measured=Measured(outcome=Outcome.OK, ranks=(peak,), widths=widths))
        found: tuple[float, float] = getattr(recalibrate([one], cluster()).calibration.error_bars, figure)
        return found

    usual = DEFAULT.error_bars
    assert bar(1.5, (length, length))[1] > 1.5
    assert bar(1.5, (length // 4, length)) == usual.reserved
    assert bar(1.5, (length // 4, length), "allocated")[1] > 1.5, "what is allocated is the widest batch's own"
    assert bar(1.5, (length // 4, length), expandable_segments=True)[1] > 1.5
    assert bar(0.2, (length // 8, length // 4), "allocated") == usual.allocated, "none of them was as it was priced"


def test_steps_of_rows_shorter_than_the_recipes_teach_nothing_of_the_machine() -> None:
    runs = [entry(str(size), recipe=replace(LORA, sequence_length=size), number=7) for size in (512, 1024, 2048, 4096)]
    seconds = [_expected_seconds(run) / 4 for run in runs]
    quick = [replace(r, measured=replace(r.measured, step_seconds=s)) for r, s in zip(runs, seconds, strict=True)]
    short = [replace(run, measured=replace(run.measured, widths=(64, run.recipe.sequence_length))) for run in quick]
    assert recalibrate(quick, cluster()).kinds == 4
    found = recalibrate(short, cluster())
    assert (found.kinds, found.calibration.rates) == (0, DEFAULT.rates)
    assert found.calibration.error_bars == DEFAULT.error_bars
    assert found.left_out == ("run 7: its rows are shorter than its recipe's",)


def test_a_person_reads_what_changed(measured: list[Entry]) -> None:
    shown, _ = split(slower(measured, DISPATCH), 20)
    lines = [str(change) for change in recalibrate(shown, cluster_of(measured)).changes]
    assert any(line.startswith("issuing kernels 4.66e-05 -> ") and line.endswith("from 20 runs") for line in lines)
    assert any(line.startswith("step bar −30 % +45 % -> −") for line in lines)


def test_every_rate_that_a_knob_turns_exists_and_is_turned_by_one() -> None:
    rates = [name for knob in KNOBS for name in (*knob.seconds, knob.link) if name]
    assert len(rates) == len(set(rates))
    assert set(rates) <= {field.name for field in fields(Rates)}
    assert turned(DEFAULT.rates, H200, {}) == DEFAULT.rates


def test_a_knob_turns_its_own_card_only() -> None:
    rates = turned(DEFAULT.rates, H200, {"matrix products": 2.0})
    assert rates.hopper.matmul == DEFAULT.rates.hopper.matmul / 2
    assert rates.elsewhere == DEFAULT.rates.elsewhere
    assert turned(DEFAULT.rates, H200, {"matrix products": 1e-9}).hopper.matmul == 1.0


@pytest.mark.parametrize(("freedom", "quantile"), [(2, 2.920), (3, 2.353), (10, 1.812), (50, 1.676)])
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(0.95, freedom) == pytest.approx(quantile, rel=0.02)


def test_a_regression_finds_the_line_and_is_not_led_by_one_point() -> None:
    chance = random.Random(3)
    rows = [(chance.uniform(-1, 1), chance.uniform(-1, 1), 1.0) for _ in range(60)]
    truths = [0.5 * a - 0.25 * b + 0.1 + chance.gauss(0, 0.01) for a, b, _ in rows]
    assert shrunk(rows, truths, [9.0, 9.0, 9.0], 0.01) == pytest.approx([0.5, -0.25, 0.1], abs=0.01)
    truths[0] += 100
    assert shrunk(rows, truths, [9.0, 9.0, 9.0], 0.01) == pytest.approx([0.5, -0.25, 0.1], abs=0.02)
    assert shrunk(rows, truths, [9.0, 0.0, 9.0], 0.01)[1] == 0.0
    assert shrunk(rows[:2], truths[:2], [1e-9] * 3, 0.1) == pytest.approx([0.0] * 3, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 20, 50])
def test_the_bars_hold_what_they_promise_of_errors_with_heavy_tails(count: int) -> None:
    """Errors as those measured on the H200: Student's t with 4 degrees of freedom, half of them within 8 %."""
    chance = random.Random(count)

    def error() -> float:
        return 0.11 * chance.gauss(0, 1) / math.sqrt(chance.gammavariate(2, 2) / 4)

    held = []
    for _ in range(300):
        low, high = bars_after(DEFAULT_BARS, [error() for _ in range(count)])
        held += [low <= math.exp(error()) <= high for _ in range(10)]
    assert statistics.fmean(held) >= 0.92


def test_a_jobs_result_is_kept_with_its_peaks_and_its_blemishes() -> None:
    def phase(name: str, size: int, retries: int = 0) -> Phase:
        return Phase(name=name, seconds=1.0, peak_allocated_bytes=size, peak_reserved_bytes=size + 10,
                     process_bytes=size + 30, device_bytes=size + 40, allocator_retries=retries, joules=8)  # fmt: skip

    phases = (phase("load", 900), phase("first_step", 500), phase("steady", 400, retries=2), phase("save", 950))
    report = RankReport(
        rank=0, device_name="NVIDIA H200", loaded_bytes=300, phases=phases, step_seconds=(3.0, 0.2, 0.1, 0.3),
        warm_up_steps=1, steady_tokens=30, steady_padded_tokens=60, meter_seconds=0.0,
    )  # fmt: skip
    good = measured_of(Result(end=End(outcome=Outcome.OK), ranks=(report,), seconds=9.0), 0.4)
    assert good.teaches and good.worst is not None
    peak = good.worst
    assert (peak.loaded_bytes, peak.peak_allocated_bytes, peak.peak_reserved_bytes) == (300, 500, 510)
    assert (peak.process_bytes, peak.outside_torch_bytes) == (530, 30)
    assert (good.step_seconds, good.allocator_retries, good.flops_utilisation) == (0.2, 2, 0.4)
    assert good.real_tokens_per_second == pytest.approx(50) and good.tokens_per_second == pytest.approx(100)
    assert good.phases == {"load": 910, "first_step": 510, "steady": 410, "save": 960}
    assert good.energy_joules == pytest.approx(8 / 3)
    broken = End(outcome=Outcome.FAILED, evidence="Xid 79", gpu_fault=True)
    bad = measured_of(Result(end=broken, notes=("a co-tenant",), seconds=9.0))
    assert (bad.teaches, bad.ranks, bad.evidence, bad.marks) == (
        False,
        (),
        "Xid 79",
        ("a co-tenant", "the card failed"),
    )


def test_the_average_is_of_each_figure(measured: list[Entry]) -> None:
    one = judged(measured, cluster_of(measured), DEFAULT)
    assert average([one, one]) == one
