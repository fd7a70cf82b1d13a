"""DeepSpeed's words for a recipe's sharding, as a job runs it here and as it is written for others; without torch."""

from typing import Any

from estimators.recipe import Recipe

OPTIMIZERS = {"adamw_torch": "AdamW", "adamw_torch_fused": "AdamW"}
"""DeepSpeed makes FusedAdam of it on a GPU, and CPUAdam where it is offloaded."""


def zero_optimization(recipe: Recipe, stage: int, nvme_path: str) -> dict[str, Any]:
    """The section "zero_optimization", with the recipe's buckets, in elements."""
    buckets, place = recipe.buckets, recipe.parallelism
    section: dict[str, Any] = {
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
        }
    for part, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        if part in place.offload:
            there = {"nvme_path": nvme_path} if place.offload_to == "nvme" else {}
            section[key] = {"device": place.offload_to, "pin_memory": True, **there}
    return section
