"""DeepSpeed's JSON: the ZeRO stage, its buckets and what is offloaded, every figure written out."""

import json
from collections.abc import Mapping

from estimators.errors import BadInput
from planner.emit.order import Order, Settings, Tool
from planner.emit.rows import row
from runners.zero import OPTIMIZERS, zero_optimization

NAME, FILE, NVME = "deepspeed", "deepspeed.json", "offload"
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
BETAS, EPSILON, WEIGHT_DECAY, CLIP_NORM = [0.9, 0.999], 1e-8, 0.0, 1.0
"""TrainingArguments' own, which transformers holds this document to."""


def document(order: Order) -> Settings:
    """
    Raises:
        BadInput: DeepSpeed has no way to say it.
    """
    recipe = order.recipe
    parameters = {
        "lr": recipe.learning_rate, "betas": BETAS, "eps": EPSILON, "weight_decay": WEIGHT_DECAY,
    }  # fmt: skip
    return {
        "zero_optimization": zero_section(order),
        "bf16": {"enabled": recipe.compute == "bfloat16"},
        "fp16": {"enabled": recipe.compute == "float16"},
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "gradient_clipping": CLIP_NORM,
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": row(NAME, "the optimizer", OPTIMIZERS, recipe.optimizer), "params": parameters},
    }


def zero_section(order: Order) -> Settings:
    place = order.recipe.parallelism
    stage = row(NAME, "the parallelism", STAGES, place.kind)
    if stage != 3 and "parameters" in place.offload:
        raise BadInput(f"{NAME} cannot express offload of parameters under {place.kind} (it has zero3)")
    section = zero_optimization(order.recipe, stage, NVME)
    return section | ({"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {})


def files(order: Order) -> Mapping[str, str]:
    return {FILE: json.dumps(document(order), indent=2) + "\n"}


def if_zero(order: Order) -> Mapping[str, str]:
    """The file, for tools that name it where a recipe is sharded by DeepSpeed."""
    return files(order) if order.zero else {}


TOOL = Tool(
    name=NAME,
    packages=("deepspeed", "transformers"),
    files=files,
    command=None,
    launches=True,
    trainers=("transformers", "trl"),
)
