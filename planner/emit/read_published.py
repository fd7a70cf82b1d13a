"""The DeepSpeed files that axolotl and LLaMA-Factory publish beside their examples, by the names people write.

Sources: axolotl's deepspeed_configs (its command `axolotl fetch deepspeed_configs`), LLaMA-Factory's
examples/deepspeed, both as of 2026.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

ON_CPU = {"device": "cpu"}
AUTOMATIC = dict.fromkeys(
    ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"), "auto"
)
THIRD = {"stage": 3, **AUTOMATIC, "sub_group_size": 0, "stage3_max_live_parameters": 0}
FACTORY_SECOND = {"stage": 2, "allgather_bucket_size": 500_000_000, "reduce_bucket_size": 500_000_000}
FACTORY_THIRD = {
    "stage": 3, **AUTOMATIC, "sub_group_size": 1_000_000_000, "stage3_max_live_parameters": 1_000_000_000,
}  # fmt: skip
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "deepspeed_configs/zero1.json": {"stage": 1},
    "deepspeed_configs/zero2.json": {"stage": 2, "offload_optimizer": ON_CPU},
    "deepspeed_configs/zero3.json": THIRD,
    "deepspeed_configs/zero3_bf16.json": THIRD,
    "deepspeed_configs/zero3_bf16_cpuoffload_params.json": {
        "stage": 3, **AUTOMATIC, "sub_group_size": 0, "max_live_parameters": 0, "offload_param": ON_CPU,
    },
    "deepspeed_configs/zero3_bf16_cpuoffload_all.json": {
        "stage": 3, **AUTOMATIC, "sub_group_size": 0, "max_live_parameters": 0, "offload_param": ON_CPU,
        "offload_optimizer": ON_CPU,
    },
    "examples/deepspeed/ds_z0_config.json": {"stage": 0},
    "examples/deepspeed/ds_z2_config.json": FACTORY_SECOND,
    "examples/deepspeed/ds_z2_offload_config.json": FACTORY_SECOND | {"offload_optimizer": ON_CPU},
    "examples/deepspeed/ds_z3_config.json": FACTORY_THIRD,
    "examples/deepspeed/ds_z3_offload_config.json": FACTORY_THIRD
    | {"offload_optimizer": ON_CPU, "offload_param": ON_CPU},
}  # fmt: skip


def published(path: str) -> Mapping[str, Any] | None:
    """The section zero_optimization of the file that ends in such a name, its folder included."""
    parts = PurePosixPath(path).parts
    for name, section in PUBLISHED.items():
        wanted = PurePosixPath(name).parts
        if parts[-len(wanted) :] == wanted:
            return section
    return None
