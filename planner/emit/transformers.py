"""A script of transformers' own Trainer, with PEFT and bitsandbytes: the job that is estimated by default."""

from collections.abc import Mapping

from estimators.recipe import ALL_LINEAR
from planner.emit.accelerate import files as accelerate_files
from planner.emit.accelerate import launch
from planner.emit.arguments import ATTENTIONS, DATA_TYPES, LOSSES, quantization, training_arguments
from planner.emit.data import path_of, too_short_to_pack
from planner.emit.order import Order, Settings, Tool
from planner.emit.python_text import script
from planner.emit.rows import row

NAME, FILE = "transformers", "train.py"
TEMPLATE = "train.py.txt"
ADAPTERS = {"full": None, "lora": False, "dora": True}
"""Whether LoraConfig has use_dora; None: no adapter."""


def settings(order: Order) -> dict[str, object]:
    """The constants that stand at the head of the script.

    Raises:
        BadInput: transformers has no way to say it.
    """
    recipe = order.recipe
    arguments = training_arguments(order) | {"use_liger_kernel": row(NAME, "the loss", LOSSES, recipe.loss)}
    return {
        "WEIGHTS": order.weights,
        "DATA": path_of(order.data),
        "LONGEST": recipe.sequence_length,
        "PACKING": recipe.packing,
        "COMPLETION_ONLY": True,
        "STORED": row(NAME, "weights of the type", DATA_TYPES, recipe.weights),
        "COMPUTE": row(NAME, "the compute type", DATA_TYPES, recipe.compute),
        "ATTENTION": row(NAME, "the attention", ATTENTIONS, recipe.attention),
        "QUANTIZATION": quantization(recipe, NAME),
        "UPCAST": recipe.upcasts_kbit,
        "ADAPTER": adapter(order),
        "ARGUMENTS": arguments,
    }


def adapter(order: Order) -> Settings:
    """LoraConfig; empty where everything is trained."""
    chosen = order.recipe.adapter
    dora = row(NAME, "the adapter", ADAPTERS, chosen.method)
    if dora is None:
        return {}
    targets = ALL_LINEAR if chosen.targets == ALL_LINEAR else list(chosen.targets)
    return {
        "r": chosen.rank, "lora_alpha": chosen.alpha, "lora_dropout": chosen.dropout, "target_modules": targets,
        "use_dora": dora, "task_type": "CAUSAL_LM",
    }  # fmt: skip


def files(order: Order) -> Mapping[str, str]:
    return {FILE: script(TEMPLATE, settings(order)), **accelerate_files(order)}


def command(order: Order) -> str:
    return launch(order, [FILE])


TOOL = Tool(
    name=NAME,
    packages=("transformers", "peft", "bitsandbytes", "accelerate"),
    files=files,
    command=command,
    program=lambda order: (FILE,),
    trainers=("transformers",),
    notes=too_short_to_pack,
)
