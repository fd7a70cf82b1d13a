"""The losses that are reported are the model's own, and evaluating changes nothing of the training."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from estimators.errors import BadInput
from estimators.learning import Evaluated, Learning, Training
from estimators.outcome import EVALUATION, FIRST_STEP, STEADY, Phase, RankReport, merged, rank_document
from estimators.outcome import rank_from_document as rank_from
from runners.chat import NOT_LEARNED
from runners.data import Padding, Row
from runners.job import Job
from runners.learning import HeldOut, _share, held_out_loss
from runners.meter import Beat, Meter
from runners.weights import make_model
from tests.runners import tiny_checkpoint, tiny_job


def rows(lengths: Sequence[int]) -> list[Row]:
    """Of random tokens, of which the first two are not learned."""
    found = []
    for number, length in enumerate(lengths):
        tokens = torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(number))
        labels = torch.where(torch.arange(length) < 2, NOT_LEARNED, tokens)
        found.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    settings = transformers.AutoConfig.for_model(**tiny_job.CONFIG, attention_dropout=0.5)
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(settings)


def loss_of(model: Any, found: list[Row], batch: int) -> float:
    return held_out_loss(model, _share(found, batch, Padding(0)), torch.device("cpu"), lambda loss, number: None)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_held_out_loss_is_the_models_own_over_all_learned_tokens(model: Any, batch: int) -> None:
    """However rows of different lengths are put together."""
    found = rows([30, 4, 17, 9, 23, 3, 12])
    model.eval()
    with torch.no_grad():
        own = [(model(**Padding(0)([row])).loss, len(row["labels"]) - 2) for row in found]
    expected = sum(float(loss) * count for loss, count in own) / sum(count for _, count in own)
    model.train()
    before = torch.get_rng_state()
    assert loss_of(model, found, batch) == pytest.approx(expected, rel=1e-5)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT asks by that name
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_evaluating_leaves_the_gradients_as_they_were(quantization: str, tmp_path: Path) -> None:
    """Those of a quantised model too, whose weights bitsandbytes packs anew for inference on some CPUs."""
    recipe = tiny_job.recipe(quantization=quantization, adapter=tiny_job.LORA, gradient_checkpointing=False)
    checkpoint = str(tiny_checkpoint.make(tmp_path))
    model = make_model(Job(recipe=recipe, config=tiny_job.CONFIG, weights=checkpoint), "cpu")

    def gradients() -> list[Tensor]:
        model.train()
        model.zero_grad()
        model(**Padding(0)(rows([16, 9]))).loss.backward()
        return [one.grad.clone() for one in model.parameters() if one.grad is not None]

    before = gradients()
    for batch in (1, 4):
        assert math.isfinite(loss_of(model, rows([16, 9, 30]), batch))
    after = gradients()
    assert len(before) == len(after) > 0
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_ranks_share_the_rows_in_equally_many_batches(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    found, shares = rows([5, 6, 7]), []
    monkeypatch.setattr("runners.learning._ranks", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append([(batch["input_ids"].shape[1], counts) for batch, counts in _share(found, 1, Padding(0))])
    assert shares == [[(5, True), (7, True)], [(6, True), (5, False)]]


class Training_:  # noqa: N801 (a trainer's state, as callbacks see it)
    """Steps through a job whose held-out losses are given."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: Sequence[float], **how: Any) -> None:
        left = list(losses)
        monkeypatch.setattr("runners.learning.held_out_loss", lambda *arguments: left.pop(0))
        self.meter = Meter(Beat(tmp_path / "beat-0"))
        training = Training(held_out="/held", **how)
        self.held_out = HeldOut(training=training, rows=(), collate=Padding(0), batch=1, meter=self.meter)

    def run(self, steps: int, losses: Sequence[float] = ()) -> tuple[list[tuple[int, float]], int | None]:
        arguments, control = SimpleNamespace(device="cpu"), SimpleNamespace(should_training_stop=False)
        self.meter.begin(STEADY)
        self.held_out.on_train_begin(arguments, None, control, model=None)
        for step in range(1, steps + 1):
            self.meter.step(0.1, losses[step - 1] if losses else 1.0)
            state = SimpleNamespace(global_step=step, max_steps=steps)
            self.held_out.on_step_end(arguments, state, control, model=None)
            if control.should_training_stop:
                break
        self.meter.finish()
        assert control.should_training_stop == (self.held_out.stopped_at is not None)
        return [(one.step, one.loss) for one in self.held_out.evaluated], self.held_out.stopped_at


def test_without_a_rhythm_it_is_evaluated_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Training_(tmp_path, monkeypatch, [3.0, 2.0]).run(5) == ([(0, 3.0), (5, 2.0)], None)


def test_with_a_rhythm_the_last_step_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Training_(tmp_path, monkeypatch, [3.0, 2.5, 2.0, 1.5], evaluate_every=2)
    assert steps.run(5) == ([(0, 3.0), (2, 2.5), (4, 2.0), (5, 1.5)], None)
    steps = Training_(tmp_path, monkeypatch, [3.0, 2.5, 2.0], evaluate_every=2)
    assert steps.run(4) == ([(0, 3.0), (2, 2.5), (4, 2.0)], None)


@pytest.mark.parametrize(
    ("losses", "patience", "stopped"),
    [
        ([3.0, 2.0, 2.0, 2.1, 9.9], 2, 3),
        ([3.0, 3.1, 9.9], 1, 1),
        ([3.0, math.nan, math.nan, 9.9], 2, 2),
        ([3.0, 2.9, 3.0, 2.8, 2.9, 2.7, 2.6], 2, None),
        ([3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5], 5, None),  # would stop at the last step, where it ends anyway
    ],
)
def test_patience_ends_a_job_that_no_longer_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, losses: list[float], patience: int, stopped: int | None
) -> None:
    _, found = Training_(tmp_path, monkeypatch, losses, evaluate_every=1, patience=patience).run(6)
    assert found == stopped


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float) -> None:
    steps = Training_(tmp_path, monkeypatch, [3.0, math.nan])
    evaluated, stopped = steps.run(9, [2.0, 2.0, lost])
    assert stopped == 3 and evaluated[0] == (0, 3.0) and evaluated[-1][0] == 3
    assert (tmp_path / "beat-0").read_text().split()[2:5] == [STEADY, "3", f"{lost:g}"]


def test_ranks_end_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank's own loss is not what the others see; that of the held-out examples is."""
    monkeypatch.setattr("runners.learning._ranks", lambda: 2)
    steps = Training_(tmp_path, monkeypatch, [3.0, 2.0, math.nan], evaluate_every=2)
    assert steps.run(9, [math.nan] * 9)[1] == 4


def test_an_evaluation_is_not_charged_to_the_training_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator as torch shows it: peaks since the last reset, and what it holds."""
    cuda = {"allocated": 0, "reserved": 0}

    def hold(allocated: int, reserved: int) -> None:
        now.update(allocated=max(now["allocated"], allocated), reserved=max(now["reserved"], reserved))
        cuda["reserved"] = max(cuda["reserved"], reserved)

    now = {"allocated": 0, "reserved": 0}
    fakes = {
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: now.update(allocated=0, reserved=cuda["reserved"]),
        "max_memory_allocated": lambda: now["allocated"],
        "max_memory_reserved": lambda: now["reserved"],
        "memory_reserved": lambda: cuda["reserved"],
        "memory_stats": lambda: {"num_alloc_retries": 0},
        "empty_cache": lambda: cuda.update(reserved=10),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    meter = Meter(Beat(tmp_path / "beat-0"), cuda=True)
    meter.begin(FIRST_STEP)
    hold(50, 60)
    meter.finish()
    meter.begin(STEADY)
    hold(70, 80)
    with meter.aside(EVALUATION):
        hold(500, 600)
    hold(75, 90)
    with meter.aside(EVALUATION):
        hold(400, 450)
    hold(20, 30)
    meter.finish()
    assert {one.name: (one.peak_allocated_bytes, one.peak_reserved_bytes) for one in meter.phases} == {
        FIRST_STEP: (50, 60),
        STEADY: (75, 90),
        EVALUATION: (500, 600),
    }


def test_stretches_of_a_phase_add_their_time_and_keep_the_most() -> None:
    one = Phase(name=STEADY, seconds=1.0, joules=5.0, peak_allocated_bytes=7, allocator_retries=1)
    other = Phase(name=STEADY, seconds=2.0, joules=6.0, peak_allocated_bytes=4, resident_bytes=3, allocator_retries=0)
    expected = Phase(
        name=STEADY, seconds=3.0, joules=11.0, peak_allocated_bytes=7, resident_bytes=3, allocator_retries=1
    )
    assert merged([one, other]) == expected
    assert merged([one, Phase(name=STEADY, seconds=1.0)]).joules is None


REPORT = RankReport(
    rank=0, device_name="cpu", phases=(), step_seconds=(0.1,), warm_up_steps=0, steady_tokens=1,
    steady_padded_tokens=1, meter_seconds=0.0,
    learning=Learning(losses=(2.0, math.inf, -math.inf), evaluated=(Evaluated(step=0, loss=3.0),), tokens=7, score=0.5),
)  # fmt: skip


def test_losses_that_are_no_numbers_survive_being_written() -> None:
    text = json.dumps(rank_document(REPORT), allow_nan=False)
    assert rank_from(json.loads(text)) == REPORT
    assert REPORT.learning is not None and REPORT.learning.hopeless


def test_only_a_loss_may_be_no_number() -> None:
    document = rank_document(REPORT) | {"meter_seconds": "nan"}
    with pytest.raises(BadInput, match="meter_seconds: must be a number"):
        rank_from(document)


def test_the_loss_of_a_job_is_the_lowest_after_training_began() -> None:
    evaluated = [Evaluated(step=step, loss=loss) for step, loss in enumerate([1.0, 3.0, math.nan, 2.0])]
    learning = Learning(evaluated=tuple(evaluated))
    assert (learning.untrained_loss, learning.loss) == (1.0, 2.0)
    assert Learning(evaluated=tuple(evaluated[:1])).loss is None
    lost = Learning(evaluated=tuple(evaluated[2:3])).loss
    assert lost is not None and math.isnan(lost)
    assert evaluated[3].perplexity == pytest.approx(math.exp(2.0))
