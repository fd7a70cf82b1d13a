"""An evaluation as Trainer.evaluate runs it after training: no gradients, the loss alone is kept.

Without metrics to compute the stock Trainer sets `prediction_loss_only` (Trainer.evaluate), so logits live no longer
than a batch; the second batch is made while the first one's inputs are still held. Held to two measured evaluations,
tests/runners/test_dry_shims.py.
"""

from typing import Any

import torch
from torch import Tensor

from estimators.errors import BadInput
from estimators.recipe import Recipe
from runners.build import Built
from runners.dry.loop import batch_of, count_labels

BATCHES = 2
"""Later batches are like the second."""


def evaluate(recipe: Recipe, built: Built) -> None:
    """Run `recipe.evaluation_batch` rows through the model, twice.

    Raises:
        BadInput: the recipe evaluates nothing.
    """
    rows = recipe.evaluation_batch
    if not rows:
        raise BadInput("the recipe has no evaluation_batch")
    built.model.eval()
    losses: Tensor | None = None
    for _ in range(BATCHES):
        batch = batch_of(recipe, rows)
        found = _prediction(built, batch).repeat(rows)
        losses = found if losses is None else torch.cat((losses, found))
    built.model.train()


@torch.no_grad()
def _prediction(built: Built, batch: Any) -> Tensor:
    """Trainer.prediction_step."""
    loss = built.loss(batch, count_labels(built.model, [batch]))
    return loss.detach().mean()
