"""What an earlier command left running is killed by the token that proves it ours, in a warm process too."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.sweep.ledger import bury
from runners import job, processes
from runners.running import WARM_TOKEN, WarmJob
from runners.spare import Spare
from tests.runners.light_spare import appears, command_of, scripted


@pytest.fixture(params=[True, False], ids=["forked", "the spare itself"])
def warm_job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an endless job in a warm process."""
    monkeypatch.setattr("runners.guard.python", lambda *arguments: command_of(forks=request.param))
    spare = Spare({"PATH": os.environ["PATH"]})
    try:
        assert spare.ready(20)
        folder = scripted(tmp_path / "job", "beat('steady', 1); time.sleep(100)")
        WarmJob(spare, folder)
        assert appears(folder / "beat-0")
        yield folder
    finally:
        spare.end()


def dies(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while processes.started_ticks(pid) is not None and time.monotonic() < until:
        time.sleep(0.01)
    return processes.started_ticks(pid) is None


def test_a_warm_job_is_killed_by_its_spares_token(warm_job: Path) -> None:
    pid = int((warm_job / "beat-0").read_text().split()[0])
    assert processes.token_of(pid) != job.read(warm_job).token
    bury(warm_job, job.read(warm_job).token)
    assert dies(pid, 5)


@pytest.mark.parametrize("other", [b"", b"0" * 32, b"\xff", None])
def test_without_a_token_that_proves_it_nothing_is_killed(warm_job: Path, other: bytes | None) -> None:
    pid = int((warm_job / "beat-0").read_text().split()[0])
    path = warm_job / WARM_TOKEN
    path.unlink() if other is None else path.write_bytes(other)
    bury(warm_job, job.read(warm_job).token)
    assert not dies(pid, 0.2)


def test_a_cold_job_is_killed_by_its_own(tmp_path: Path) -> None:
    folder = scripted(tmp_path / "job", "")
    token = job.read(folder).token
    started = processes.identify(pid := _sleeper(token), token)
    assert started is not None
    (folder / "beat-0").write_text(f"{pid} {started.started_ticks} steady 1")
    bury(folder, token)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def _sleeper(token: str) -> int:
    pid = os.posix_spawnp("sleep", ["sleep", "100"], {"PATH": os.environ["PATH"], processes.TOKEN_VARIABLE: token})
    assert dies(pid, 0.05) is False
    return pid
