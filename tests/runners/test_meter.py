"""The meter's own rules: what a phase is charged with, whose memory it is, and what a step costs to measure."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from estimators import outcome
from estimators.hardware import GpuProcess
from estimators.outcome import EVALUATION, FIRST_STEP, LOAD, STEADY, Phase, RankReport
from estimators.units import GIB, MIB
from runners.cards import CardState
from runners.meter import BEAT_BYTES, Beat, Counting, Meter, StepClock

CARD = CardState(uuid="GPU-1", held_bytes=GIB, joules=100.0)
Played = Callable[[], Sequence[CardState]]


def played(*states: CardState) -> Played:
    """Reads of a card, one after another; the last goes on."""
    left = list(states)
    return lambda: [left.pop(0) if len(left) > 1 else left[0]]


def meter(tmp_path: Path, cards: Played | None = None, pids: Sequence[int] = (700,)) -> Meter:
    return Meter(Beat(tmp_path / "beat-0"), cards=cards or tuple, pids=pids)


def test_a_phase_is_charged_with_what_the_card_holds_more_than_before(tmp_path: Path) -> None:
    ours = GpuProcess(pid=700, used_bytes=5 * GIB, name=None)
    other = GpuProcess(pid=99, used_bytes=GIB, name=None)
    during = replace(CARD, held_bytes=6 * GIB, processes=(other, ours), joules=160.0)
    one = meter(tmp_path, played(CARD, replace(CARD, joules=110.0), during))
    with one.phase(STEADY):
        pass
    (phase,) = one.phases
    assert (phase.device_bytes, phase.process_bytes, phase.joules) == (5 * GIB, 5 * GIB, 50.0)


@pytest.mark.parametrize(("others", "found"), [(0, 5 * GIB), (1, None)])
def test_in_a_container_an_only_process_is_ours(tmp_path: Path, others: int, found: int | None) -> None:
    """The driver numbers processes as the host does; with a neighbour it cannot be told which is which."""
    listed = tuple(GpuProcess(pid=31_000 + n, used_bytes=5 * GIB, name=None) for n in range(1 + others))
    one = meter(tmp_path, played(CARD, CARD, replace(CARD, processes=listed)))
    with one.phase(STEADY):
        pass
    assert one.phases[0].process_bytes == found


def test_what_the_driver_withholds_is_unknown_and_not_zero(tmp_path: Path) -> None:
    one = meter(tmp_path, played(CardState(uuid="GPU-1", held_bytes=None)))
    with one.phase(STEADY):
        pass
    phase = one.phases[0]
    assert (phase.device_bytes, phase.process_bytes, phase.joules, one.own_device_bytes) == (None,) * 4


def test_the_peak_of_host_memory_is_the_phases_own(tmp_path: Path) -> None:
    one = meter(tmp_path)
    with one.phase(LOAD):
        large = torch.ones(64 * MIB)
    del large
    with one.phase(STEADY):
        pass
    load, steady = (phase.resident_bytes for phase in one.phases)
    assert load is not None and steady is not None
    if load == steady:
        pytest.skip("this kernel does not reset the peak of resident memory")
    assert load - steady > 200 * MIB


def test_warm_up_is_a_phase_and_its_steps_are_not_timed(tmp_path: Path) -> None:
    one = meter(tmp_path)
    clock = StepClock(one, warm_up_steps=2)
    one.begin(FIRST_STEP)
    for seconds in (0.05, 0.05, 0.01, 0.01, 0.01):
        clock.on_step_begin()
        time.sleep(seconds)
        clock.on_step_end()
        time.sleep(0.03)  # what lies between steps is no step
    clock.on_train_end()
    assert [phase.name for phase in one.phases] == [FIRST_STEP, STEADY]
    assert len(one.step_seconds) == 5
    assert 0.01 <= min(one.step_seconds[2:]) < 0.03
    assert one.phases[1].seconds > sum(one.step_seconds[2:]) + 0.05


def test_measuring_a_step_takes_microseconds(tmp_path: Path) -> None:
    """Far below 1 % of the shortest step that is measured on a GPU (some 20 ms)."""
    one = meter(tmp_path)
    clock = StepClock(one, warm_up_steps=0)
    costs = []
    for _ in range(200):
        began = time.thread_time()
        clock.on_step_begin()
        clock.on_step_end()
        costs.append(time.thread_time() - began)
    assert median(costs) < 0.01 * 0.020


def test_a_sign_of_life_is_whole_at_any_moment(tmp_path: Path) -> None:
    beat = Beat(tmp_path / "beat-0")
    for phase, step in (("evaluation", 123_456), ("steady", 7)):
        beat.at(phase, step)
        text = (tmp_path / "beat-0").read_text()
        assert len(text) == BEAT_BYTES
        assert text.split()[2:] == [phase, str(step)]


def test_a_sign_of_life_tells_the_last_loss_and_in_an_evaluation_its_batch(tmp_path: Path) -> None:
    one, line = meter(tmp_path), tmp_path / "beat-0"
    one.begin(STEADY)
    assert line.read_text().split()[2:] == [STEADY, "0"]
    one.step(0.1, 2.34567)
    assert line.read_text().split()[2:] == [STEADY, "1", "2.346"]
    with one.aside(EVALUATION):
        one.beat(loss=9.0, batch=7)
        assert line.read_text().split()[2:] == [EVALUATION, "1", "2.346", "7"]
    assert line.read_text().split()[2:] == [STEADY, "1", "2.346"]
    one.step(0.1, -1.234567e-300)
    with one.aside(EVALUATION):
        one.beat(batch=10**6)
        assert len(line.read_text()) == BEAT_BYTES and line.read_text().endswith("\n")


def test_tokens_are_counted_as_batches_are_made() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    counting = Counting(lambda rows: {"input_ids": torch.zeros(2, 3), "attention_mask": mask})
    counting([])
    without_mask = Counting(lambda rows: {"input_ids": torch.zeros(1, 5)})
    without_mask([])
    assert (counting.counts, without_mask.counts) == ([(4, 6)], [(5, 5)])
    assert (counting.widths, without_mask.widths) == ([3], [5])
    counting([])
    assert [counting.padded(micro_batches) for micro_batches in (0, 1, 2, 3)] == [0, 6, 12, 12]


def test_a_sign_of_life_tells_how_many_tokens_were_trained_on_but_not_amid_an_evaluation(tmp_path: Path) -> None:
    one, line = meter(tmp_path), tmp_path / "beat-0"
    one.tokens = lambda: 4096 * len(one.step_seconds)
    one.begin(STEADY)
    one.step(0.1)
    assert line.read_text().split()[2:] == [STEADY, "1", "t4096"]
    one.step(0.1, 1.25)
    assert line.read_text().split()[2:] == [STEADY, "2", "1.25", "t8192"]
    with one.aside(EVALUATION):
        one.beat(batch=3)
        assert line.read_text().split()[2:] == [EVALUATION, "2", "1.25", "3"]


REPORT = RankReport(
    rank=0, device_name="NVIDIA H200", device_uuid="GPU-1", loaded_bytes=GIB, context_bytes=600 * MIB, cap_bytes=None,
    phases=(Phase(name=STEADY, seconds=1.5, peak_allocated_bytes=2 * GIB, joules=3),), step_seconds=(0.3, 0.2),
    warm_up_steps=1, steady_tokens=64, steady_padded_tokens=64, meter_seconds=1e-5,
)  # fmt: skip


def test_a_report_survives_being_written() -> None:
    assert outcome.rank_from_document(outcome.rank_document(REPORT)) == REPORT
    assert (REPORT.peak("peak_allocated_bytes"), REPORT.peak("process_bytes")) == (2 * GIB, None)
