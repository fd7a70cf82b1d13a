"""Places that get ready before their first job is known: it begins in the process that was started before."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from estimators.recipe import Parallelism
from runners import guard, processes
from runners.cards import CardState, OccupiedGpu
from runners.executors import Ended
from runners.executors.local import LocalExecutor
from runners.job import Job
from runners.running import WARM_TOKEN
from tests.runners import tiny_job
from tests.runners.light_spare import code_of, command_of, scripted
from tests.runners.tiny_job import CARD, QUICK, gpu

PATIENCE_SECONDS = 30.0
WELL = "leave(GOOD)"
MARKS = """
from pathlib import Path
(Path({root!r}) / f"{{os.getpid()}}.spare").write_text(os.environ["PLAN_JOB_TOKEN"])
"""
"""Each waiting process leaves its token as it starts."""


def work(**changes: Any) -> Job:
    return Job(recipe=tiny_job.recipe(**changes), config=tiny_job.CONFIG)


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    def set_up(*, forks: bool = True, then: str = "") -> None:
        before = MARKS.format(root=str(tmp_path)) + then
        monkeypatch.setattr("runners.guard.python", lambda *arguments: command_of(forks=forks, before=before))

    return set_up


def waits_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.02)


def tokens(root: Path) -> list[str]:
    """Of the processes that were started to wait."""
    return [text for path in root.glob("*.spare") if (text := path.read_text())]


def alive(root: Path) -> list[int]:
    return [pid for path in root.glob("*.spare") if processes.started_ticks(pid := int(path.stem)) is not None]


def over(local: LocalExecutor, place: str, folder: Path) -> Ended:
    local.start(place, folder)
    found: list[Ended] = []
    waits_for(lambda: found.extend(event for event in local.wait(0.1) if isinstance(event, Ended)) or found)
    return found[0]


@pytest.mark.parametrize("forks", [True, False])
def test_the_first_job_of_a_warmed_place_runs_in_the_process_that_was_started_before(
    tmp_path: Path, light: Callable[..., None], forks: bool
) -> None:
    light(forks=forks)
    with closing(LocalExecutor((), limits=QUICK)) as local:
        local.warm(work())
        waits_for(lambda: tokens(tmp_path))
        early, folder = tokens(tmp_path), scripted(tmp_path / "job", WELL)
        end = over(local, "CPU", folder)
    assert end.result is not None and (end.result.end.ok, end.result.warm) == (True, True)
    assert [(folder / WARM_TOKEN).read_text()] == early
    assert alive(tmp_path) == []


def test_a_place_that_prepared_for_other_jobs_runs_what_comes(tmp_path: Path, light: Callable[..., None]) -> None:
    light()
    with closing(LocalExecutor((), limits=QUICK)) as local:
        local.warm(work(expandable_segments=True))
        waits_for(lambda: tokens(tmp_path))
        early, folder = tokens(tmp_path), scripted(tmp_path / "job", WELL)
        end = over(local, "CPU", folder)
        assert end.result is not None and (end.result.end.ok, end.result.warm) == (True, True)
        assert (folder / WARM_TOKEN).read_text() not in early
    assert alive(tmp_path) == []


@pytest.mark.parametrize("named", [{"warm": False}, {"child": tiny_job.stand_in(WELL)}, {"changes": 2}])
def test_where_no_process_may_wait_or_several_are_launched_together_none_is_started(
    tmp_path: Path, light: Callable[..., None], named: dict[str, Any]
) -> None:
    light()
    ranks = {"parallelism": Parallelism(kind="ddp", devices=2)} if named.pop("changes", None) else {}
    with closing(LocalExecutor((), limits=QUICK, **named)) as local:
        local.warm(work(**ranks))
        time.sleep(0.5)
        assert tokens(tmp_path) == []


@pytest.mark.parametrize("leaves", [True, False])
def test_somebody_on_the_gpu_keeps_it_from_getting_ready_and_is_told_of_by_the_first_job(
    tmp_path: Path, light: Callable[..., None], leaves: bool
) -> None:
    light()
    taken, looks = [True], list[bool]()

    @contextmanager
    def watch(uuids: Sequence[str]) -> Iterator[Callable[[], Sequence[CardState]]]:
        looks.append(taken[0])
        if taken[0]:
            raise OccupiedGpu("somebody is on it")
        yield lambda: [CardState(uuid=CARD, held_bytes=0)]

    with closing(LocalExecutor((gpu(),), limits=QUICK, watch=watch, look_again_seconds=0.1)) as local:
        local.warm(work())
        waits_for(lambda: looks)
        time.sleep(0.1)
        assert (list(local.places), local.absent, tokens(tmp_path)) == (["GPU 0"], {}, [])
        taken[0] = not leaves
        end = over(local, "GPU 0", scripted(tmp_path / "job", WELL))
        assert (end.begun, end.result is not None, end.lost) == (leaves, leaves, "" if leaves else "somebody is on it")
        assert list(local.absent) == ([] if leaves else ["GPU 0"])


def test_closing_while_a_place_gets_ready_leaves_no_process_and_takes_no_time(
    tmp_path: Path, light: Callable[..., None]
) -> None:
    light(then="time.sleep(100)")
    with closing(LocalExecutor((), limits=QUICK)) as local:
        local.warm(work())
        waits_for(lambda: tokens(tmp_path))
        began = time.monotonic()
    assert (alive(tmp_path), time.monotonic() - began < 5) == ([], True)
    local.warm(work())  # too late, and no harm


PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from runners import guard
from runners.executors.local import LocalExecutor
from tests.runners.test_executors_warm import work
guard.python = lambda *arguments: [sys.executable, "-P", "-c", {code!r}]
LocalExecutor(()).warm(work())
time.sleep(100)
"""


def test_killing_us_leaves_no_process_that_waits(tmp_path: Path) -> None:
    code = code_of(forks=True, before=MARKS.format(root=str(tmp_path)) + "time.sleep(100)")
    program = subprocess.Popen([sys.executable, "-P", "-c", PROGRAM.format(root=str(guard.ROOT), code=code)])
    try:
        waits_for(lambda: tokens(tmp_path))
        assert alive(tmp_path)
    finally:
        program.kill()
        program.wait()
    waits_for(lambda: not alive(tmp_path))


def test_what_libraries_write_into_our_environment_meanwhile_is_no_matter_of_jobs(
    tmp_path: Path, light: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch does, which a dry run imports: the process that waits would be another's."""
    light()
    with closing(LocalExecutor((), limits=QUICK)) as local:
        local.warm(work())
        waits_for(lambda: tokens(tmp_path))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        folder = scripted(tmp_path / "job", WELL)
        assert over(local, "CPU", folder).result is not None
        assert tokens(tmp_path) == [(folder / WARM_TOKEN).read_text()]
