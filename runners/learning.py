"""What a job learns while it trains: the loss of every step, and of the examples that are held out, now and then."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import TrainerCallback

from estimators.learning import Evaluated, Training
from estimators.outcome import EVALUATION
from runners.chat import NOT_LEARNED
from runners.data import Padding, Row
from runners.meter import Meter


class StepLosses:
    """Keeps the losses of a step's micro-batches where they are made, and reads them once the step is over.

    The trainer divides each by the step's tokens or micro-batches, so that their sum is the step's loss.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def listen(self, trainer: Any) -> None:
        """To every micro-batch of a transformers' Trainer."""
        train = trainer.training_step

        def training_step(*arguments: Any, **named: Any) -> Tensor:
            loss: Tensor = train(*arguments, **named)
            self._parts.append(loss.detach())
            return loss

        trainer.training_step = training_step

    def take(self) -> float | None:
        """The last step's loss. The device is idle by then, so that reading a number costs a copy and no wait."""
        parts, self._parts = self._parts, []
        return sum(float(part) for part in parts) if parts else None


@dataclass(slots=True, kw_only=True)
class HeldOut(TrainerCallback):
    """Evaluates examples that are not learned: before the first step, every so many steps, and after the last.

    The job ends early where its training says so, or where the loss is no number any more.
    """

    training: Training
    rows: Sequence[Row]
    collate: Padding
    batch: int
    meter: Meter
    evaluated: list[Evaluated] = field(default_factory=list)
    stopped_at: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._evaluate(0, kwargs["model"], args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Comes after the step clock's, which has taken the step's time and loss."""
        step, last = state.global_step, state.global_step >= state.max_steps
        every = self.training.evaluate_every
        if last or self._lost() or (every is not None and step % every == 0):
            self._evaluate(step, kwargs["model"], args.device)
        if not last and (self._lost() or self._impatient()):
            self.stopped_at = step
            control.should_training_stop = True

    def _evaluate(self, step: int, model: Any, device: torch.device) -> None:
        if self.evaluated and self.evaluated[-1].step == step:
            return
        with self.meter.aside(EVALUATION):
            batches = _share(self.rows, self.batch, self.collate)
            loss = held_out_loss(model, batches, device, self.meter.beat)
        self.evaluated.append(Evaluated(step=step, loss=loss))

    def _lost(self) -> bool:
        """Whether the last loss is no number. Ranks decide by what they share, or one would wait for the others."""
        shared = _ranks() > 1 or not self.meter.losses
        return not math.isfinite(self.evaluated[-1].loss if shared else self.meter.losses[-1])

    def _impatient(self) -> bool:
        """Whether the lowest loss is as many evaluations old as patience allows. One that is no number is not lower."""
        if self.training.patience is None:
            return False
        losses = [math.inf if math.isnan(one.loss) else one.loss for one in self.evaluated]
        return len(losses) - 1 - losses.index(min(losses)) >= self.training.patience


def held_out_loss(
    model: Any, batches: Iterable[tuple[Row, bool]], device: torch.device, beat: Callable[[float, int], None]
) -> float:
    """Mean loss over the learned tokens of all batches that count, of the model as it is trained: autocast is part of
    its forward.

    It draws no random number and leaves no state, so that training goes on as if nothing had been. Ranks share the
    rows; each takes as many batches as the others, since sharded weights are gathered by all together.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with evaluating(model):
        for number, (batch, counts) in enumerate(batches, 1):
            total += _sums(model, batch, device) * counts
            beat(_mean(total), number)
    if _ranks() > 1:
        torch.distributed.all_reduce(total)
    return _mean(total)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout and gradients.

    Quantised layers, which have no dropout, stay as they train: bitsandbytes 0.50 packs 4-bit weights anew where they
    are evaluated on a CPU with AVX512-BF16, and all gradients after that are wrong.
    """
    training = model.training
    model.eval()
    for layer in model.modules():
        if type(layer).__module__.startswith("bitsandbytes."):
            layer.training = training
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _sums(model: Any, batch: Row, device: torch.device) -> Tensor:
    """The sum of the learned tokens' losses, and their number. Only their logits are made float32."""
    labels = batch["labels"][:, 1:].to(device)
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    chosen = labels != NOT_LEARNED
    losses = torch.nn.functional.cross_entropy(logits[chosen].float(), labels[chosen], reduction="sum")
    return torch.stack([losses.double(), chosen.sum().double()])


def _share(rows: Sequence[Row], batch: int, collate: Padding) -> Iterator[tuple[Row, bool]]:
    """This rank's batches, and whether they count: a rank with one batch less runs its first again.

    Rows of one length go together, so that little of a batch is padding.
    """
    ranked = sorted(rows, key=lambda row: len(row["input_ids"]))
    batches = [ranked[start : start + batch] for start in range(0, len(ranked), batch)]
    ranks, rank = _ranks(), torch.distributed.get_rank() if _ranks() > 1 else 0
    for start in range(0, len(batches), ranks):
        counts = start + rank < len(batches)
        yield collate(batches[start + rank if counts else 0]), counts


def _ranks() -> int:
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if together else 1


def _mean(total: Tensor) -> float:
    loss, tokens = total.tolist()
    return float(loss / tokens) if tokens else math.nan
