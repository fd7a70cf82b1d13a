"""What is seen of a job while it runs: what it holds of the card, and how fast it goes.

The child is a stand-in; watcher, guards and the NVML binding are real.
"""

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from estimators.outcome import EVALUATION, FIRST_STEP, LOAD, STEADY
from estimators.units import GIB
from runners import cards
from runners.executors import Ended, Event, Progress
from runners.executors.local import LocalExecutor
from runners.pace import Pace
from tests.runners import tiny_job
from tests.runners.test_executors_local import PATIENCE_SECONDS, TWO, now, wait_for
from tests.runners.tiny_job import QUICK

if TYPE_CHECKING:
    from tests.runners.conftest import Machine

STEPS = """
def step(number, tokens):
    text = f"{os.getpid()} 1 steady {number} 1.5 t{tokens}"
    (folder / "beat.new").write_text(text)
    (folder / "beat.new").replace(folder / "beat-0")
"""


def test_a_speed_is_told_once_there_are_steps_enough_and_evaluations_are_no_part_of_it() -> None:
    pace, told = Pace(2), []
    for phase, step, tokens, seconds in (
        (LOAD, 0, None, 0.0), (FIRST_STEP, 1, 1_000, 50.0), (STEADY, 2, 2_000, 60.0), (STEADY, 3, 2_100, 61.0),
        (STEADY, 4, 2_200, 62.0), (EVALUATION, 4, None, 62.0), (EVALUATION, 4, None, 90.0),
        (STEADY, 4, 2_200, 100.0), (STEADY, 5, 2_300, 101.0), (STEADY, 6, 2_400, 103.0),
    ):  # fmt: skip
        pace.hear(phase, step, tokens, seconds)
        told.append(pace.tokens_per_second)
    assert told == [None] * 8 + [200.0, 160.0], "100 tokens a second of each of two ranks, then the last one is slower"


def test_steps_too_quick_to_be_timed_and_jobs_that_do_not_count_have_no_speed() -> None:
    quick, silent = Pace(1), Pace(1)
    for step in range(20):
        quick.hear(STEADY, step, 100 * step, step / 100)
        silent.hear(STEADY, step, None, float(step))
    assert (quick.tokens_per_second, silent.tokens_per_second) == (None, None)


def test_a_running_job_tells_its_speed_and_on_a_cpu_no_memory(tmp_path: Path) -> None:
    script = STEPS + "for number in range(2, 30): step(number, 100 * number); time.sleep(0.1)\nleave(GOOD)"
    events: list[Event] = []
    with closing(LocalExecutor((), child=tiny_job.stand_in(script), limits=QUICK)) as local:
        local.start("CPU", tiny_job.make(tmp_path / "a"))
        wait_for(lambda: events.extend(local.wait(0.05)) or any(isinstance(event, Ended) for event in events))
    told = [event for event in events if isinstance(event, Progress)]
    assert told[0].tokens_per_second is None and told[-1].tokens_per_second == pytest.approx(1_000, rel=0.5)
    assert {event.vram_bytes for event in told} == {None}
    assert {event.loss for event in told} == {1.5}


def held_while_it_runs(root: Path, scenario: Path) -> list[int | None]:
    """What is told of a job's memory: before it has any, by its own process, and where numbers are another's."""
    free = scenario.read_text()
    script = "beat('steady', 3); (folder / 'began').write_text(str(os.getpid())); time.sleep(100)"
    told: list[int | None] = []

    def until_told(local: LocalExecutor, wanted: int) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while wanted not in told[-1:] and time.monotonic() < until:
            told.extend(event.vram_bytes for event in local.wait(0.1) if isinstance(event, Progress))

    with closing(LocalExecutor(TWO, child=tiny_job.stand_in(script), limits=QUICK, watch=cards.watch)) as local:
        folder = tiny_job.make(root / "a")
        local.start("GPU 0", folder)
        wait_for(lambda: (folder / "began").exists() and (folder / "began").read_text())
        until_told(local, 0)
        memory = f"gpu0.memory2={140 * GIB},0,{131 * GIB},{9 * GIB}\n"
        own = (folder / "began").read_text()
        now(scenario, f"gpu0.compute={own}:{7 * GIB}\n{memory}{free}")
        until_told(local, 7 * GIB)
        now(scenario, f"gpu0.compute=1234567:{7 * GIB}\n{memory}{free}")
        until_told(local, 9 * GIB)
    return list(dict.fromkeys(told))


def test_what_a_job_holds_of_its_gpu_is_told_as_it_changes(machine: "Machine", tmp_path: Path) -> None:
    machine.probe(machine.h200, machine.h200)
    told = machine.ask(held_while_it_runs, tmp_path / "jobs", machine.scenario)
    assert [held for held in told if held is not None] == [0, 7 * GIB, 9 * GIB]
