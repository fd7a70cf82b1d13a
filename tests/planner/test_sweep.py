"""A sweep: every configuration has one result, whatever happens, and the smallest rank that is as good is taken."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

import optuna
import sqlalchemy

from estimators.errors import BadInput, NoUsableGpu
from estimators.outcome import End, Outcome, Result
from planner.sweep.lock import only_one
from planner.sweep.result import Event, Finished, Planned, Retried, Started
from planner.sweep.run import run
from planner.sweep.space import Space
from planner.sweep.storage import StudyError
from planner.sweep.study import Study
from runners.executors import Ended
from runners.job import Job
from tests.planner.kills import survivors, torment
from tests.planner.sweeps import LEARN, on_cpu, order, sweep, told
from tests.planner.toy import AtOnce, Toy

RANKS = Space(ranks=(4, 8, 16, 32))


def study_of(folder: Path) -> optuna.Study:
    storage = f"sqlite:///{folder / 'study.sqlite'}"
    return optuna.load_study(study_name=None, storage=storage)


def test_the_smallest_rank_within_chance_of_the_best_is_recommended(tmp_path: Path) -> None:
    """Rank 32 leads by less than seeds differ, and so rank 16 is taken; every alpha is 4 × its rank."""
    script = "learned({4: 1.9, 8: 1.8, 16: 1.603, 32: 1.6}[size] + 0.002 * (seed - 42))\n"
    events: list[Event] = []
    done = sweep(order(tmp_path), script, listen=events.append)
    assert done.exit_code == 0
    assert done.recommendation is not None
    assert done.trial(done.recommendation.number).configuration.rank == 16
    assert "0.0040" in done.recommendation.why
    assert done.noise is not None and len(done.noise.losses) == 3
    assert [trial.recipe.adapter.alpha for trial in done.trials] == [4 * t.recipe.adapter.rank for t in done.trials]
    assert {trial.seed for trial in done.trials if trial.repeat} == {43, 44}
    assert [type(event) for event in events][:2] == [Planned, Started]
    assert sum(isinstance(event, Finished) for event in events) == 6


def test_all_trials_have_the_same_work(tmp_path: Path) -> None:
    sweep(order(tmp_path))
    jobs = told(tmp_path)
    assert len(jobs) == 6
    assert {job["steps"] for job in jobs} == {4}
    batches = {job["recipe"]["micro_batch"] * job["recipe"]["gradient_accumulation"] for job in jobs}
    assert batches == {2}


def test_a_finished_sweep_is_not_run_again(tmp_path: Path) -> None:
    first = sweep(order(tmp_path))
    again = sweep(order(tmp_path), "sys.exit(1)\n")
    assert again.trials == first.trials
    assert again.resumed == 6
    assert again.recommendation == first.recommendation


def test_a_larger_space_goes_on_with_the_same_study(tmp_path: Path) -> None:
    sweep(order(tmp_path, space=Space(ranks=(4, 8)), repeats=0))
    done = sweep(order(tmp_path, repeats=0), LEARN)
    assert done.resumed == 2
    assert sorted(trial.configuration.rank for trial in done.trials) == [4, 8, 16, 32]


def test_out_of_memory_is_infeasible_and_what_needs_no_less_is_never_launched(tmp_path: Path) -> None:
    script = "out_of_memory() if size >= 8 else None\n" + LEARN
    done = sweep(order(tmp_path), script)
    assert [trial.configuration.rank for trial in done.trials if trial.out_of_memory] == [8]
    assert sorted(one.configuration.rank for one in done.screened) == [16, 32]
    assert {one.kind for one in done.screened} == {"dominated"}
    trials = study_of(tmp_path).get_trials()
    assert {trial.state for trial in trials} == {optuna.trial.TrialState.COMPLETE}
    assert trials[1].constraints["fits"] > 0
    assert trials[0].constraints["fits"] <= 0
    assert done.exit_code == 0
    again = sweep(order(tmp_path), "sys.exit(1)\n")
    assert (again.trials, again.screened) == (done.trials, done.screened), "as it was, and nothing ran"


def test_every_trial_out_of_memory_has_its_exit_code(tmp_path: Path) -> None:
    done = sweep(order(tmp_path), "out_of_memory()\n")
    assert done.exit_code == 5
    assert done.recommendation is None
    assert len(done.trials) == 1


def test_a_trial_that_dies_is_run_once_more_and_then_has_failed(tmp_path: Path) -> None:
    script = "os.kill(os.getpid(), 9) if size == 8 or (size == 16 and folder.name.endswith('-1')) else None\n" + LEARN
    events: list[Event] = []
    done = sweep(order(tmp_path, repeats=0), script, listen=events.append)
    outcomes = {trial.configuration.rank: trial.outcome for trial in done.trials}
    assert outcomes == {4: Outcome.OK, 8: Outcome.FAILED, 16: Outcome.OK, 32: Outcome.OK}
    assert sum(isinstance(event, Retried) for event in events) == 2
    assert len(done.trials) == 4
    states = [trial.state.name for trial in study_of(tmp_path).get_trials()]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]


def test_a_loss_that_is_no_number_ends_a_trial_and_never_wins(tmp_path: Path) -> None:
    script = "if size == 32:\n    learned('nan', (3.0, 'nan'))\n    sys.exit()\n" + LEARN
    done = sweep(order(tmp_path, repeats=0), script)
    hopeless = next(trial for trial in done.trials if trial.configuration.rank == 32)
    assert hopeless.hopeless
    assert not hopeless.ok
    assert done.recommendation is not None and done.recommendation.number != hopeless.number
    constraints = study_of(tmp_path).get_trials()[hopeless.number].constraints
    assert constraints["learns"] > 0
    assert all(math.isfinite(value) for trial in study_of(tmp_path).get_trials() for value in trial.values)


def test_a_rising_loss_is_stopped_long_before_its_end(tmp_path: Path) -> None:
    rising = """
if size == 32:
    for step in range(1, 2000):
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        (folder / "beat-0").write_text(f"{os.getpid()} {ticks} steady {step} {2.0 * step}")
        time.sleep(0.06)
"""
    done = sweep(order(tmp_path, repeats=0), rising + LEARN)
    stopped = next(trial for trial in done.trials if trial.configuration.rank == 32)
    assert "the loss rose from" in stopped.hopeless
    assert stopped.seconds < 15
    assert sweep(order(tmp_path, repeats=0), "sys.exit(1)\n").trials == done.trials


def test_the_time_that_is_left_is_filled_and_the_rest_is_listed(tmp_path: Path) -> None:
    slow = "time.sleep(2.0)\n" + LEARN
    done = sweep(order(tmp_path, budget_seconds=6.0, repeats=0), slow)
    ran = {trial.configuration.rank for trial in done.trials}
    left_out = {one.configuration.rank for one in done.screened if one.kind == "budget"}
    assert ran | left_out < {4, 8, 16, 32} if done.unfinished else ran | left_out == {4, 8, 16, 32}
    assert len(ran) < 4, "four of them take eight seconds"
    assert not ran & left_out
    assert done.seconds < 12
    more = sweep(order(tmp_path, repeats=0), LEARN)
    assert more.resumed == len(done.trials)
    assert len(more.trials) == 4


def test_a_budget_that_is_over_before_one_trial_is_bad_use(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--budget of 0.3 s is too short for a trial: none ended in it") as found:
        sweep(order(tmp_path, budget_seconds=0.3), "time.sleep(60)\n" + LEARN)
    assert found.value.exit_code == 2
    assert sweep(order(tmp_path, repeats=0)).exit_code == 0, "and with more time the same command goes on"


class Flaky:
    """An executor whose first job is lost with its place; `absent` as it is told."""

    def __init__(self, absent: bool) -> None:
        self.lost, self.gone, self._events, self._absent = 0, False, list[Event](), absent

    @property
    def places(self) -> Sequence[str]:
        return [] if self.gone else ["node-a GPU 0"]

    @property
    def absent(self) -> dict[str, str]:
        return {"node-a GPU 0": "the machine went away"} if self.gone else {}

    def warm(self, work: Job) -> None: ...

    def start(self, place: str, folder: Path) -> None:
        self.lost += 1
        self.gone = self._absent
        self._ended = Ended(place=place, folder=folder, result=None, lost="the machine went away")

    def wait(self, seconds: float) -> Sequence[Ended]:
        ended, self._ended = getattr(self, "_ended", None), None
        time.sleep(0.02)
        return [ended] if ended else []

    def stop(self, place: str) -> None: ...

    def close(self) -> None: ...


def test_a_place_that_is_lost_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    with pytest.raises(NoUsableGpu, match="the machine went away"):
        run(order(tmp_path, absence_seconds=0.2), on_cpu(), Flaky(absent=True))
    again = sweep(order(tmp_path, repeats=0))
    assert [trial.outcome for trial in again.trials] == [Outcome.OK] * 4


class Crashing(AtOnce):
    """A cluster whose worker dies of one rank, and comes back; `begun` as it is told."""

    def __init__(self, times: int, *, begun: bool) -> None:
        super().__init__()
        self._times, self._begun, self._looks = times, begun, 0

    @property
    def places(self) -> Sequence[str]:  # type: ignore[override]
        self._looks += 1
        return ("GPU 0",) if self._looks > 3 else ()

    @property
    def absent(self) -> Mapping[str, str]:  # type: ignore[override]
        return {} if self._looks > 3 else {"GPU 0": "the worker is gone"}

    def start(self, place: str, folder: Path) -> None:
        super().start(place, folder)
        if self.launched[-1][0] == 2 and self._times:
            self._times -= 1
            lost = Ended(place=place, folder=folder, result=None, lost="the worker is gone", begun=self._begun)
            self._ended[-1], self._looks = lost, 0


def crashed(folder: Path, times: int, *, begun: bool) -> tuple[list[tuple[int, Outcome]], int]:
    """How each rank ended, and how often the one was launched whose worker dies."""
    one = replace(order(folder, objectives=("loss",), repeats=0), space=Space(ranks=(1, 2, 4)))
    executor = Crashing(times, begun=begun)
    done = run(one, Toy(), executor)
    launched = sum(rank == 2 for rank, _ in executor.launched)
    return sorted((trial.configuration.rank, trial.outcome) for trial in done.trials), launched


def test_a_trial_that_takes_its_worker_along_is_run_once_more_and_then_has_failed(tmp_path: Path) -> None:
    """However often the place comes back; but a GPU that somebody was on is no fault of the trial's."""
    well = [(rank, Outcome.OK) for rank in (1, 2, 4)]
    assert crashed(tmp_path / "one", 1, begun=True) == (well, 2)
    assert crashed(tmp_path / "all", 99, begun=True) == ([well[0], (2, Outcome.FAILED), well[2]], 2)
    assert crashed(tmp_path / "taken", 5, begun=False) == (well, 6)


def test_ctrl_c_leaves_a_sweep_that_goes_on(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.planner.sweeps import order, sweep
done = sweep(order(Path({str(tmp_path)!r})), "time.sleep(0.3 if size < 16 else 60)\\n" + {LEARN!r})
raise SystemExit(done.exit_code)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        while len(list(tmp_path.glob("trials/*/beat-0"))) + len(list(tmp_path.glob("trials/0002-1/job.json"))) < 1:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
    assert survivors(tmp_path) == []
    done = sweep(order(tmp_path))
    assert done.resumed == 2
    assert len(done.trials) == 6
    assert all(trial.ok for trial in done.trials)


def test_kills_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    count = torment(tmp_path, ranks=2, rates=2, most_kills=5, seed=int.from_bytes(os.urandom(2), "big"))
    assert count.kills == 5
    assert (count.results, count.twice, count.unfinished) == (4, 0, 0)
    assert (count.orphans, count.together, count.integrity) == (0, False, "ok")


def test_the_supervisor_itself_costs_next_to_nothing(tmp_path: Path) -> None:
    """Between trials, of which the fastest of three sweeps tells what the machine and not its load takes."""
    best = math.inf
    for number in range(3):
        done = sweep(order(tmp_path / str(number), repeats=0))
        best = min(best, done.own_seconds / (len(done.trials) - 1))
    assert best <= 0.3


def test_two_supervisors_of_one_sweep(tmp_path: Path) -> None:
    sweep(order(tmp_path, space=Space(ranks=(4,))))
    with only_one(tmp_path / "lock"), pytest.raises(BadInput, match=f"process {os.getpid()} is running this sweep"):
        sweep(order(tmp_path))
    other = order(tmp_path / "elsewhere", storage=f"sqlite:///{tmp_path / 'study.sqlite'}")
    with only_one(tmp_path / "study.sqlite.lock"), pytest.raises(BadInput, match="running this sweep already"):
        sweep(other)
    assert len(sweep(order(tmp_path)).trials) == 6


@pytest.mark.parametrize("damage", ["no database at all, but a text" * 300, "middle"])
def test_a_damaged_study_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    sweep(order(tmp_path))
    path = tmp_path / "study.sqlite"
    data = bytearray(path.read_bytes())
    if damage == "middle":
        data[len(data) // 4 : len(data) // 2] = os.urandom(len(data) // 2 - len(data) // 4)
    else:
        data[:] = damage.encode()
    path.write_bytes(data)
    with pytest.raises((BadInput, StudyError)) as refused:
        sweep(order(tmp_path))
    assert "\n" not in str(refused.value)
    assert "left as it" in str(refused.value)
    assert path.read_bytes() == bytes(data)


def test_a_study_that_is_locked_costs_a_line_and_no_result(tmp_path: Path) -> None:
    held: list[sqlite3.Connection] = []

    def hold(event: Event) -> None:
        if isinstance(event, Started) and event.number == 1:
            held.append(sqlite3.connect(tmp_path / "study.sqlite", isolation_level=None))
            held[0].execute("BEGIN EXCLUSIVE")

    with pytest.raises(StudyError, match="is in use: another process"):
        sweep(replace(order(tmp_path), patience_seconds=0.2), listen=hold)
    held[0].close()
    again = sweep(order(tmp_path))
    assert all(trial.ok for trial in again.trials)
    with closing(sqlite3.connect(tmp_path / "study.sqlite")) as study:
        assert study.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0] == 6
    folders = {trial.folder for trial in again.trials}
    assert "trials/0000-1" in folders, "what had ended when the study was locked is not run again"


def test_a_full_disk_costs_a_line_and_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Study.begin

    def cramped(self: Study, *words: object) -> int:
        number = begin(self, *words)  # type: ignore[arg-type]
        engine = self._study._storage._backend.engine  # type: ignore[attr-defined]
        if number == 1:  # SQLite's own SQLITE_FULL, on every connection from here
            sqlalchemy.event.listen(engine, "begin", lambda one: one.exec_driver_sql("PRAGMA max_page_count = 1"))
        return number

    monkeypatch.setattr(Study, "begin", cramped)
    with pytest.raises(StudyError, match="the disk is full; what it holds is safe") as full:
        sweep(order(tmp_path))
    assert "\n" not in str(full.value)
    monkeypatch.undo()
    again = sweep(order(tmp_path))
    assert [trial.ok for trial in again.trials] == [True] * 6
    assert "trials/0000-1" in {trial.folder for trial in again.trials}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, document: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("runners.job.write_atomically", full)
    with pytest.raises(StudyError, match=r"trials/0000-1: No space left on device; what the study holds is safe"):
        sweep(order(tmp_path))
    monkeypatch.undo()
    assert [trial.ok for trial in sweep(order(tmp_path)).trials] == [True] * 6


def test_results_of_another_kind_are_no_part_of_a_study(tmp_path: Path) -> None:
    """Trials of other lengths do not compare, so they are not in one study, though in one folder."""
    first = order(tmp_path)
    longer = replace(first, work=replace(first.work, terms=replace(first.work.terms, steps=5)))
    assert first.study != longer.study
    assert first.study == order(tmp_path, space=Space(ranks=(4, 64))).study


def test_a_trial_that_measured_no_loss_has_failed(tmp_path: Path) -> None:
    done = sweep(order(tmp_path, space=Space(ranks=(4, 8)), repeats=0), "leave(GOOD)\n")
    assert {trial.outcome for trial in done.trials} == {Outcome.FAILED}
    assert "without a figure for loss" in done.trials[0].evidence
    assert done.exit_code == 1
    assert Result(end=End(outcome=Outcome.OK), seconds=1.0).learning is None
