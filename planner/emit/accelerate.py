"""accelerate's launch file: processes, machines, and which of its backends they start."""

import shlex
from collections.abc import Mapping, Sequence

from planner.emit.deepspeed import FILE as DEEPSPEED_FILE
from planner.emit.deepspeed import if_zero
from planner.emit.order import Order, Settings, Tool
from planner.emit.rows import row
from planner.emit.yaml_text import dump
from runners.environment import torch_environment

NAME, FILE = "accelerate", "accelerate.yaml"
PORT = 29500
BACKENDS = {
    "none": "NO", "ddp": "MULTI_GPU", "zero1": "DEEPSPEED", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED", "fsdp2": "FSDP",
}  # fmt: skip
MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def settings(order: Order) -> Settings:
    place = order.recipe.parallelism
    table: Settings = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": row(NAME, "the parallelism", BACKENDS, place.kind),
        "downcast_bf16": "no",
        "gpu_ids": ",".join(map(str, order.gpu_ids)) or ("0" if place.kind == "none" else "all"),
        "machine_rank": 0,
        "main_process_port": PORT,
        "main_training_function": "main",
        "num_machines": order.nodes,
        "num_processes": place.devices,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if order.zero:
        return table | {"deepspeed_config": {"deepspeed_config_file": DEEPSPEED_FILE, "zero3_init_flag": True}}
    table["mixed_precision"] = row(NAME, "the compute type", MIXED, order.recipe.compute)
    return table | ({"fsdp_config": _fsdp2(order)} if place.kind == "fsdp2" else {})


def _fsdp2(order: Order) -> Settings:
    """Checkpointing is the trainer's, as it was estimated, and so not here."""
    return {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": True,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_offload_params": bool(order.recipe.parallelism.offload),
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_activation_checkpointing": False,
    }


def files(order: Order) -> Mapping[str, str]:
    return {FILE: dump(settings(order)), **if_zero(order)}


def launch(order: Order, words: Sequence[str]) -> str:
    """The command that starts a script with this file, on each node."""
    nodes = ["--machine_rank", "0", "--main_process_ip", "HOST-OF-RANK-0"] if order.nodes > 1 else []
    chosen = "CUDA_DEVICE_ORDER=PCI_BUS_ID " if order.gpu_ids else ""
    return environment(order) + chosen + shlex.join(["accelerate", "launch", "--config_file", FILE, *nodes, *words])


def environment(order: Order) -> str:
    """What stands before a command: words of ours alone."""
    words = [f"{name}={value}" for name, value in torch_environment(order.recipe).items()]
    words += [f"OMP_NUM_THREADS=$(( $(nproc) / {order.gpus_per_node} ))"] if steps_on_cpu(order) else []
    return "".join(f"{word} " for word in words)


def visible(order: Order) -> str:
    """What stands before a command whose launcher takes every GPU that it sees."""
    if not order.gpu_ids:
        return environment(order)
    numbers = ",".join(map(str, order.gpu_ids))
    return f"{environment(order)}CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={numbers} "


def steps_on_cpu(order: Order) -> bool:
    """Whether the CPU runs the optimizer, for which the launchers' own choice of one thread is far too few."""
    return order.zero and "optimizer" in order.recipe.parallelism.offload


TOOL = Tool(name=NAME, packages=("accelerate",), files=files, command=None, launches=True,
            trainers=("transformers", "trl"))  # fmt: skip
