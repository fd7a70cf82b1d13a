"""The loss of a job as its trainer runs it: the model called under autocast, and what is made of its results."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import peft
import torch
from torch import Tensor

from estimators.recipe import Recipe
from runners.tools import DATA_TYPES, row, tool

DeviceName = Literal["meta", "cuda", "cpu"]
Batch = Mapping[str, Tensor]
Loss = Callable[[Batch, Tensor], Tensor]
PROCESSES = 1
"""Each rank of a job counts its tokens by itself."""


def _autocast(model: Any, recipe: Recipe, device: DeviceName) -> Callable[..., Any]:
    """The model as accelerate wraps it: called under autocast, its results copied to float32."""
    if recipe.compute == "float32":
        return model  # type: ignore[no-any-return]
    data_type = row("accelerate", DATA_TYPES, recipe.compute)

    def call(**inputs: Tensor) -> Any:
        with torch.autocast(device_type=device, dtype=data_type):
            return model(**inputs)

    return tool("accelerate.utils.operations").ConvertOutputsToFp32(call)  # type: ignore[no-any-return]


def _plain(model: Any, recipe: Recipe, device: DeviceName) -> Loss:
    """The model's own loss, as the stock Trainer asks for it."""
    run = _autocast(model, recipe, device)
    return lambda batch, tokens: run(**batch, num_items_in_batch=tokens)["loss"]


def _liger(model: Any, recipe: Recipe, device: DeviceName) -> Loss:
    """The same with Liger's kernels put into the model."""
    tool("liger_kernel.transformers")._apply_liger_kernel_to_instance(model=_bare(model))
    return _plain(model, recipe, device)


def _tiled(model: Any, recipe: Recipe, device: DeviceName) -> Loss:
    """TRL's own head, which projects tile by tile and also returns what SFTTrainer logs."""
    tool("trl.trainer.utils").add_fused_lm_head(_bare(model), outputs=("log_probs", "entropy", "is_top1"))
    run = _autocast(model, recipe, device)

    def loss(batch: Batch, tokens: Tensor) -> Tensor:
        outputs = run(**batch, use_cache=False, fused_lm_head=True)
        each = -outputs.log_probs
        total: Tensor = each.sum() / torch.as_tensor(tokens).clamp(min=1)
        total = total * PROCESSES
        counted = outputs.label_mask.sum().sum()  # logged at every step, each summed over processes once more
        sums = outputs.entropy.detach().sum().sum(), outputs.is_top1.sum().sum()
        for item in sums:
            float(item / counted) if counted > 0 else 0.0
        if model.training:
            int(batch["attention_mask"].sum().sum())
        return total

    return loss


def _bare(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


LOSSES: dict[str, Callable[[Any, Recipe, DeviceName], Loss]] = {
    "transformers plain": _plain,
    "transformers liger": _liger,
    "trl plain": _tiled,
}
