"""Real jobs on the CPU that learn: their losses, their held-out examples, their early ends, the user's own metric.

The jobs of this file share one warm process, which forks a fresh one for each.
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from estimators.learning import Learning, Training
from estimators.outcome import EVALUATION, FIRST_STEP, LOAD, STEADY, Outcome, Result
from estimators.recipe import Adapter
from runners import launch
from tests import smollm2 as real
from tests.runners import tiny_checkpoint, tiny_job
from tests.runners.tiny_job import QUICK


@pytest.fixture(scope="module")
def bench() -> Iterator[launch.Bench]:
    with pytest.MonkeyPatch.context() as patch, launch.open_bench((), warm=True) as bench:
        patch.setattr("runners.environment.usable_cores", lambda: 1)  # threads that wait for a core make a step slow
        yield bench


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_checkpoint.make(tmp_path_factory.mktemp("checkpoint"))
    tiny_checkpoint.file_of(folder / "train.jsonl", tiny_checkpoint.echoes(12))
    tiny_checkpoint.file_of(folder / "held-out.jsonl", tiny_checkpoint.echoes(5, first=3))
    return folder


def run(
    bench: launch.Bench, folder: Path, checkpoint: Path, changes: dict[str, Any] | None = None,
    fields: dict[str, Any] | None = None, **training: Any,
) -> Result:  # fmt: skip
    """`changes` are the recipe's, `fields` the job's."""
    how = {"held_out": str(checkpoint / "held-out.jsonl"), "schedule": "constant"} | training
    job = {"weights": str(checkpoint), "data": str(checkpoint / "train.jsonl"), "steps": 6} | (fields or {})
    recipe = {"learning_rate": 0.01, "adapter": Adapter(method="lora", rank=8, alpha=32, targets="all-linear")}
    tiny_job.make(folder, recipe | (changes or {}), training=Training(**how), **job)
    return launch.run(folder, bench, limits=QUICK)


def learned(result: Result) -> Learning:
    assert result.end.ok, result.end
    assert result.learning is not None
    return result.learning


def test_a_job_learns_what_it_is_shown(bench: launch.Bench, checkpoint: Path, tmp_path: Path) -> None:
    whole = {"adapter": Adapter(method="full")}
    result = run(bench, tmp_path / "job", checkpoint, whole, evaluate_every=4, fields={"steps": 10})
    found = learned(result)
    assert [one.step for one in found.evaluated] == [0, 4, 8, 10]
    assert found.untrained_loss == pytest.approx(math.log(256), rel=0.1)
    assert found.loss is not None and found.loss < 1
    assert len(found.losses) == 10 and found.losses[-1] < 1 < found.losses[0]
    assert (found.tokens, found.stopped_at, found.dropped) == (10 * 2 * 8, None, 0)
    (rank,) = result.ranks
    assert [phase.name for phase in rank.phases] == [LOAD, FIRST_STEP, STEADY, EVALUATION]
    assert (len(rank.step_seconds), rank.steady_tokens) == (10, 8 * 2 * 8)
    words = (tmp_path / "job/beat-0").read_text().split()
    assert words[2:4] == [STEADY, "10"] and float(words[4]) == pytest.approx(found.losses[-1], rel=1e-3)


def test_a_seed_repeats_a_job_and_evaluating_changes_nothing(
    bench: launch.Bench, checkpoint: Path, tmp_path: Path
) -> None:
    """With dropout, so that a single random number drawn by an evaluation would show."""
    dropout = {"adapter": Adapter(method="lora", rank=4, alpha=16, dropout=0.3, targets="all-linear")}
    often = learned(run(bench, tmp_path / "often", checkpoint, dropout, evaluate_every=1))
    never = learned(run(bench, tmp_path / "never", checkpoint, dropout, held_out=None))
    other = learned(run(bench, tmp_path / "other", checkpoint, dropout, {"seed": 7}, held_out=None))
    assert often.losses == never.losses
    assert (len(often.evaluated), never.evaluated, never.loss) == (7, (), None)
    assert set(other.losses).isdisjoint(never.losses)


def test_the_first_step_reports_the_loss_of_what_it_was_given(
    bench: launch.Bench, checkpoint: Path, tmp_path: Path
) -> None:
    """Over all micro-batches of a step: one example, so that the held-out loss of the untrained model is the same."""
    data = tiny_checkpoint.file_of(tmp_path / "one.jsonl", tiny_checkpoint.echoes(1))
    changes = {"gradient_accumulation": 3}
    found = learned(run(bench, tmp_path / "job", checkpoint, changes, {"data": data, "steps": 2}, held_out=data))
    assert found.losses[0] == pytest.approx(found.untrained_loss, rel=1e-5)
    assert found.tokens == 2 * 3 * 2 * 8


def test_trls_trainer_learns_the_same(bench: launch.Bench, checkpoint: Path, tmp_path: Path) -> None:
    stock = learned(run(bench, tmp_path / "stock", checkpoint))
    trl = learned(run(bench, tmp_path / "trl", checkpoint, {"trainer": "trl"}))
    assert trl.losses == pytest.approx(stock.losses, rel=1e-3)
    assert [one.loss for one in trl.evaluated] == pytest.approx([one.loss for one in stock.evaluated], rel=1e-3)


def test_a_job_that_no_longer_learns_ends_early(bench: launch.Bench, checkpoint: Path, tmp_path: Path) -> None:
    result = run(bench, tmp_path / "job", checkpoint, {"learning_rate": 0.0}, evaluate_every=2, patience=2)
    found = learned(result)
    assert found.stopped_at == 4 and [one.step for one in found.evaluated] == [0, 2, 4]
    assert found.tokens == 4 * 2 * 8
    (rank,) = result.ranks
    assert (len(rank.steady_step_seconds), rank.steady_padded_tokens) == (2, 2 * 2 * 8)


def test_a_hopeless_job_ends_itself(bench: launch.Bench, checkpoint: Path, tmp_path: Path) -> None:
    """Of weights that are none any more."""
    shutil.copytree(checkpoint, tmp_path / "broken")
    file = tmp_path / "broken/model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= math.nan
    save_file(weights, file, metadata={"format": "pt"})
    found = learned(run(bench, tmp_path / "job", tmp_path / "broken"))
    assert found.hopeless and found.stopped_at == 1
    assert found.loss is not None and math.isnan(found.loss)
    assert (tmp_path / "job/beat-0").read_text().split()[3:5] == ["1", "nan"]


METRIC = """
def share_of_j(examples, generations):
    assert [set(example) for example in examples] == [{"prompt", "completion"}] * len(examples)
    assert all(isinstance(text, str) for text in generations)
    return sum("j" in text for text in generations) / len(examples)

def broken(examples, generations):
    raise KeyError("no such thing")

def silent(examples, generations):
    pass
"""


def test_the_users_own_metric_scores_what_the_model_says(bench: launch.Bench, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "own_metric.py").write_text(METRIC)
    metric = {"metric_folder": str(tmp_path), "metric": "own_metric:share_of_j", "metric_tokens": 3}
    steps = {"fields": {"steps": 25}, "changes": {"evaluation_batch": 4}}
    assert learned(run(bench, tmp_path / "job", checkpoint, **steps, **metric)).score == 1.0


@pytest.mark.parametrize(
    ("name", "phase", "evidence"),
    [
        ("own_metric:broken", EVALUATION, "metric own_metric:broken: KeyError: 'no such thing'"),
        ("own_metric:silent", EVALUATION, "metric own_metric:silent returned a NoneType, not a number"),
        ("own_metric:nothing", LOAD, "has no function 'nothing'"),
        ("nowhere:score", LOAD, "No module named 'nowhere'"),
        ("json:dumps", LOAD, "another of that name is loaded"),
    ],
)
def test_a_metric_that_fails_fails_the_job_in_one_line(
    bench: launch.Bench, checkpoint: Path, tmp_path: Path, name: str, phase: str, evidence: str
) -> None:
    (tmp_path / "own_metric.py").write_text(METRIC)
    metric = {"metric_folder": str(tmp_path), "metric": name, "metric_tokens": 1}
    end = run(bench, tmp_path / "job", checkpoint, fields={"steps": 1}, **metric).end
    assert (end.outcome, end.phase) == (Outcome.FAILED, phase)
    assert evidence in end.evidence


def test_real_weights_learn_real_text(bench: launch.Bench, smollm2: Path, tmp_path: Path) -> None:
    """A LoRA of SmolLM2-135M reads a little of Python's documentation, and expects unread parts of it better."""
    passages = real.documentation(36, words=24)
    held_out = tiny_checkpoint.file_of(tmp_path / "held-out.jsonl", passages[::6])
    train = tiny_checkpoint.file_of(
        tmp_path / "train.jsonl", [one for number, one in enumerate(passages) if number % 6]
    )
    changes = {
        "model": "smollm2-135m", "sequence_length": 40, "learning_rate": 2e-3, "gradient_checkpointing": False,
        "adapter": Adapter(method="lora", rank=8, alpha=32, targets="all-linear"),
    }  # fmt: skip
    folder = tiny_job.make(
        tmp_path / "job", changes, weights=str(smollm2), data=train, steps=12, config=real.config_of(smollm2),
        training=Training(held_out=held_out, warm_up_steps=2, schedule="cosine"),
    )  # fmt: skip
    found = learned(launch.run(folder, bench))
    assert found.untrained_loss is not None and 2 < found.untrained_loss < 5
    assert found.loss is not None and found.loss < found.untrained_loss - 0.1
