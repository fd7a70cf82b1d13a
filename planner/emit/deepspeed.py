"""DeepSpeed's JSON: the ZeRO stage, its buckets and what is offloaded, every figure written out."""

import json
from collections.abc import Mapping

from estimators.errors import BadInput
from planner.emit.order import Order, Settings, Tool
from planner.emit.rows import row

NAME, FILE, NVME = "deepspeed", "deepspeed.json", "offload"
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
OPTIMIZERS = {"adamw_torch": "AdamW", "adamw_torch_fused": "AdamW"}
"""DeepSpeed makes FusedAdam of it on a GPU, and CPUAdam where it is offloaded."""
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
        "zero_optimization": zero_optimization(order),
        "bf16": {"enabled": recipe.compute == "bfloat16"},
        "fp16": {"enabled": recipe.compute == "float16"},
        "train_micro_batch_size_per_gpu": recipe.micro_batch,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "gradient_clipping": CLIP_NORM,
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": row(NAME, "the optimizer", OPTIMIZERS, recipe.optimizer), "params": parameters},
    }


def zero_optimization(order: Order) -> Settings:
    place, buckets = order.recipe.parallelism, order.recipe.buckets
    stage = row(NAME, "the parallelism", STAGES, place.kind)
    section: Settings = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": buckets.reduce_elements,
        "allgather_bucket_size": buckets.allgather_elements,
    }
    if stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": buckets.prefetch_elements,
            "stage3_param_persistence_threshold": buckets.persistence_elements,
            "stage3_max_live_parameters": buckets.live_elements,
            "sub_group_size": buckets.sub_group_elements,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    elif "parameters" in place.offload:
        raise BadInput(f"{NAME} cannot express offload of parameters under {place.kind} (it has zero3)")
    for part, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        if part in place.offload:
            section[key] = _offload(place.offload_to)
    return section


def _offload(where: str) -> Settings:
    return {"device": where, "pin_memory": True} | ({"nvme_path": NVME} if where == "nvme" else {})


def files(order: Order) -> Mapping[str, str]:
    return {FILE: json.dumps(document(order), indent=2) + "\n"}


def if_zero(order: Order) -> Mapping[str, str]:
    """The file, for tools that name it where a recipe is sharded by DeepSpeed."""
    return files(order) if order.zero else {}


TOOL = Tool(
    name=NAME, packages=("deepspeed", "transformers"), files=files, command=None, trainers=("transformers", "trl")
)
