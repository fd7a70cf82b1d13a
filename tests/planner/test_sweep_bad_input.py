"""A fault that all trials share ends a sweep at once, and one that was mended is left behind."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed")

import optuna
from click.testing import CliRunner

from estimators.errors import BadInput
from estimators.outcome import EVALUATION, End, Outcome, Result, to_document
from planner.cli import command
from planner.report.sweep import sweep_page
from planner.report.telling import in_words
from planner.sweep.result import Event, Finished, Retried, Started
from planner.sweep.run import run
from planner.sweep.space import Space, Span
from runners import job
from tests.planner.sweeps import LEARN, order, sweep, told
from tests.planner.test_sweep_mends import Stopped
from tests.planner.toy import AtOnce, Toy

REFUSE = 'fail("estimators.errors.BadInput", "messages need a chat template")\n'


def states(folder: Path) -> list[str]:
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.sqlite'}")
    return [trial.state.name for trial in study.get_trials()]


def test_input_that_no_trial_can_use_ends_the_sweep_and_is_tried_again_once_it_is_mended(tmp_path: Path) -> None:
    events: list[Event] = []
    for attempts in (1, 2):
        with pytest.raises(BadInput, match=r"^messages need a chat template$") as refused:
            sweep(order(tmp_path, repeats=0), REFUSE, listen=events.append)
        assert refused.value.exit_code == 2
        assert len(told(tmp_path)) == attempts, "one trial, once a command"
    assert not any(isinstance(event, (Finished, Retried)) for event in events)
    assert states(tmp_path) == ["RUNNING"], "nothing is told of it"
    mended = sweep(order(tmp_path, repeats=0))
    assert [trial.ok for trial in mended.trials] == [True] * 4
    assert mended.resumed == 0 and states(tmp_path) == ["COMPLETE"] * 4


def test_once_a_trial_has_ended_well_bad_input_is_one_trials_failure_and_told_once(tmp_path: Path) -> None:
    events: list[Event] = []
    done = sweep(order(tmp_path, repeats=0), f"if size == 16:\n    {REFUSE}{LEARN}", listen=events.append)
    assert {trial.configuration.rank: trial.ok for trial in done.trials} == {4: True, 8: True, 16: False, 32: True}
    assert "chat template" in next(trial.evidence for trial in done.trials if not trial.ok)
    assert (len(told(tmp_path)), done.exit_code) == (4, 0)
    assert not any(isinstance(event, Retried) for event in events)


def test_out_of_memory_is_no_end_that_shows_the_input_to_be_good(tmp_path: Path) -> None:
    script = f"if size == 4:\n    fail('builtins.MemoryError', '')\n{REFUSE}"
    with pytest.raises(BadInput, match="chat template"):
        sweep(order(tmp_path, repeats=0), script)
    assert len(told(tmp_path)) == 2
    assert states(tmp_path)[0] != "RUNNING" and states(tmp_path)[1:] == ["RUNNING"]


METRIC = "def score(examples, generations):\n    raise ValueError('no such grade')\n"


def write_checkpoint(folder: Path, *, template: bool) -> Path:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    from tests.runners import tiny_checkpoint

    tiny_checkpoint.make(folder)
    if not template:
        tiny_checkpoint.tokenizer(None).save_pretrained(folder)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    tiny_checkpoint.file_of(folder / "echo.jsonl", tiny_checkpoint.echoes(40))
    questions = [{"role": "user", "content": f"a b {letter}"} for letter in "abcdefghij"]
    answer = {"role": "assistant", "content": "j"}
    tiny_checkpoint.file_of(folder / "chat.jsonl", [{"messages": [question, answer]} for question in questions])
    return folder


def typed(folder: Path, data: str, *more: str) -> list[str]:
    return [
        "sweep", "--cpu", "--model", str(folder), "--data", str(folder / data), "--ranks", "2,4", "--steps", "4",
        "--seq-len", "16", "--global-batch", "4", "--repeats", "0", "--folder", str(folder / "sweep"), "--store",
        str(folder / "store.sqlite"), "--json", *more,
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="trials are watched through /proc")
def test_weights_without_a_chat_template_are_found_by_one_trial(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", template=False)
    done = CliRunner().invoke(command, typed(folder, "chat.jsonl"), standalone_mode=False)
    assert isinstance(done.exception, BadInput), done.output
    assert "chat template" in str(done.exception) and "BadInput" not in str(done.exception)
    assert len(told(folder / "sweep")) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="trials are watched through /proc")
def test_a_metric_that_raises_fails_its_trial_once_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "tiny", template=True)
    (tmp_path / "mine.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    words = typed(folder, "echo.jsonl", "--ranks", "2", "--metric", "mine:score")
    done = CliRunner().invoke(command, words, standalone_mode=False)
    assert done.return_value == 1, done.output
    (trial,) = json.loads(done.stdout.splitlines()[-1])["trials"]
    assert "metric mine:score: ValueError: no such grade" in trial["evidence"]
    assert len(told(folder / "sweep")) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--targets", "q_prj"], "no layer 'q_prj' to put an adapter on; it has"),
        (["--targets", "all-linear", "--targets", "q_proj,zzz"], "no layer 'zzz'"),
        (["--weights", "nope"], "--weights nope: no such folder"),
    ],
)
def test_what_no_trial_can_use_is_refused_before_anything_starts(more: list[str], said: str, tmp_path: Path) -> None:
    words = ["sweep", "--cpu", "--model", "llama-3.2-1b", "--objective", "speed", "--folder", str(tmp_path / "sweep")]
    done = CliRunner().invoke(command, [*words, *more], standalone_mode=False)
    assert isinstance(done.exception, BadInput)
    assert said in str(done.exception)
    assert not (tmp_path / "sweep").exists()


RATES = Span(low=1e-5, high=1e-3)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        (Space(ranks=(64,)), Space(ranks=(1, 2))),
        (Space(ranks=(1,), learning_rates=(2.0,)), Space(ranks=(1,), learning_rates=(2e-4, 3e-4))),
        (Space(ranks=(64,), learning_rates=RATES), Space(ranks=(1, 2), learning_rates=RATES)),
        (Space(ranks=(1,), learning_rates=Span(low=0.9, high=1.0)), Space(ranks=(1,), learning_rates=RATES)),
    ],
)  # fmt: skip
def test_a_corrected_typing_error_is_not_run_again(tmp_path: Path, typo: Space, meant: Space) -> None:
    """Its trial stays begun in the study: whoever asks for it again gets it."""
    one = replace(order(tmp_path, objectives=("loss",), repeats=0), most_trials=2)
    assert run(replace(one, space=typo), Toy(), Stopped()).interrupted
    executor = AtOnce()
    done = run(replace(one, space=meant), Toy(), executor)
    assert len(done.trials) == len(executor.launched) == 2
    assert all(meant.holds(trial.configuration) for trial in done.trials)
    assert (done.unfinished, done.exit_code) == (0, 0)
    again = AtOnce()
    back = run(replace(one, space=typo, most_trials=3), Toy(), again)
    assert any(trial.number == 0 for trial in back.trials) and again.launched


def test_what_a_mistyped_trial_came_to_is_kept_where_it_had_ended(tmp_path: Path) -> None:
    one = order(tmp_path, objectives=("loss",), repeats=0)
    assert run(replace(one, space=Space(ranks=(64,))), Toy(), Stopped()).interrupted
    end = End(outcome=Outcome.OUT_OF_MEMORY, evidence="CUDA out of memory")
    job.write_atomically(tmp_path / "trials/0000-1" / job.RESULT, to_document(Result(end=end, seconds=1.0)))
    executor = AtOnce()
    done = run(replace(one, space=Space(ranks=(1, 2))), Toy(), executor)
    assert {trial.configuration.rank: trial.out_of_memory for trial in done.trials} == {1: False, 2: False, 64: True}
    assert [rank for rank, _ in executor.launched] == [1, 2]


def test_what_was_sampled_is_in_its_space() -> None:
    space = Space(methods=("lora", "full"), ranks=(4, 8), learning_rates=RATES, targets=(None, ("q_proj",)))
    inside = space.at(method="lora", rank=8, learning_rate=3e-4, targets=("q_proj",))
    assert space.holds(inside) and space.holds(space.at(method="full", learning_rate=1e-5))
    for other in (replace(inside, learning_rate=2e-3), replace(inside, rank=16, alpha=64), replace(inside, alpha=8),
                  replace(inside, targets=("k_proj",)), replace(inside, dropout=0.1)):  # fmt: skip
        assert not space.holds(other)


def test_a_trial_of_which_no_place_is_known_begins_its_line_with_itself(tmp_path: Path) -> None:
    one = replace(order(tmp_path, objectives=("loss",), repeats=0), space=Space(ranks=(1,)))
    assert run(one, Toy(), Stopped()).interrupted
    end = End(outcome=Outcome.FAILED, evidence="BadInput: metric mine:score: ValueError", phase=EVALUATION)
    job.write_atomically(tmp_path / "trials/0000-1" / job.RESULT, to_document(Result(end=end, seconds=1.0)))
    events: list[Event] = []
    run(one, Toy(), AtOnce(), events.append)
    (line,) = (in_words(event) for event in events if isinstance(event, Finished))
    assert line.startswith("trial 0 failed (BadInput: metric mine:score")
    assert in_words(Retried(number=0, place="", reason="killed")).startswith("trial 0 was lost")
    assert not any(isinstance(event, Started) for event in events)


def test_a_finished_sweep_says_that_nothing_was_left_to_run(tmp_path: Path) -> None:
    one = replace(order(tmp_path, objectives=("loss",), repeats=0), space=Space(ranks=(1, 2)))

    def last_words() -> str:
        page = sweep_page(run(one, Toy(), AtOnce()), 200)
        return " ".join(text for line in page for text, _ in line)

    assert "nothing was left" not in last_words()
    again = last_words()
    assert "nothing was left to run: an earlier command ended 2 trials" in again and "between trials" not in again
