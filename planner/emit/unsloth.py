"""A script for Unsloth, which trains on one GPU with kernels of its own."""

import shlex
from collections.abc import Mapping

from estimators.recipe import ALL_LINEAR
from planner.emit.accelerate import visible
from planner.emit.arguments import OPTIMIZERS, training_arguments
from planner.emit.data import path_of, too_short_to_pack
from planner.emit.order import Order, Settings, Tool
from planner.emit.python_text import script
from planner.emit.rows import refuse, row

NAME, FILE, TEMPLATE = "unsloth", "train_unsloth.py", "train_unsloth.py.txt"
METHODS: dict[str, Settings] = {
    "full none": {"load_in_4bit": False, "full_finetuning": True},
    "lora none": {"load_in_4bit": False, "load_in_16bit": True},
    "lora nf4": {"load_in_4bit": True},
    "lora int8": {"load_in_4bit": False, "load_in_8bit": True},
}
"""Its 4-bit weights are nf4 with double quantization."""
ATTENTIONS = dict.fromkeys(("sdpa", "sdpa_no_cudnn"), "its own choice among kernels that store no scores")
LOSSES = {"plain": "its own fused cross entropy"}
TYPES = {"bfloat16": "bfloat16", "float16": "float16"}
CHECKPOINTING = {True: True, False: False}
"""Not "unsloth", which moves activations to the host."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What it adapts."""


def settings(order: Order) -> dict[str, object]:
    """
    Raises:
        BadInput: Unsloth has no way to say it.
    """
    recipe = order.recipe
    row(NAME, "the attention", ATTENTIONS, recipe.attention)
    row(NAME, "the loss", LOSSES, recipe.loss)
    row(NAME, "the optimizer", OPTIMIZERS, recipe.optimizer)
    row(NAME, "the parallelism", {"none": None}, recipe.parallelism.kind)
    if recipe.weights != recipe.compute:
        raise refuse(NAME, f"{recipe.compute} products over {recipe.weights} weights")
    method = row(NAME, "the adapter and quantization", METHODS, f"{recipe.adapter.method} {recipe.quantization}")
    arguments = training_arguments(order, NAME)
    for name in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
        del arguments[name]  # said to the model below
    model = {"model_name": order.weights, "max_seq_length": recipe.sequence_length, **method}
    model |= {"trust_remote_code": False, "use_gradient_checkpointing": CHECKPOINTING[recipe.gradient_checkpointing]}
    return {
        "DATA": path_of(order.data),
        "LONGEST": recipe.sequence_length,
        "PACKING": recipe.packing,
        "COMPLETION_ONLY": True,
        "TYPE": row(NAME, "the compute type", TYPES, recipe.compute),
        "MODEL": model,
        "ADAPTER": _adapter(order),
        "ARGUMENTS": {**arguments, "max_length": recipe.sequence_length, "packing": False},  # the script packs
    }


def _adapter(order: Order) -> Settings:
    recipe = order.recipe
    adapter = recipe.adapter
    if adapter.trains_everything:
        return {}
    targets = LAYERS if adapter.targets == ALL_LINEAR else adapter.targets
    for name in targets:
        row(NAME, "an adapter on", dict.fromkeys(LAYERS), name)
    return {
        "r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout,
        "target_modules": list(targets), "bias": "none", "random_state": recipe.seed,
        "use_gradient_checkpointing": CHECKPOINTING[recipe.gradient_checkpointing],
    }  # fmt: skip


def files(order: Order) -> Mapping[str, str]:
    return {FILE: script(TEMPLATE, settings(order))}


def command(order: Order) -> str:
    return visible(order) + shlex.join(["python", FILE])


TOOL = Tool(name=NAME, packages=("unsloth",), files=files, command=command, notes=too_short_to_pack,
            brings={"bitsandbytes": ""})  # fmt: skip
