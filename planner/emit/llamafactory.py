"""LLaMA-Factory's YAML, with the table of its data beside it."""

import json
import shlex
from collections.abc import Mapping

from estimators.recipe import ALL_LINEAR, Recipe
from planner.emit.accelerate import files as accelerate_files
from planner.emit.accelerate import launch, visible
from planner.emit.arguments import OPTIMIZERS as TRANSFORMERS_OPTIMIZERS
from planner.emit.arguments import length, output_of, scheduler, warm_up
from planner.emit.chat_template import state_of
from planner.emit.data import path_of
from planner.emit.deepspeed import FILE as DEEPSPEED_FILE
from planner.emit.deepspeed import if_zero
from planner.emit.llamafactory_templates import template_doubt, template_name
from planner.emit.order import Order, Settings, Tool
from planner.emit.rows import refuse, row
from planner.emit.tokenizer_files import text_begins_with, weights_type
from planner.emit.yaml_text import dump

NAME, FILE, DATA_FILE, DATASET = "llamafactory", "llamafactory.yaml", "dataset_info.json", "examples"
MODULE = "llamafactory.launcher"
ADAPTERS: dict[str, Settings] = {
    "full": {"finetuning_type": "full"},
    "lora": {"finetuning_type": "lora", "use_dora": False},
    "dora": {"finetuning_type": "lora", "use_dora": True},
}
QUANTIZATIONS: dict[str, Settings] = {
    "none": {},
    "nf4": {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True},
    "nf4-single": {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": False},
    "int8": {"quantization_bit": 8},
}
ATTENTIONS = {"sdpa": "sdpa", "sdpa_no_cudnn": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}
LOSSES = {"plain": False, "liger": True}
MIXED: dict[str, Settings] = {
    "bfloat16": {"bf16": True}, "float16": {"fp16": True}, "float32": {"bf16": False, "fp16": False},
}  # fmt: skip
OPTIMIZERS = TRANSFORMERS_OPTIMIZERS
PARALLELISMS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")
COLUMNS: dict[str, Settings] = {
    "completion": {"columns": {"prompt": "prompt", "response": "completion"}},
    "messages": {
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
}  # fmt: skip
"""How dataset_info.json names the columns of the two kinds of examples."""
EMPTY = "empty"
TEMPLATE_NOTE = (
    "LLaMA-Factory's template \"empty\" adds no end of text to a completion: end each with the tokenizer's own, or "
    "name a template of yours"
)
UNMARKED_NOTE = (
    "Where the tokenizer has no chat template, as those of base models, LLaMA-Factory joins the turns with nothing "
    "between them: name one of its own templates (template: llama3, say)"
)
BEGINNING_NOTE = (
    'the template "empty" puts nothing before a text either: where the tokenizer begins every text with a token of its '
    "own, name that in default_system (Llama 3: <|begin_of_text|>, Gemma: <bos>)"
)
TURNS_NOTE = (
    "LLaMA-Factory leaves conversations out in which user and assistant do not take turns, and of what is too long it "
    "cuts questions and answers in proportion, where trials cut the end"
)
AGAIN_NOTE = f"run again, LLaMA-Factory goes on from the last checkpoint in {output_of(NAME)}: remove it to begin anew"


def settings(order: Order) -> Settings:
    """
    Raises:
        BadInput: LLaMA-Factory has no way to say it.
    """
    recipe = order.recipe
    if recipe.upcasts_kbit and recipe.kbit_upcast:
        raise refuse(NAME, "kbit_upcast: it raises the precision of norms alone")
    quantization = row(NAME, "the quantization", QUANTIZATIONS, recipe.quantization)
    return {
        "model_name_or_path": order.weights,
        "trust_remote_code": False,
        "flash_attn": row(NAME, "the attention", ATTENTIONS, recipe.attention),
        "enable_liger_kernel": row(NAME, "the loss", LOSSES, recipe.loss),
        **({"quantization_method": "bnb", **quantization} if quantization else {}),
        "stage": "sft",
        "do_train": True,
        **_adapter(recipe),
        "dataset_dir": ".",
        "dataset": DATASET,
        **_template(order),
        "train_on_prompt": False,
        "mask_history": False,
        "cutoff_len": recipe.sequence_length,
        "packing": recipe.packing,
        "output_dir": output_of(NAME),
        "logging_steps": 10,
        "save_steps": 500,
        "save_total_limit": 2,
        "report_to": "none",
        "per_device_train_batch_size": recipe.micro_batch,
        **({"per_device_eval_batch_size": recipe.evaluation_batch} if recipe.evaluation_batch else {}),
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        **length(order),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": scheduler(order.schedule),
        **warm_up(order.schedule),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": _optimizer(recipe),
        **_types(order),
        "disable_gradient_checkpointing": not recipe.gradient_checkpointing,
        "use_reentrant_gc": False,
        "seed": recipe.seed,
        **_parallel(order),
    }


def _template(order: Order) -> Settings:
    """Completions are joined as they are, behind what the tokenizer begins every text with."""
    if not _has_no_template(order):
        name = template_name(order.weights)
        return {"template": name} if name else {}
    begins = text_begins_with(order.weights)
    return {"template": EMPTY, **({"default_system": begins} if begins else {})}


def _has_no_template(order: Order) -> bool:
    """Messages are put into the tokenizer's own template."""
    return order.data is None or order.data.kind == "completion"


def notes(order: Order) -> tuple[str, ...]:
    if _has_no_template(order):
        return (TEMPLATE_NOTE, *(() if order.weights.startswith("/") else (BEGINNING_NOTE,)), AGAIN_NOTE)
    doubt = template_doubt(order.weights)
    unmarked = state_of(order.weights) != "there" and not template_name(order.weights)
    return (TURNS_NOTE, *([doubt] if doubt else []), *([UNMARKED_NOTE] if unmarked else []), AGAIN_NOTE)


def _doubt(order: Order) -> str | None:
    """It loads a base as its checkpoint has it."""
    recipe, stored = order.recipe, weights_type(order.weights)
    if recipe.adapter.trains_everything or recipe.quantized or stored in (None, recipe.weights):
        return None
    return f"loads the base in {stored}, as the checkpoint has it"


def _optimizer(recipe: Recipe) -> str:
    row(NAME, "the optimizer", OPTIMIZERS, recipe.optimizer)
    return recipe.optimizer


def _adapter(recipe: Recipe) -> Settings:
    adapter = recipe.adapter
    chosen = dict(row(NAME, "the adapter", ADAPTERS, adapter.method))
    if adapter.trains_everything:
        return chosen
    targets = adapter.targets
    return chosen | {
        "lora_rank": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "lora_target": "all" if targets == ALL_LINEAR else ",".join(targets),
    }


def _types(order: Order) -> Settings:
    """It loads a base as its checkpoint has it, in 16 bits, and casts what is trained to float32, but for pure_bf16."""
    recipe = order.recipe
    mixed = row(NAME, "the compute type", MIXED, recipe.compute)
    whole = recipe.adapter.trains_everything
    if not whole and recipe.weights == "float32":
        raise refuse(NAME, f"a frozen base in float32 with {recipe.adapter.method}")
    if recipe.weights == recipe.compute and (not whole or order.zero or recipe.compute == "float32"):
        return mixed
    if whole and recipe.weights == "float32":
        return mixed
    if whole and recipe.weights == recipe.compute == "bfloat16":
        return {"pure_bf16": True}
    raise refuse(NAME, f"{recipe.weights} weights under {recipe.compute} with {recipe.adapter.method}")


def _parallel(order: Order) -> Settings:
    place = order.recipe.parallelism
    row(NAME, "the parallelism", dict.fromkeys(PARALLELISMS), place.kind)
    if place.kind == "fsdp2" and order.recipe.quantized:
        raise refuse(NAME, f"{order.recipe.quantization} under fsdp2")
    if place.kind == "ddp":
        return {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": order.recipe.buckets.ddp_mib}
    return {"deepspeed": DEEPSPEED_FILE} if order.zero else {}


def files(order: Order) -> Mapping[str, str]:
    kind = order.data.kind if order.data else "completion"
    table = {DATASET: {"file_name": path_of(order.data), **COLUMNS[kind]}}
    made = {
        FILE: "".join(f"# {note}\n" for note in notes(order)) + dump(settings(order)),
        DATA_FILE: json.dumps(table, indent=2) + "\n",
    }
    return made | dict(accelerate_files(order) if order.recipe.parallelism.kind == "fsdp2" else if_zero(order))


def command(order: Order) -> str:
    """Its own launcher takes every GPU that it sees, unless it is told how many, and sets torch's allocator, unless it
    is told not to; FSDP it knows from accelerate only."""
    if order.recipe.parallelism.kind == "fsdp2":
        return launch(order, ["--module", MODULE, FILE])
    nodes = f"NNODES={order.nodes} NODE_RANK=0 MASTER_ADDR=HOST-OF-RANK-0 " if order.nodes > 1 else ""
    start = f"OPTIM_TORCH=0 FORCE_TORCHRUN=1 {nodes}NPROC_PER_NODE={order.gpus_per_node} "
    return visible(order) + start + shlex.join(["llamafactory-cli", "train", FILE])


def program(order: Order) -> tuple[str, ...]:
    if order.recipe.parallelism.kind == "fsdp2":
        raise refuse(NAME, "fsdp2 under torchrun alone: it has it from accelerate")
    return ("--module", MODULE, FILE)


TOOL = Tool(
    name=NAME,
    packages=("llamafactory",),
    files=files,
    command=command,
    program=program,
    doubt=_doubt,
    notes=notes,
    own_template=True,
)
