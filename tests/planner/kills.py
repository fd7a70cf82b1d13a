"""A sweep whose supervisor and trials are killed at random, again and again, until it is done all the same."""

import collections
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from planner.sweep.space import Space
from runners import processes
from tests.planner.sweeps import LEARN, order, sweep

ROOT = Path(__file__).resolve().parents[2]
RATES = tuple(1e-4 * (1 + number) for number in range(10))
ALONE = """
import fcntl
busy = os.open(folder.parent.parent / "busy", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    (folder.parent.parent / "two-at-once").write_text(str(folder))
time.sleep(0.05)
"""
"""Every trial holds the place's lock while it runs: two at once leave a note."""
LONGEST_DYING_SECONDS = 5.0


@dataclass(slots=True, kw_only=True)
class Count:
    """What was done to a sweep, and what came of it."""

    of_supervisor: int = 0
    of_trials: int = 0
    configurations: int = 0
    results: int = 0
    twice: int = 0
    failed: int = 0
    """Configurations whose trial was killed twice, and is recorded so."""
    unfinished: int = 0
    orphans: int = 0
    together: bool = False
    """Whether two trials ever ran at one place."""
    integrity: str = ""
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return self.of_supervisor + self.of_trials


def space(ranks: int, rates: int) -> Space:
    return Space(ranks=tuple(4 * (1 + number) for number in range(ranks)), learning_rates=RATES[:rates])


def supervise(folder: Path, ranks: int, rates: int) -> None:
    """The supervisor's process."""
    sweep(order(folder, space=space(ranks, rates)), ALONE + LEARN)


def torment(folder: Path, *, ranks: int, rates: int, most_kills: int, seed: int) -> Count:
    """Runs a sweep and kills its supervisor or its trial at random moments, so many times, until it has ended."""
    chance, count, began = random.Random(seed), Count(), time.monotonic()
    code = f"from tests.planner.kills import supervise; from pathlib import Path; supervise(Path({str(folder)!r}), {ranks}, {rates})"  # noqa: E501
    done = False
    while not done:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            done = _hurt(process, folder, count, most_kills, chance)
        finally:
            process.kill()
            process.wait()
        if chance.random() < 0.5 or done:  # else the next one starts while the last one's trial is dying
            count.orphans += len(survivors(folder))
    _check(folder, count, space(ranks, rates))
    count.seconds = time.monotonic() - began
    return count


def _hurt(
    process: "subprocess.Popen[bytes]", folder: Path, count: Count, most_kills: int, chance: random.Random
) -> bool:
    """Lets a supervisor live for a while; whether it came to the end of the sweep."""
    told = len(list(folder.glob("trials/*/job.json")))
    while process.poll() is None and len(list(folder.glob("trials/*/job.json"))) == told:
        time.sleep(0.005)  # it makes its first trial
    while process.poll() is None and count.kills < most_kills:
        time.sleep(chance.uniform(0.0, 0.25))
        if chance.random() < 0.5:
            count.of_supervisor += process.poll() is None
            process.kill()
            return False
        count.of_trials += _kill_one(process.pid, chance)
    return process.wait() == 0


def _kill_one(supervisor: int, chance: random.Random) -> bool:
    """Kills a guard or a trial: a process that this supervisor started, by its number and start time."""
    victims = [
        identity for pid in processes.descendants(supervisor)
        if (token := processes.token_of(pid)) and (identity := processes.identify(pid, token))
    ]  # fmt: skip
    return bool(victims) and processes.signal_ours(chance.choice(victims), signal.SIGKILL)


def survivors(folder: Path) -> list[int]:
    """Processes of the sweep's jobs that are alive though their supervisor is not, after a moment to die."""
    tokens = {json.loads(path.read_text())["token"] for path in folder.glob("trials/*/job.json")}
    until = time.monotonic() + LONGEST_DYING_SECONDS
    while True:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
        left = [pid for pid in pids if processes.started_ticks(pid) and processes.token_of(pid) in tokens]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


def _check(folder: Path, count: Count, whole: Space) -> None:
    """Reads the study as SQL: what SQLite holds, and not what Optuna makes of it."""
    with closing(sqlite3.connect(folder / "study.sqlite")) as study:
        count.integrity = study.execute("PRAGMA integrity_check").fetchone()[0]
        states = collections.Counter(state for (state,) in study.execute("SELECT state FROM trials"))
        rows = study.execute(
            "SELECT digest.value_json, seed.value_json FROM trials"
            " JOIN trial_user_attributes digest ON digest.trial_id = trials.trial_id AND digest.key = 'digest'"
            " JOIN trial_user_attributes seed ON seed.trial_id = trials.trial_id AND seed.key = 'seed'"
            " WHERE state IN ('COMPLETE', 'FAIL')"
        ).fetchall()
    wanted = {one.digest for one in whole.grid()}
    results = collections.Counter((json.loads(digest), int(seed)) for digest, seed in rows)
    count.configurations = len(wanted)
    count.results = len({digest for digest, seed in results if seed == 42} & wanted)
    count.twice = sum(number - 1 for number in results.values())
    count.failed, count.unfinished = states["FAIL"], states["RUNNING"] + states["WAITING"]
    count.together = (folder / "two-at-once").exists()
