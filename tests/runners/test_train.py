"""A real job, tiny and on the CPU, goes the whole way: model, trainer, meter, result; and each failure says its phase.

The jobs of this file share one warm process, which forks a fresh one for each.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from estimators.learning import Training
from estimators.outcome import EVALUATION, FIRST_STEP, LOAD, PHASES, STEADY, Outcome, RankReport, Result
from estimators.process import LIBRARY_BYTES
from estimators.recipe import Adapter, Parallelism
from estimators.units import GIB, MIB
from runners import launch
from runners.cards import CardState
from runners.job import Job
from runners.meter import Beat, Meter
from runners.train import _enter_gpu
from tests.runners import tiny_checkpoint, tiny_job
from tests.runners.tiny_job import QUICK


@pytest.fixture(scope="module")
def bench() -> Iterator[launch.Bench]:
    with pytest.MonkeyPatch.context() as patch, launch.open_bench((), warm=True) as bench:
        patch.setattr("runners.environment.usable_cores", lambda: 1)  # threads that wait for a core make a step slow
        yield bench


def run(bench: launch.Bench, folder: Path, changes: dict[str, Any] | None = None, **fields: Any) -> Result:
    tiny_job.make(folder, changes, **fields)
    return launch.run(folder, bench, limits=QUICK)


def only_rank(result: Result) -> RankReport:
    assert result.end.ok, result.end
    (rank,) = result.ranks
    return rank


def test_a_job_is_measured_from_loading_to_saving(bench: launch.Bench, tmp_path: Path) -> None:
    steps = [
        only_rank(run(bench, tmp_path / "job", {"evaluation_batch": 2, "gradient_accumulation": 2}, steps=5, save=True))
    ]
    rank = steps[0]
    assert tuple(phase.name for phase in rank.phases) == PHASES
    assert len(rank.step_seconds) == 5 and rank.warm_up_steps == 2
    assert all(seconds > 0 for seconds in rank.step_seconds)
    assert (rank.steady_tokens, rank.steady_padded_tokens) == (3 * 2 * 2 * 32,) * 2
    assert (tmp_path / "job/trained/adapter_model.safetensors").exists()
    for phase in rank.phases:
        assert phase.resident_bytes is not None and phase.resident_bytes > 50 << 20
        gpu_figures = (phase.peak_allocated_bytes, phase.peak_reserved_bytes, phase.process_bytes, phase.joules)
        assert gpu_figures == (None,) * 4
    steady = rank.phase(STEADY)
    assert steady is not None and sum(rank.steady_step_seconds) <= steady.seconds


def test_the_meter_costs_less_than_a_hundredth_of_a_step(bench: launch.Bench, tmp_path: Path) -> None:
    """Of a step of 20 ms, which is shorter than any on a GPU that is worth measuring."""
    rank = only_rank(run(bench, tmp_path / "job", steps=12))
    assert rank.meter_seconds / len(rank.steady_step_seconds) < 0.01 * 0.020


def test_half_of_a_padded_batch_is_not_real(bench: launch.Bench, tmp_path: Path) -> None:
    result = run(bench, tmp_path / "job", {"padded": True, "micro_batch": 2}, steps=4)
    rank = only_rank(result)
    assert rank.steady_padded_tokens == 2 * 2 * 32
    assert rank.steady_tokens == pytest.approx(0.75 * rank.steady_padded_tokens, rel=0.34)
    assert rank.steady_tokens < rank.steady_padded_tokens
    assert result.real_tokens_per_second is not None and result.tokens_per_second is not None
    assert result.real_tokens_per_second < result.tokens_per_second


def test_trls_trainer_goes_the_same_way(bench: launch.Bench, tmp_path: Path) -> None:
    rank = only_rank(run(bench, tmp_path / "job", {"trainer": "trl", "evaluation_batch": 1}, steps=4))
    assert [phase.name for phase in rank.phases] == [LOAD, FIRST_STEP, STEADY, EVALUATION]
    assert rank.steady_padded_tokens == 2 * 2 * 32


def test_one_step_is_a_steady_one(bench: launch.Bench, tmp_path: Path) -> None:
    rank = only_rank(run(bench, tmp_path / "job", steps=1))
    assert [phase.name for phase in rank.phases] == [LOAD, STEADY]
    assert len(rank.steady_step_seconds) == 1


def test_a_checkpoint_and_real_data_are_trained_on(bench: launch.Bench, tmp_path: Path) -> None:
    """First a job trains and saves the whole model, then another starts from there, with prompts and completions."""
    whole = {"adapter": Adapter(method="full"), "trainer": "transformers"}
    assert run(bench, tmp_path / "first", whole, steps=2, save=True).end.ok
    checkpoint = tmp_path / "first/trained"
    assert (checkpoint / "model.safetensors").exists()
    tiny_checkpoint.tokenizer().save_pretrained(checkpoint)
    rows = [{"prompt": "a b c", "completion": " d e" * (1 + index % 3)} for index in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = {"weights": str(checkpoint), "data": str(tmp_path / "rows.jsonl"), "steps": 4, "save": True}
    rank = only_rank(run(bench, tmp_path / "second", **fields))
    assert 0 < rank.steady_tokens < rank.steady_padded_tokens < 2 * 2 * 32
    narrowest, widest = rank.widths
    assert narrowest <= widest < 32
    assert (tmp_path / "second/trained/adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("fields", "changes", "evidence"),
    [
        ({"weights": "/nonexistent"}, {}, "no such checkpoint folder"),
        ({"data": "/nonexistent.jsonl"}, {}, "data need a tokenizer"),
        ({}, {"adapter": Adapter(method="lora", rank=4, alpha=8, targets=("nope",))}, "nope"),
    ],
)
def test_a_failure_names_its_phase(
    bench: launch.Bench, tmp_path: Path, fields: dict[str, Any], changes: dict[str, Any], evidence: str
) -> None:
    end = run(bench, tmp_path / "job", changes, **fields).end
    assert (end.outcome, end.phase, end.rank) == (Outcome.FAILED, LOAD, 0)
    assert evidence in end.evidence


def test_pickled_weights_are_not_opened(bench: launch.Bench, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    end = run(bench, tmp_path / "job", weights=str(tmp_path / "model")).end
    assert "pickled" in end.evidence
    assert not list(tmp_path.rglob("owned"))


def test_the_figures_of_a_result_agree(bench: launch.Bench, tmp_path: Path) -> None:
    result = run(bench, tmp_path / "job", steps=8)
    rank = only_rank(result)
    assert result.warm
    assert result.step_seconds is not None and result.step_spread_seconds is not None
    assert result.tokens_per_second == pytest.approx(2 * 32 / result.step_seconds)
    mfu = result.mfu(100_000, 1e12)
    assert mfu == pytest.approx(6 * 100_000 * result.tokens_per_second / 1e12)
    assert result.joules_per_step is None
    assert math.isfinite(result.seconds) and result.seconds > sum(rank.step_seconds)


class Card:
    """torch.cuda, as far as a rank speaks to it before it loads."""

    total_memory, uuid = 80 * GIB, "1111-aaaa"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, expandable: bool = False) -> None:
        self.fraction: float | None = None
        fakes = {
            "set_device": lambda index: None,
            "synchronize": lambda: None,
            "get_device_properties": lambda index: self,
            "memory_snapshot": lambda: [{"is_expandable": expandable}],
            "memory_reserved": lambda: 2 * MIB,
            "set_per_process_memory_fraction": lambda fraction: setattr(self, "fraction", fraction),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch, "zeros", lambda *arguments, **named: None)

    def enter(self, folder: Path, budget: int | None, uuids: list[str]) -> tuple[int | None, int | None]:
        held = iter([0, 602 * MIB])  # before the context, and after
        meter = Meter(Beat(folder / "beat-0"), cards=lambda: [CardState(uuid="GPU-1", held_bytes=next(held))])
        work = Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG, budget_bytes=budget)
        return _enter_gpu(work, meter, 0, uuids)


def test_torch_is_limited_to_the_budget_less_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch)
    cap = 15 * GIB - 600 * MIB - LIBRARY_BYTES
    assert card.enter(tmp_path, 15 * GIB, ["GPU-1111-aaaa"]) == (600 * MIB, cap)
    assert card.fraction == pytest.approx(cap / (80 * GIB))


def test_without_a_budget_torch_is_not_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    assert card.enter(tmp_path, None, ["GPU-1111-aaaa"]) == (600 * MIB, None)
    assert card.fraction is None


def test_another_card_than_the_one_asked_for_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="CUDA gave the GPU 1111-aaaa for GPU-2222-bbbb"):
        Card(monkeypatch).enter(tmp_path, None, ["GPU-2222-bbbb"])


def test_another_allocator_than_the_one_asked_for_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="expandable_segments is True"):
        Card(monkeypatch, expandable=True).enter(tmp_path, None, [])


def test_two_ranks_train_together(bench: launch.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through torchrun, as on two GPUs, but over gloo."""
    monkeypatch.setattr("runners.environment.usable_cores", lambda: 2)
    parallel = {"parallelism": Parallelism(kind="ddp", devices=2)}
    checkpoint = tiny_checkpoint.make(tmp_path / "checkpoint")
    held_out = tiny_checkpoint.file_of(tmp_path / "held-out.jsonl", tiny_checkpoint.echoes(5))  # of one batch too few
    fields = {"weights": str(checkpoint), "training": Training(held_out=held_out), "steps": 3}
    folder = tiny_job.make(tmp_path / "job", parallel, **fields)
    limits = replace(QUICK, total_seconds=100, silent_seconds=60)  # two cold processes import at once
    with launch.open_bench(()) as cold:
        result = launch.run(folder, cold, limits=limits)
    alone = run(bench, tmp_path / "alone", **(fields | {"steps": 1}))
    assert result.end.ok, result.end
    one, other = (rank.learning for rank in result.ranks)
    assert one is not None and other is not None and one.evaluated == other.evaluated
    assert alone.learning is not None and one.losses != other.losses
    assert one.untrained_loss == pytest.approx(alone.learning.untrained_loss, rel=1e-6)
    assert [rank.rank for rank in result.ranks] == [0, 1]
    assert [rank.steady_padded_tokens for rank in result.ranks] == [2 * 32] * 2
    assert result.tokens_per_second == pytest.approx(2 * 2 * 32 / (result.step_seconds or 0))
