"""Jobs side by side on one machine: each at its own place, none forgotten, and nothing left of them.

The children are stand-ins; threads, guards and the launcher are real, and so is the NVML binding where GPUs matter.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from estimators.errors import NoUsableGpu
from estimators.outcome import Outcome
from estimators.recipe import Parallelism
from estimators.units import GIB
from runners import cards, guard, job, processes
from runners.cards import CardState
from runners.executors import Ended, Event, Progress, latest
from runners.executors.local import LocalExecutor, groups, place_name
from tests.runners import tiny_job
from tests.runners.tiny_job import QUICK, gpu

if TYPE_CHECKING:
    from tests.runners.conftest import Machine

FIRST, SECOND = "GPU-0000-aaaa", "GPU-1111-aaaa"
TWO = (replace(gpu(), uuid=FIRST, index=0), replace(gpu(), uuid=SECOND, index=1))
QUICKLY = "leave(GOOD)"
FOR_EVER = "beat('steady', 3); (folder / 'began').touch(); time.sleep(100)"
PATIENCE_SECONDS = 30.0


@contextmanager
def idle(uuids: Sequence[str]) -> Iterator[Callable[[], Sequence[CardState]]]:
    """Cards that nobody is on."""
    yield lambda: [CardState(uuid=uuid, held_bytes=0) for uuid in uuids]


def executor(script: str, gpus: Any = TWO, **named: Any) -> LocalExecutor:
    named = {"watch": idle, "limits": QUICK, "look_again_seconds": 0.1} | named
    return LocalExecutor(gpus, child=tiny_job.stand_in(script), **named)


def ended(local: LocalExecutor, count: int = 1) -> list[Ended]:
    """The next jobs that are over, `count` of them or more: jobs that end at the same moment are told at once."""
    found: list[Ended] = []
    until = time.monotonic() + PATIENCE_SECONDS
    while len(found) < count and time.monotonic() < until:
        found += [event for event in local.wait(0.2) if isinstance(event, Ended)]
    assert len(found) >= count
    return found


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


def alive(folder: Path) -> list[int]:
    token = job.read(folder).token
    return [pid for pid in processes.descendants(os.getpid()) if processes.token_of(pid) == token]


def side_by_side(root: Path) -> list[tuple[str, str, str, str]]:
    """Two jobs that each wait for the other to run, on the cards of the real binding, and a third that is refused."""
    script = (
        "(folder / 'sees').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "beat('steady', 3); other = folder.parent / {'a': 'b', 'b': 'a'}[folder.name] / 'sees'\n"
        "while not other.exists(): time.sleep(0.02)\nleave(GOOD)"
    )
    with closing(executor(script, watch=cards.watch)) as local:
        for name, place in zip("ab", local.places, strict=True):
            local.start(place, tiny_job.make(root / name))
        with pytest.raises(ValueError, match="GPU 0 is not free: it runs a job"):
            local.start("GPU 0", tiny_job.make(root / "c"))
        over = ended(local, 2)
    return sorted(
        (end.folder.name, end.place, str(end.result and end.result.end.outcome), (end.folder / "sees").read_text())
        for end in over
    )


def test_two_jobs_run_side_by_side_each_on_its_own_gpu_and_a_third_is_refused(
    machine: "Machine", tmp_path: Path
) -> None:
    machine.probe(machine.h200, machine.h200)
    assert machine.ask(side_by_side, tmp_path) == [("a", "GPU 0", "ok", FIRST), ("b", "GPU 1", "ok", SECOND)]


def now(scenario: Path, text: str) -> None:
    """The driver's answers from here on: the fake one reads them when it is initialised."""
    import pynvml

    scenario.write_text(text)
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()


def occupied_for_a_while(root: Path, scenario: Path) -> tuple[list[object], list[object]]:
    """What is told while somebody is on the second card, and after they have left."""
    free = scenario.read_text()
    with closing(executor(QUICKLY, watch=cards.watch, limits=replace(QUICK, settle_seconds=0.05))) as local:
        local.start("GPU 1", tiny_job.make(root / "a"))
        assert ended(local)[0].result is not None
        taken = f"gpu1.compute=700:{4 * GIB}\ngpu1.memory2={140 * GIB},0,{136 * GIB},{4 * GIB}\n"
        now(scenario, taken + free)  # the first line of a kind counts
        local.start("GPU 1", tiny_job.make(root / "b"))
        (lost,) = ended(local)
        local.start("GPU 0", tiny_job.make(root / "c"))
        assert ended(local)[0].result is not None
        while_taken = [lost.result, lost.begun, lost.lost, list(local.places), local.absent["GPU 1"] == lost.lost]
        with pytest.raises(ValueError, match="GPU 1 is not free"):
            local.start("GPU 1", root / "b")
        now(scenario, free)
        wait_for(lambda: not local.absent)
        local.start("GPU 1", tiny_job.make(root / "d"))
        (after,) = ended(local)
        return while_taken, [after.place, after.lost, after.result is not None and after.result.end.ok]


def test_a_gpu_that_somebody_else_takes_is_left_alone_until_they_are_gone(machine: "Machine", tmp_path: Path) -> None:
    machine.probe(machine.h200, machine.h200)
    (result, begun, lost, places, same), after = machine.ask(occupied_for_a_while, tmp_path / "jobs", machine.scenario)
    assert (result, begun, places, same) == (None, False, ["GPU 0"], True)
    assert f"GPU {SECOND} is in use by process 700" in lost
    assert after == ["GPU 1", "", True]


def lost_meanwhile(root: Path, scenario: Path) -> list[object]:
    """The first card falls off the bus while its job runs."""
    with closing(executor(FOR_EVER, watch=cards.watch)) as local:
        folder = tiny_job.make(root / "a")
        local.start("GPU 0", folder)
        wait_for((folder / "began").exists)
        now(scenario, scenario.read_text().replace("gpu0.memory2=", "gpu0.memory2=!15\ngpu0.was="))
        (over,) = ended(local)
        time.sleep(0.3)  # looked at again it would not come back
        return [over.result, "fallen off the bus" in over.lost, list(local.places), alive(folder)]


def test_a_gpu_that_is_lost_runs_nothing_any_more_and_its_job_may_run_elsewhere(
    machine: "Machine", tmp_path: Path
) -> None:
    machine.probe(machine.h200, machine.h200)
    assert machine.ask(lost_meanwhile, tmp_path / "jobs", machine.scenario) == [None, True, ["GPU 1"], []]


def test_a_job_that_is_stopped_ends_alone(tmp_path: Path) -> None:
    with closing(executor(FOR_EVER)) as local:
        folders = [tiny_job.make(tmp_path / name) for name in "ab"]
        for place, folder in zip(local.places, folders, strict=True):
            local.start(place, folder)
        for folder in folders:
            wait_for((folder / "began").exists)
        local.stop("GPU 0")
        (over,) = ended(local)
        assert (over.place, over.result and over.result.end.outcome) == ("GPU 0", Outcome.CANCELLED)
        assert (alive(folders[0]), len(alive(folders[1])) > 0) == ([], True)
        local.stop("GPU 0")  # nothing runs there: nothing happens
        local.start("GPU 0", tiny_job.make(tmp_path / "c"))


def test_closing_leaves_no_process_whatever_its_jobs_are_at(tmp_path: Path) -> None:
    script = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)\n"
        "(folder / 'daemon').write_text(str(child.pid)); (folder / 'began').touch(); time.sleep(100)"
    )
    folders = [tiny_job.make(tmp_path / name) for name in "ab"]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), closing(executor(script)) as local:
        for place, folder in zip(local.places, folders, strict=True):
            local.start(place, folder)
        for folder in folders:
            wait_for((folder / "began").exists)
        raise KeyboardInterrupt
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert [alive(folder) for folder in folders] == [[], []]
    assert [processes.started_ticks(int((folder / "daemon").read_text())) for folder in folders] == [None, None]
    assert all(isinstance(event, Ended) and event.result is not None for event in local.wait(0.0))
    with pytest.raises(ValueError, match="closed"):
        local.start("GPU 0", tiny_job.make(tmp_path / "c"))


KILLED = """
import sys, time
from pathlib import Path
from runners.executors.local import LocalExecutor
child = lambda folder: [sys.executable, "-c", Path(sys.argv[2]).read_text(), str(folder)]
local = LocalExecutor((), child=child)
local.start("CPU", Path(sys.argv[1]))
time.sleep(100)
"""


def test_a_supervisor_that_is_killed_takes_its_jobs_with_it(tmp_path: Path) -> None:
    folder, script = tiny_job.make(tmp_path / "job"), tmp_path / "script.py"
    script.write_text(tiny_job.STAND_IN + "(folder / 'pid').write_text(str(os.getpid()))\n" + FOR_EVER)
    supervisor = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(script)], env={**os.environ, "PYTHONPATH": str(guard.ROOT)}
    )
    try:
        wait_for((folder / "began").exists)
    finally:
        supervisor.kill()
        supervisor.wait()
    pid = int((folder / "pid").read_text())
    wait_for(lambda: processes.started_ticks(pid) is None)


def test_many_jobs_each_end_once_and_never_two_at_one_place(tmp_path: Path) -> None:
    """The place's mark is made by its job and must not be there yet."""
    script = (
        "mark = folder.parent / os.environ['CUDA_VISIBLE_DEVICES']\n"
        "os.close(os.open(mark, os.O_CREAT | os.O_EXCL)); mark.unlink(); leave(GOOD)"
    )
    waiting = [tiny_job.make(tmp_path / str(number)) for number in range(16)]
    expected, over = list(waiting), list[Ended]()
    with closing(executor(script)) as local:
        free = list(local.places)
        while len(over) < len(expected):
            while free and waiting:
                local.start(free.pop(), waiting.pop())
            new = ended(local)
            over += new
            free += [end.place for end in new]
    assert sorted(end.folder for end in over) == sorted(expected)
    assert all(end.result is not None and end.result.end.ok for end in over), over


def test_a_job_says_how_far_it_is(tmp_path: Path) -> None:
    script = "beat('load', 0); time.sleep(0.3); beat('steady', 7); time.sleep(0.3); leave(GOOD)"
    folder = tiny_job.make(tmp_path / "a")
    with closing(executor(script, gpus=())) as local:
        assert list(local.places) == ["CPU"]
        local.start("CPU", folder)
        events: list[Event] = []
        wait_for(lambda: events.extend(local.wait(0.05)) or any(isinstance(event, Ended) for event in events))
    said = [(event.phase, event.step) for event in events if isinstance(event, Progress)]
    assert said == [("load", 0), ("steady", 7)]


def test_of_a_job_that_went_on_several_times_the_latest_is_told(tmp_path: Path) -> None:
    one, two = (Progress(place="CPU", folder=tmp_path, phase="steady", step=step, loss=None) for step in (1, 2))
    other = Progress(place="GPU 0", folder=tmp_path / "b", phase="load", step=0)
    over = Ended(place="CPU", folder=tmp_path, result=None)
    assert latest([one, other, two, over]) == [other, two, over]


@pytest.mark.parametrize("changes", [None, {"parallelism": Parallelism(kind="ddp", devices=2)}])
def test_a_folder_that_cannot_be_run_has_failed_and_the_place_goes_on(
    tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    folder = tmp_path / "a" if changes is None else tiny_job.make(tmp_path / "a", changes)
    with closing(executor(QUICKLY)) as local:
        local.start("GPU 0", folder)
        (over,) = ended(local)
        assert over.result is not None
        assert over.result.end.outcome is Outcome.FAILED
        assert ("2 GPUs" if changes else "job.json") in over.result.end.evidence
        local.start("GPU 0", tiny_job.make(tmp_path / "b"))
        assert ended(local)[0].result is not None


def test_a_trial_can_take_several_gpus() -> None:
    three = (*TWO, replace(gpu(), uuid="GPU-2222-aaaa", index=2))
    assert list(groups(three, 2)) == ["GPUs 0-1"]
    assert list(groups(three, 3)) == ["GPUs 0-2"]
    assert list(groups((replace(TWO[0], index=1), replace(TWO[1], index=1)), 1)) == ["GPU 1", f"GPU 1 ({SECOND})"]
    assert (place_name([0, 2]), place_name([])) == ("GPUs 0,2", "CPU")
    with pytest.raises(NoUsableGpu, match="takes 4 GPUs, and there are 3"):
        groups(three, 4)


def test_a_place_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with closing(executor(QUICKLY)) as local, pytest.raises(ValueError, match="no place 'GPU 7'"):
        local.start("GPU 7", tmp_path)
