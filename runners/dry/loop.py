"""One optimizer step as the stock Trainer takes it, with all the small tensors that it makes on the GPU."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from estimators.recipe import Recipe
from runners.build import Built
from runners.dry.stream import Phase
from runners.losses import Batch

LARGEST_NORM = 1.0
"""TrainingArguments.max_grad_norm."""
PROCESSES = 1
ACCUMULATED_BY_ACCELERATE = 1
"""The Trainer divides by accumulated steps itself and tells accelerate of none."""
DISTINCT_MICRO_BATCHES = 2
"""The first micro-batch of a step makes the gradients, the second adds to them, and all later ones are like it."""
IGNORED = -100
"""The label of a token that is not learned."""


class Loop:
    """Trainer._run_epoch: what its frame holds from one step to the next is held here too."""

    def __init__(self, recipe: Recipe, built: Built, optimizer: torch.optim.Optimizer) -> None:
        self.recipe = recipe
        self.built = built
        self.optimizer = optimizer
        self.total_loss = torch.zeros((), device="meta")
        self.samples: tuple[list[Batch], Any] = ([], None)
        self.step_loss: Tensor | None = None
        self.norm: Tensor | None = None

    def step(self, begin: Callable[[Phase], None]) -> None:
        """One step; `begin` is told of each phase."""
        begin("forward")
        self.samples = self._next_samples()
        for index, batch in enumerate(self.samples[0][:DISTINCT_MICRO_BATCHES]):
            if index:
                begin("forward")
            self._micro_step(batch, self.samples[1], begin)
        begin("optimizer")
        self.norm = None
        self.norm = nn.utils.clip_grad_norm_(self.built.parameters, LARGEST_NORM, foreach=True)
        self.optimizer.step()
        self.built.model.zero_grad()

    def finish(self) -> None:
        """Training is over: the Trainer's frame lets go of what it held."""
        self.samples, self.step_loss, self.norm = ([], None), None, None
        del self.total_loss

    def _next_samples(self) -> tuple[list[Batch], Any]:
        """A step's batches, and how many of their labels count (Trainer.get_batch_samples)."""
        recipe = self.recipe
        batches = [batch_of(recipe, recipe.micro_batch) for _ in range(recipe.gradient_accumulation)]
        return batches, count_labels(self.built.model, batches)

    def _micro_step(self, batch: Batch, tokens: Any, begin: Callable[[Phase], None]) -> None:
        loss = self.built.loss(batch, tokens)
        if self.recipe.trainer == "transformers":  # SFTTrainer's own loss has it already
            loss *= PROCESSES
        self._backward(loss, begin)
        self.step_loss = loss.detach()
        del loss
        for unusual in (torch.isnan, torch.isinf):
            bool(unusual(self.step_loss))
        self.total_loss += self.step_loss

    def _backward(self, loss: Tensor, begin: Callable[[Phase], None]) -> None:
        """Accelerator.backward."""
        loss = loss / ACCUMULATED_BY_ACCELERATE
        begin("backward")
        loss.backward()  # type: ignore[no-untyped-call]


def count_labels(model: nn.Module, batches: list[Batch]) -> Any:
    """How many labels count (Trainer._get_num_items_in_batch)."""
    shifted = shifts_labels(model)
    labels = (batch["labels"][..., 1:] if shifted else batch["labels"] for batch in batches)
    return sum(part.ne(IGNORED).sum() for part in labels)


def shifts_labels(model: nn.Module) -> bool:
    """Whether the Trainer knows that the loss skips the first label (Trainer.__init__, _loss_shifts_labels)."""
    bare = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return LOSS_MAPPING.get(str(getattr(bare, "loss_type", None))) is ForCausalLMLoss


def batch_of(recipe: Recipe, rows: int) -> Batch:
    """A batch of so many of the recipe's sequences."""
    shape = (rows, recipe.sequence_length)
    names = ("input_ids", "attention_mask", "labels")
    return {name: torch.zeros(shape, dtype=torch.int64, device="meta") for name in names}
