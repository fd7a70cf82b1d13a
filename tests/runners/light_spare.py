"""A spare that imports nothing, and whose jobs are scripts; the rest of it is real."""

import sys
import time
from pathlib import Path

from runners import guard
from tests.runners import tiny_job

LIGHT = """
import os, sys, time
sys.path.insert(0, {root!r})
import runners.spare as spare
from tests.runners.tiny_job import STAND_IN

def become(folder):
    sys.argv = ["", str(folder)]
    os.chdir(folder)
    exec(STAND_IN + (folder / "script").read_text(), {{}})
    os._exit(0)

spare.NEEDED = spare.USEFUL = ()
spare.may_fork, spare._become = lambda: {forks}, become
{before}
spare.main()
"""


def code_of(*, forks: bool, before: str = "") -> str:
    """The program of such a spare."""
    return LIGHT.format(root=str(guard.ROOT), forks=forks, before=before)


def command_of(*, forks: bool, before: str = "") -> list[str]:
    return [sys.executable, "-P", "-c", code_of(forks=forks, before=before)]


def scripted(folder: Path, script: str) -> Path:
    """A job's folder, for such a spare."""
    tiny_job.make(folder)
    (folder / "script").write_text(script)
    return folder


def appears(path: Path, seconds: float = 20.0) -> bool:
    """Whether somebody leaves the file in time."""
    until = time.monotonic() + seconds
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    return path.exists()
