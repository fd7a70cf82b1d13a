"""TRL's YAML for `trl sft`: SFTConfig, ModelConfig and the data, in one table."""

from collections.abc import Mapping

from estimators.recipe import ALL_LINEAR
from planner.emit.accelerate import files as accelerate_files
from planner.emit.accelerate import launch
from planner.emit.arguments import ATTENTIONS, DATA_TYPES, quantization, training_arguments
from planner.emit.data import path_of
from planner.emit.order import Order, Settings, Tool
from planner.emit.rows import refuse, row
from planner.emit.trl_templates import objection
from planner.emit.yaml_text import dump

NAME, FILE = "trl", "train.yaml"
MODULE = "trl.scripts.sft"
ADAPTERS: dict[str, Settings] = {
    "full": {"use_peft": False},
    "lora": {"use_peft": True, "use_dora": False},
    "dora": {"use_peft": True, "use_dora": True},
}
LOSSES = {"plain": True}
"""SFTTrainer has a head of its own in place of Liger's."""
NESTED = {"bnb_4bit_use_double_quant": "use_bnb_nested_quant"}
"""ModelConfig's word for BitsAndBytesConfig's."""


def settings(order: Order) -> Settings:
    """
    Raises:
        BadInput: TRL has no way to say it.
    """
    recipe = order.recipe
    row(NAME, "the loss", LOSSES, recipe.loss)
    if recipe.quantized and recipe.kbit_upcast:
        raise refuse(NAME, "kbit_upcast: SFTTrainer leaves norms and embeddings as they are")
    if recipe.quantization.startswith("nf4") and recipe.weights != recipe.compute:
        raise refuse(NAME, f"{recipe.compute} products over {recipe.weights} weights under {recipe.quantization}")
    return {
        "model_name_or_path": order.weights,
        "dtype": row(NAME, "weights of the type", DATA_TYPES, recipe.weights),
        "attn_implementation": row(NAME, "the attention", ATTENTIONS, recipe.attention),
        "trust_remote_code": False,
        **_adapter(order),
        **{NESTED.get(name, name): value for name, value in quantization(recipe, NAME).items()},
        **learned(order),
        "datasets": [{"path": "json", "data_files": path_of(order.data), "split": "train"}],
        "max_length": recipe.sequence_length,
        **({"packing": True, "packing_strategy": "wrapped"} if recipe.packing else {"packing": False}),
        **training_arguments(order, NAME),
    }


def learned(order: Order) -> Settings:
    """The completion alone, or the assistant's turns alone where TRL can tell them."""
    if order.data is None:
        return {}
    return (
        {"completion_only_loss": True} if order.data.kind == "completion"
        else {"assistant_only_loss": whole_conversations(order) is None}
    )  # fmt: skip


def whole_conversations(order: Order) -> str | None:
    """Why every token of the messages is learned, where it is so."""
    if order.data is None or order.data.kind == "completion":
        return None
    if not order.data.answered:
        return "it stops at a conversation without a turn of the assistant, and there are such"
    return objection(order.weights)


def notes(order: Order) -> tuple[str, ...]:
    why = whole_conversations(order)
    if why is None:
        return ()
    return (
        f"TRL learns whole conversations here, not the assistant's turns alone as trials do: {why} (once that is "
        "mended set assistant_only_loss: true; the files for transformers learn those turns alone)",
    )


def _adapter(order: Order) -> Settings:
    adapter = order.recipe.adapter
    chosen = dict(row(NAME, "the adapter", ADAPTERS, adapter.method))
    if adapter.trains_everything:
        return chosen
    return chosen | {
        "lora_r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "lora_target_modules": ALL_LINEAR if adapter.targets == ALL_LINEAR else list(adapter.targets),
    }


def files(order: Order) -> Mapping[str, str]:
    comments = "".join(f"# {note}\n" for note in notes(order))
    return {FILE: comments + dump(settings(order)), **accelerate_files(order)}


def command(order: Order) -> str:
    return launch(order, ["--module", MODULE, "--config", FILE])


def _doubt(order: Order) -> str | None:
    recipe = order.recipe
    if recipe.parallelism.kind == "zero3" and not recipe.adapter.trains_everything:
        return "keeps adapters in 16 bits under ZeRO-3 and checkpoints re-entrantly"  # SFTTrainer.__init__ of 1.16
    return None


TOOL = Tool(
    name=NAME,
    packages=("trl", "transformers", "peft", "bitsandbytes", "accelerate"),
    files=files,
    command=command,
    program=lambda order: ("--module", MODULE, "--config", FILE),
    trainers=("trl",),
    doubt=_doubt,
    notes=notes,
)
