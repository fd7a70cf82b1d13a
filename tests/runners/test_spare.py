"""A warm process: imports once, touches no GPU, and gives every job a process of its own."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from estimators.outcome import Outcome
from estimators.recipe import Parallelism
from runners import guard, job, launch, processes
from runners.environment import environment_of
from runners.spare import Spare, _driver_open, _known_capability
from tests.runners import tiny_job
from tests.runners.tiny_job import QUICK


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that wait for a core would make a step slow."""
    monkeypatch.setattr("runners.environment.usable_cores", lambda: 1)


def test_warm_jobs_follow_each_other_and_share_no_process(tmp_path: Path) -> None:
    folders = [tiny_job.make(tmp_path / f"warm{number}", steps=2) for number in range(2)]
    with launch.open_bench((), warm=True) as bench:
        began = time.monotonic()
        spare = bench.prepare(job.read(folders[0]))
        assert spare is not None and spare.ready(120)
        import_seconds = time.monotonic() - began
        assert (spare.forks, spare.touched_cuda) == (True, False)
        results = [launch.run(folder, bench, limits=QUICK) for folder in folders]
        assert bench.prepare(job.read(folders[0])) is spare
        waiting = spare.process.guard.pid
    assert [(result.end.ok, result.warm) for result in results] == [(True, True)] * 2, results[0].end
    assert len({(folder / "beat-0").read_text().split()[0] for folder in folders}) == 2
    assert results[1].seconds < import_seconds / 2, "imports were paid for again"
    assert processes.started_ticks(waiting) is None


def test_a_job_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    """Whatever state it left its process in, the next one starts clean, and as warm."""
    with launch.open_bench((), warm=True) as bench:
        spare = bench.prepare(job.read(tiny_job.make(tmp_path / "wrong", weights="/nonexistent")))
        wrong = launch.run(tmp_path / "wrong", bench, limits=QUICK)
        slow = launch.run(
            tiny_job.make(tmp_path / "slow", steps=100_000), bench, limits=replace(QUICK, total_seconds=2)
        )
        right = launch.run(tiny_job.make(tmp_path / "right", steps=1), bench, limits=QUICK)
        assert bench.prepare(job.read(tmp_path / "wrong")) is spare
        assert spare is not None and len(spare.process.processes()) == 1
    assert [one.end.outcome for one in (wrong, slow, right)] == [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.OK]


def environment_once_there(pid: int) -> bytes:
    """A process that has just been started has an environment a moment later."""
    until = time.monotonic() + 5
    while not (text := Path(f"/proc/{pid}/environ").read_bytes()) and time.monotonic() < until:
        time.sleep(0.01)
    return text


def test_spares_are_kept_per_environment(tmp_path: Path) -> None:
    """torch reads the allocator's settings as it is imported: another setting wants another process."""
    plain = job.Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG)
    expandable = job.Job(recipe=tiny_job.recipe(expandable_segments=True), config=tiny_job.CONFIG)
    with launch.open_bench((), warm=True) as bench:
        spares = [bench.prepare(work) for work in (plain, expandable, plain)]
        assert spares[0] is spares[2] is not spares[1]
        environments = [environment_once_there(one.process.guard.pid) for one in spares if one]
    assert [b"expandable_segments:True" in text for text in environments] == [False, True, False]


def test_a_spare_that_dies_while_importing_is_replaced_by_a_cold_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with launch.open_bench((), warm=True) as bench:
        folder = tiny_job.make(tmp_path, steps=1)
        spare = bench.prepare(job.read(folder))
        assert spare is not None
        spare.process.guard.kill()
        result = launch.run(folder, bench, limits=QUICK)
    assert (result.end.ok, result.warm) == (True, False)


def test_a_spare_that_cannot_fork_serves_once_and_the_next_waits_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an import has initialised CUDA, the process is its job itself."""
    folders = [tiny_job.make(tmp_path / f"job{number}", steps=1) for number in range(2)]
    with launch.open_bench((), warm=True) as bench:
        monkeypatch.setattr("runners.guard.python", with_an_open_driver)
        first = bench.prepare(job.read(folders[0]))
        assert first is not None and first.ready(120)
        assert not first.forks
        results = [launch.run(folder, bench, limits=QUICK) for folder in folders]
        assert bench.prepare(job.read(folders[0])) is not first
    assert [(result.end.ok, result.warm) for result in results] == [(True, True)] * 2, results
    assert processes.started_ticks(first.process.guard.pid) is None


def with_an_open_driver(module: str, *arguments: str) -> list[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(guard.ROOT)!r}); import runners.spare; "
        "runners.spare.may_fork = lambda: False; runners.spare.main()"
    )
    return [sys.executable, "-P", "-W", "ignore", "-c", code]


def test_several_ranks_have_no_spare() -> None:
    parallel = tiny_job.recipe(parallelism=Parallelism(kind="ddp", devices=2))
    with launch.open_bench((), warm=True) as bench:
        assert bench.prepare(job.Job(recipe=parallel, config=tiny_job.CONFIG)) is None


def test_an_open_driver_forbids_forking(tmp_path: Path) -> None:
    assert not _driver_open()
    (tmp_path / "3").symlink_to("/dev/nvidiactl")
    assert not _driver_open(tmp_path)
    (tmp_path / "4").symlink_to("/dev/nvidia-uvm")
    assert _driver_open(tmp_path)


def test_the_cards_kind_is_known_while_importing_and_asked_again_later(tmp_path: Path) -> None:
    """bitsandbytes would initialise CUDA to learn it."""

    ask = torch.cuda.get_device_capability
    with _known_capability("9.0"):
        assert torch.cuda.get_device_capability(0) == (9, 0)
    assert torch.cuda.get_device_capability is ask
    with _known_capability(""):
        assert torch.cuda.get_device_capability is ask


def test_a_spare_ends_with_all_that_it_holds(tmp_path: Path) -> None:
    work = job.Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG)
    spare = Spare(environment_of(work, ()))
    everyone = [spare.process.guard.pid, *spare.process.processes()]
    spare.end()
    assert [pid for pid in everyone if processes.started_ticks(pid) is not None] == []
