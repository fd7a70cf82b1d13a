"""A sweep beyond one study: what is taken up again, what is refused, and what is told of trials that ended oddly."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

from estimators.errors import BadInput
from estimators.outcome import End, Outcome, Result, to_document
from planner.commands.ordering import order_of, subject_of
from planner.commands.sweep import _appraiser, _teaching, command
from planner.sweep.address import address_of
from planner.sweep.appraise import Option, Refusal, Skip
from planner.sweep.folder import LOCK
from planner.sweep.ledger import Ledger
from planner.sweep.lock import only_one
from planner.sweep.result import Event, Expected, Planned, Trial
from planner.sweep.run import _study, run
from planner.sweep.screen import Clock, Screen
from planner.sweep.space import Configuration, Space, Span
from runners import job
from runners.executors import Ended
from tests.planner.kills import survivors
from tests.planner.sweeps import order
from tests.planner.toy import AtOnce, Toy

ON_H200 = ("--model", "llama-3.2-1b", "--gpus", "h200-sxm", "--cluster", "local", "--fast", "--objective", "speed")


def typed(*words: str) -> dict[str, Any]:
    """What the command makes of its options."""
    with command.make_context("sweep", list(words)) as context:
        return dict(context.params)


def appraised(*words: str) -> Option:
    """The first configuration, as the command itself would launch it."""
    values = typed(*words)
    subject = subject_of(values)
    one = order_of(subject, values)
    found = _appraiser(subject, one.work.terms, values)(next(one.space.grid()), lambda recipe: False)
    assert isinstance(found, Option), found
    return found


def test_without_targets_queries_and_values_are_trained() -> None:
    assert appraised(*ON_H200).recipe.adapter.targets == ("q_proj", "v_proj")
    assert appraised(*ON_H200, "--targets", "o_proj").recipe.adapter.targets == ("o_proj",)


class Swapped(AtOnce):
    """Trials of which the larger ones take more of the host's memory than there is."""

    def wait(self, seconds: float) -> Sequence[Ended]:
        assert len(self.launched) < 20, "the same one is launched again and again"
        end = End(outcome=Outcome.HOST_OUT_OF_MEMORY, evidence="killed at the limit of its cgroup")
        return [
            replace(one, result=Result(end=end, seconds=1.0))
            if one.result is not None and not one.result.end.ok
            else one
            for one in super().wait(seconds)
        ]  # fmt: skip


@pytest.mark.parametrize("rates", [None, Span(low=1e-5, high=1e-3)])
def test_a_host_that_ran_out_of_memory_is_no_reason_to_try_the_same_again(tmp_path: Path, rates: Span | None) -> None:
    """There is no smaller way to ask a host for, as there is for a GPU."""
    space = Space(ranks=(8, 64), learning_rates=rates)
    one = replace(order(tmp_path, objectives=("loss",), repeats=0), space=space, most_trials=4)
    executor = Swapped()
    done = run(one, Toy(), executor)
    launched = len(executor.launched)
    assert launched == len(done.trials) == (2 if rates is None else 4)
    ended = {trial.outcome for trial in done.trials if trial.configuration.rank == 64}
    assert ended <= {Outcome.HOST_OUT_OF_MEMORY}


def test_a_folder_of_another_sweep_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """So that no result of another study, and none of yesterday's, is taken for one of this."""
    first = replace(order(tmp_path / "one", objectives=("loss",), repeats=0), space=Space(ranks=(1, 2)))
    run(first, Toy(), AtOnce())
    before = listing(tmp_path)
    longer = replace(first, work=replace(first.work, terms=replace(first.work.terms, steps=5)))
    elsewhere = replace(first, address=address_of(f"sqlite:///{tmp_path / 'other.sqlite'}", tmp_path))
    for other, said in ((longer, "holds another sweep"), (elsewhere, "name that --storage")):
        with pytest.raises(BadInput, match=f"--folder .*one {said}|--folder .*{said}"):
            run(other, Toy(), AtOnce())
    assert listing(tmp_path) == before
    (tmp_path / "one").rename(tmp_path / "two")
    moved = replace(first, folder=tmp_path / "two", address=address_of(None, tmp_path / "two"))
    assert run(moved, Toy(), AtOnce()).resumed == 2, "the same sweep goes on, wherever its folder is"


def test_trials_of_a_study_that_is_gone_are_not_run_over(tmp_path: Path) -> None:
    one = replace(order(tmp_path, objectives=("loss",), repeats=0), space=Space(ranks=(1, 2)))
    run(one, Toy(), AtOnce())
    (tmp_path / "study.sqlite").unlink()
    with pytest.raises(BadInput, match="has the trials of a study that is gone"):
        run(one, Toy(), AtOnce())
    assert not (tmp_path / "study.sqlite").exists()


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for folder in (tmp_path, tmp_path / "thesis.tex", Path("/proc/foo")):
        with pytest.raises(BadInput, match=f"^--folder {folder}.*"):
            run(order(folder), Toy(), AtOnce())
    assert listing(tmp_path) == ["thesis.tex"]


def write_examples(path: Path, count: int) -> None:
    path.write_text("".join(json.dumps({"prompt": str(n), "completion": "yes"}) + "\n" for n in range(count)))


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_data_under_a_sweep_are_not_replaced(tmp_path: Path) -> None:
    """Another command with other data is refused while the first one runs, and before it splits them."""
    data = tmp_path / "train.jsonl"
    write_examples(data, 20)
    one = order(tmp_path / "sweep", objectives=("loss",), repeats=0)
    one = replace(one, space=Space(ranks=(1,)), work=replace(one.work, data=str(data)))
    assert run(one, Toy(), AtOnce()).exit_code == 0
    held_out = (tmp_path / "sweep/data/held-out.jsonl").read_bytes()
    write_examples(data, 50)
    with only_one(tmp_path / "sweep" / LOCK), pytest.raises(BadInput, match="running this sweep already"):
        run(one, Toy(), AtOnce())
    assert (tmp_path / "sweep/data/held-out.jsonl").read_bytes() == held_out


class Stopped(AtOnce):
    """Ctrl-C while its first trial runs."""

    def wait(self, seconds: float) -> Sequence[Ended]:
        raise KeyboardInterrupt


def test_a_result_is_taken_only_from_the_folder_of_its_own_job(tmp_path: Path) -> None:
    one = replace(order(tmp_path, objectives=("loss",), repeats=0), space=Space(ranks=(1,)))
    assert run(one, Toy(), Stopped()).interrupted
    folder = tmp_path / "trials/0000-1"
    left = json.loads((folder / job.JOB).read_text())
    result = to_document(Result(end=End(outcome=Outcome.OUT_OF_MEMORY), seconds=1.0))
    job.write_atomically(folder / job.RESULT, result)
    job.write_atomically(folder / job.JOB, {**left, "token": "f" * 32})
    executor = AtOnce()
    done = run(one, Toy(), executor)
    assert [trial.outcome for trial in done.trials] == [Outcome.OK]
    assert [trial.folder for trial in done.trials] == ["trials/0000-2"]


def test_a_new_attempt_is_not_given_up_before_it_began(tmp_path: Path) -> None:
    """A trial given up as hopeless, whose machine then lost its power, runs again with a clean record."""
    one = replace(order(tmp_path, objectives=("loss",), repeats=0), space=Space(ranks=(1,)))
    with closing(_study(one)) as study:
        ledger = Ledger(study, one.folder, one.work, one.settings.objectives, None)
        found = Screen(Toy(), Clock(4)).expect(next(one.space.grid()), 42)
        assert isinstance(found, Expected)
        live = ledger.begin(found)
        ledger.give_up(live, "the loss rose")
        ledger.again(live, lost=False)
        (again,) = Ledger(study, one.folder, one.work, one.settings.objectives, None).interrupted
    assert (again.hopeless, again.attempt) == ("", 2)


class Away(AtOnce):
    """A place that is away for a moment before every trial."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds, self._back = seconds, time.monotonic() + seconds

    @property
    def places(self) -> Sequence[str]:  # type: ignore[override]
        return ("GPU 0",) if time.monotonic() >= self._back else ()

    def wait(self, seconds: float) -> Sequence[Ended]:
        time.sleep(0.01)
        found = super().wait(seconds)
        self._back = time.monotonic() + self._seconds if found else self._back
        return found


def test_short_absences_do_not_add_up(tmp_path: Path) -> None:
    one = order(tmp_path, objectives=("loss",), repeats=0, absence_seconds=0.3)
    assert len(run(replace(one, space=Space(ranks=(1, 2, 4))), Toy(), Away(0.2)).trials) == 3


def test_what_other_machines_took_is_not_kept_as_this_ones(tmp_path: Path) -> None:
    values = typed(*ON_H200, "--store", str(tmp_path / "store.sqlite"))
    subject = subject_of(values)
    one = order_of(subject, values)
    one = replace(one, folder=tmp_path / "sweep", address=address_of(None, tmp_path / "sweep"))
    appraiser = _appraiser(subject, one.work.terms, values)
    executor = AtOnce()
    done = run(one, appraiser, executor, teaching=_teaching(subject, one, appraiser, values))
    assert executor.launched and done.trials
    assert not (tmp_path / "store.sqlite").exists()


def name_of(*words: str) -> str:
    values = typed(*words)
    return order_of(subject_of(values), values).study


def test_what_fixes_the_recipe_is_in_the_name_of_the_study(tmp_path: Path) -> None:
    """Else trials of another optimizer, or of another GPU, would be taken for results of this sweep."""
    rules = tmp_path / "rules.toml"
    shipped = resources.files("profiles") / "rules" / "default.toml"
    rules.write_text("# mine\n" + shipped.read_text())
    usual = name_of(*ON_H200)
    assert usual == name_of(*ON_H200, "--rules", str(rules)) == name_of(*ON_H200, "--vram-budget", "40GiB")
    names = {
        usual,
        name_of(*ON_H200, "--optimizer", "adamw_8bit"),
        name_of(*ON_H200, "--precision", "fp32"),
        name_of(*ON_H200, "--attention", "eager"),
        name_of(*ON_H200, "--trainer", "trl"),
        name_of(*ON_H200, "--padded"),
        name_of(*ON_H200, "--packing"),
        name_of(*ON_H200, "--no-checkpointing"),
        name_of(*ON_H200, "--expandable-segments"),
        name_of(*[word.replace("h200-sxm", "a100-sxm4-80gb") for word in ON_H200]),
    }
    assert len(names) == 10


@pytest.mark.parametrize(
    "more", [["--optimizer", "adamw_8bit"], ["--precision", "bf16"], ["--trainer", "trl"], ["--no-checkpointing"],
             ["--expandable-segments"], ["--vram-budget", "8GiB"], ["--gpus", "h200-sxm"],
             ["--gpus-per-trial", "2"], ["--nodes", "2"], ["--host-memory", "64GiB"], ["--link", "nvlink4"]],
)  # fmt: skip
def test_what_a_cpu_has_no_use_for_is_refused_by_name(more: list[str]) -> None:
    option = more[0].replace("--no-", "--")
    with pytest.raises(BadInput, match=f"^{option} does not go with --cpu"):
        subject_of(typed("--cpu", "--model", "llama-3.2-1b", "--objective", "speed", *more))


def test_the_closing_command_has_the_data_and_the_gpus_of_a_trial(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    write_examples(data, 4)
    values = typed(*ON_H200[:-2], "--data", str(data), "--weights", str(tmp_path),
                   "--precision", "bf16")  # fmt: skip
    options = order_of(subject_of(values), values).settings.options
    assert options == ("--gpus", "1xh200-sxm", "--precision", "bf16", "--data", str(data))
    (tmp_path / "config.json").touch()
    more = {"weights": str(tmp_path), "vram_budget_bytes": 20 << 30, "headroom_bytes": 0, "offline": True}
    options = order_of(subject_of(values), {**values, **more}).settings.options
    assert options[:2] == ("--model", str(tmp_path)), "the weights that were trained, and not only their architecture"
    assert options[-5:] == ("--vram-budget", "20GiB", "--headroom", "0", "--offline")


def test_what_the_search_does_for_rows_of_data_is_said_where_it_does_it(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    write_examples(data, 4)

    def said(*more: str) -> str:
        values = typed(*ON_H200[:-2], "--data", str(data), "--weights", str(tmp_path), *more)
        return " ".join(order_of(subject_of(values), values).settings.notes)

    usual = said()
    assert "expandable segments" in usual and "sdpa_no_cudnn" in usual
    assert "sdpa_no_cudnn" in said("--seq-len", "2048")
    for others in (["--seq-len", "8192"], ["--precision", "fp32"], ["--attention", "sdpa"], ["--packing"]):
        assert "sdpa_no_cudnn" not in said(*others)
    assert "sdpa_no_cudnn" not in said("--model", "gemma-2-2b"), "it has its own attention"


def test_an_interrupted_trial_is_one_of_those_asked_for(tmp_path: Path) -> None:
    one = order(tmp_path, objectives=("loss",), repeats=0)
    one = replace(one, space=Space(ranks=(1, 2, 4), learning_rates=Span(low=1e-5, high=1e-3)), most_trials=3)
    assert run(one, Toy(), Stopped()).interrupted
    executor = AtOnce()
    assert len(run(one, Toy(), executor).trials) == len(executor.launched) == 3


def test_only_a_sweep_that_ran_out_of_memory_throughout_says_so(tmp_path: Path) -> None:
    one = order(tmp_path, objectives=("loss",), repeats=0)
    done = run(replace(one, space=Space(ranks=(64, 128))), Toy(), AtOnce())
    assert done.exit_code == 5
    failed = replace(done.trials[0], outcome=Outcome.FAILED)
    assert replace(done, trials=(*done.trials, failed)).exit_code == 1


def test_data_to_evaluate_on_are_nothing_without_data_to_train_on(tmp_path: Path) -> None:
    write_examples(tmp_path / "held-out.jsonl", 4)
    values = typed(*ON_H200, "--held-out", str(tmp_path / "held-out.jsonl"))
    with pytest.raises(BadInput, match="--held-out is evaluated beside --data"):
        order_of(subject_of(values), values)


def test_a_metric_that_is_not_there_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples(tmp_path / "train.jsonl", 4)
    values = typed(*ON_H200, "--data", "train.jsonl", "--weights", ".", "--metric", "mine:score")
    with pytest.raises(BadInput, match="--metric mine: there is no module of that name"):
        order_of(subject_of(values), values)
    (tmp_path / "mine.py").write_text("def scores(examples, generations): return 1.0\n")
    with pytest.raises(BadInput, match=r"function 'score'; did you mean scores\?"):
        order_of(subject_of(values), values)
    (tmp_path / "mine.py").write_text("def score(examples, generations): raise SystemExit\n")
    assert order_of(subject_of(values), values).work.training.metric == "mine:score"


class Timed(AtOnce):
    """Trials of which each tells how long its steps took."""

    def wait(self, seconds: float) -> Sequence[Ended]:
        ended = []
        for one in super().wait(seconds):
            assert one.result is not None
            ranks = tuple(replace(rank, step_seconds=(0.5,) * 4) for rank in one.result.ranks)
            ended.append(replace(one, result=replace(one.result, ranks=ranks)))
        return ended


def test_the_clock_learns_from_what_was_expected_of_the_trial_itself(tmp_path: Path) -> None:
    """Whatever lessons have made of the prices since: a ratio is to that by which what waits is still timed."""
    values = typed(*ON_H200, "--ranks", "1,2,4", "--repeats", "0", "--global-batch", "1")
    subject = subject_of(values)
    one = order_of(subject, values)
    one = replace(one, folder=tmp_path / "sweep", address=address_of(None, tmp_path / "sweep"))
    screens: list[Screen] = []

    def teaching(screen: Screen, queue: object) -> Callable[[Trial], None]:
        screens.append(screen)
        return lambda trial: screen.prices.clear()

    one = replace(one, settings=replace(one.settings, objectives=("loss",)))
    done = run(one, _appraiser(subject, one.work.terms, values), Timed(), teaching=teaching)
    assert [trial.step_seconds for trial in done.trials] == [0.5] * 3
    assert len(screens[0].clock._ratios) == 3


@pytest.mark.parametrize("learned", [1.0, 2.0])
def test_what_trials_took_is_known_after_a_resume_and_corrects_once(tmp_path: Path, learned: float) -> None:
    """Whether the estimator has learned from them in between, and so says another step of the same recipe, or not."""
    values = typed(*ON_H200, "--ranks", "1,2", "--repeats", "0", "--global-batch", "1")
    subject = subject_of(values)
    one = order_of(subject, values)
    one = replace(one, folder=tmp_path / "sweep", address=address_of(None, tmp_path / "sweep"))
    one = replace(one, settings=replace(one.settings, objectives=("loss",)))
    appraise = _appraiser(subject, one.work.terms, values)
    run(one, appraise, Timed())

    def wiser(configuration: Configuration, skip: Skip) -> Option | Refusal:
        found = appraise(configuration, skip)
        assert isinstance(found, Option) and found.price is not None
        return replace(found, price=replace(found.price, step_seconds=found.price.step_seconds.scaled(learned)))

    events: list[Event] = []
    more = replace(one, space=replace(one.space, ranks=(1, 2, 4)))
    assert run(more, wiser, Timed(), events.append).resumed == 2
    (planned,) = (event for event in events if isinstance(event, Planned))
    (waiting,) = planned.queue
    assert waiting.seconds == pytest.approx(one.work.terms.steps * 0.5, rel=0.05)


def test_an_interrupt_that_python_drops_still_ends_the_sweep(tmp_path: Path) -> None:
    """One that comes while an object is being finalised raises nothing: "Exception ignored in …"."""
    code = f"""
import os, signal
from pathlib import Path
from planner.sweep.result import Started
from tests.planner.sweeps import order, sweep

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(100_000))

def listen(event):
    if isinstance(event, Started):
        Finalised()
        print("went on", flush=True)

done = sweep(order(Path({str(tmp_path)!r})), "time.sleep(60)", listen=listen)
raise SystemExit(done.exit_code)
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (130, "went on\n"), done.stderr
    assert "Exception ignored" in done.stderr
    assert survivors(tmp_path) == []
