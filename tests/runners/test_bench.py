"""GPUs to measure on: occupied ones are refused, and whatever else was on them marks the figures.

What NVML would list is played by a script; the job is a stand-in.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from estimators.errors import BadInput
from estimators.hardware import GpuProcess
from estimators.outcome import Outcome
from estimators.recipe import Parallelism
from estimators.units import GIB
from runners import launch
from runners.cards import CardState, OccupiedGpu
from tests.runners import tiny_job
from tests.runners.tiny_job import CARD, QUICK, gpu, run_stand_in


@contextmanager
def played(states: Callable[[], CardState]) -> Iterator[launch.Bench]:
    @contextmanager
    def watch(uuids: Sequence[str]) -> Iterator[Callable[[], Sequence[CardState]]]:
        yield lambda: [states()]

    with launch.open_bench((gpu(),), watch=watch) as bench:
        yield bench


IDLE = CardState(uuid=CARD, held_bytes=0)
TAKEN = CardState(
    uuid=CARD, held_bytes=9 * GIB, processes=(GpuProcess(pid=99_999_999, used_bytes=9 * GIB, name="python3"),)
)


@pytest.mark.parametrize(
    "state", [TAKEN, CardState(uuid=CARD, held_bytes=3 * GIB), CardState(uuid=CARD, held_bytes=None, fault="is lost")]
)
def test_an_occupied_or_broken_gpu_is_refused(state: CardState) -> None:
    with pytest.raises(OccupiedGpu, match=CARD) as refused, played(lambda: state):
        pass
    assert refused.value.exit_code == 4


def test_sharing_is_allowed_when_asked_for_and_marks_the_sample(tmp_path: Path) -> None:
    @contextmanager
    def watch(uuids: Sequence[str]) -> Iterator[Callable[[], Sequence[CardState]]]:
        yield lambda: [TAKEN]

    with launch.open_bench((gpu(),), share=True, watch=watch) as bench:
        result = run_stand_in(tmp_path, "leave(GOOD)", bench=bench)
    assert (result.end.ok, result.valid) == (True, False)
    assert "shared" in result.notes[0]


def test_a_neighbour_that_comes_meanwhile_marks_the_sample(tmp_path: Path) -> None:
    began = time.monotonic()
    comes = tmp_path / "came"

    def states() -> CardState:
        if not (tmp_path / "job/beat-0").exists():
            return IDLE
        comes.write_text("")
        own = int((tmp_path / "job/beat-0").read_text().split()[0])
        both = (GpuProcess(pid=own, used_bytes=GIB, name=None), *TAKEN.processes)
        return replace(TAKEN, processes=both, held_bytes=10 * GIB)

    with played(states) as bench:
        wait = f"while not Path({str(comes)!r}).exists(): time.sleep(0.05)"
        script = f"beat('steady', 3)\n{wait}\ntime.sleep(0.5); leave(GOOD)"
        result = run_stand_in(tmp_path / "job", script, bench=bench)
    assert time.monotonic() - began < 20
    assert (result.end.ok, result.valid) == (True, False)
    assert any("another process came onto" in note for note in result.notes)


def test_our_own_process_is_no_neighbour(tmp_path: Path) -> None:
    def states() -> CardState:
        if not (beat := tmp_path / "job/beat-0").exists():
            return IDLE
        own = GpuProcess(pid=int(beat.read_text().split()[0]), used_bytes=GIB, name=None)
        return CardState(uuid=CARD, held_bytes=GIB, processes=(own,))

    with played(states) as bench:
        result = run_stand_in(tmp_path / "job", "beat('steady', 3); time.sleep(1.5); leave(GOOD)", bench=bench)
    assert result.notes == ()


def test_in_a_container_the_drivers_numbers_are_not_ours(tmp_path: Path) -> None:
    """NVML gives the host's process numbers there: a single newcomer is the job, whatever it is called."""

    def states() -> CardState:
        if not (tmp_path / "job/beat-0").exists():
            return IDLE
        return replace(TAKEN, held_bytes=9 * GIB)

    with played(states) as bench:
        result = run_stand_in(tmp_path / "job", "beat('steady', 3); time.sleep(1.5); leave(GOOD)", bench=bench)
    assert result.notes == ()


def test_memory_that_lingers_is_waited_for(tmp_path: Path) -> None:
    """The driver frees a killed process's memory a while after it died."""
    freed = time.monotonic() + 0.5
    with played(lambda: IDLE) as bench:
        lingering = replace(
            bench,
            read=lambda: [CardState(uuid=CARD, held_bytes=max(int((freed - time.monotonic()) * 40 * GIB), 0))],
        )
        result = run_stand_in(tmp_path, "leave(GOOD)", bench=lingering, limits=replace(QUICK, settle_seconds=5))
    assert (result.end.ok, result.notes) == (True, ())


def test_memory_that_stays_marks_the_sample(tmp_path: Path) -> None:
    with played(lambda: IDLE) as bench:
        stuck = replace(bench, read=lambda: [CardState(uuid=CARD, held_bytes=GIB)])
        result = run_stand_in(tmp_path, "leave(GOOD)", bench=stuck)
    assert not result.valid
    assert "held 1.00 GiB before the job began" in result.notes[0]


def test_a_neighbour_that_came_between_two_jobs_is_refused(tmp_path: Path) -> None:
    with played(lambda: IDLE) as bench, pytest.raises(OccupiedGpu):
        run_stand_in(tmp_path, "leave(GOOD)", bench=replace(bench, read=lambda: [TAKEN]))


def test_a_card_that_slows_down_marks_the_sample(tmp_path: Path) -> None:
    slow = replace(IDLE, slowdowns=("hw_thermal_slowdown",))
    with played(lambda: slow) as bench:
        result = run_stand_in(tmp_path, "time.sleep(0.3); leave(GOOD)", bench=bench)
    assert "hw_thermal_slowdown" in result.notes[0]


def test_a_card_that_is_lost_ends_the_job_as_its_own_fault(tmp_path: Path) -> None:
    lost = CardState(uuid=CARD, held_bytes=None, fault="the GPU has fallen off the bus")
    with played(lambda: lost if (tmp_path / "beat-0").exists() else IDLE) as bench:
        end = run_stand_in(tmp_path, "beat('steady', 3); time.sleep(100)", bench=bench).end
    assert (end.outcome, end.gpu_fault) == (Outcome.FAILED, True)
    assert "fallen off the bus" in end.evidence


def test_a_job_for_another_number_of_gpus_is_refused(tmp_path: Path) -> None:
    tiny_job.make(tmp_path, {"parallelism": Parallelism(kind="ddp", devices=2)})
    with played(lambda: IDLE) as bench, pytest.raises(BadInput, match="2 GPUs"):
        launch.run(tmp_path, bench)
