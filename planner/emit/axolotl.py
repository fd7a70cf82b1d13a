"""axolotl's YAML."""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from estimators.recipe import ALL_LINEAR, Recipe
from planner.emit.accelerate import visible
from planner.emit.arguments import ATTENTIONS, output_of, scheduler, warm_up
from planner.emit.arguments import OPTIMIZERS as TRANSFORMERS_OPTIMIZERS
from planner.emit.data import path_of
from planner.emit.deepspeed import FILE as DEEPSPEED_FILE
from planner.emit.deepspeed import if_zero
from planner.emit.order import Order, Settings, Tool
from planner.emit.rows import refuse, row
from planner.emit.tokenizer_files import special_tokens_of_turns, template_in
from planner.emit.yaml_text import dump
from planner.usual import WARM_UP_SHARE

NAME, FILE = "axolotl", "axolotl.yaml"
PORT = 29500
METHODS: dict[str, Settings] = {
    "full none": {},
    "lora none": {"adapter": "lora"},
    "dora none": {"adapter": "lora", "peft_use_dora": True},
    "lora int8": {"adapter": "lora", "load_in_8bit": True},
    "dora int8": {"adapter": "lora", "load_in_8bit": True, "peft_use_dora": True},
    "lora nf4": {"adapter": "qlora", "load_in_4bit": True},
    "dora nf4": {"adapter": "qlora", "load_in_4bit": True, "peft_use_dora": True},
    "lora nf4-single": {
        "adapter": "qlora", "load_in_4bit": True, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False},
    },
    "dora nf4-single": {
        "adapter": "qlora", "load_in_4bit": True, "peft_use_dora": True,
        "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False},
    },
}  # fmt: skip
"""Adapter and quantization have one word between them."""
TYPES: dict[str, Settings] = {
    "bfloat16": {"bf16": True}, "float16": {"fp16": True, "bf16": False}, "float32": {"bf16": False, "fp16": False},
}  # fmt: skip
"""It loads the weights in the type that it computes in."""
OPTIMIZERS = TRANSFORMERS_OPTIMIZERS
LOSSES: dict[str, Settings] = {
    "plain": {},
    "liger": {
        "plugins": ["axolotl.integrations.liger.LigerPlugin"],
        "liger_rope": True,
        "liger_rms_norm": True,
        "liger_glu_activation": True,
        "liger_fused_linear_cross_entropy": True,
    },
}
PARALLELISMS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")
OWN_KERNELS = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}
"""It would put its own in place of PEFT's, which were estimated."""
NO_EXPANDABLE_SEGMENTS = "PYTORCH_ALLOC_CONF=expandable_segments:False "
"""The command `axolotl` asks torch for them where the environment says nothing."""
PREPARED_NOTE = (
    "axolotl keeps prepared rows in last_run_prepared, whatever becomes of the data: axolotl preprocess makes them anew"
)
WEIGHED_NOTE = (
    "axolotl weighs every micro-batch alike, trials every token that is learned: losses differ where rows differ in "
    "length"
)
ENDS_NOTE = (
    "axolotl learns the end of a turn only where it is the tokenizer's end of text: else name it in eot_tokens (Gemma: "
    "<end_of_turn>, Phi-3: <|end|>)"
)
NAMED_END = re.compile(r"<[|_]?[a-z_]*(end|eot)[a-z_]*[|_]?>")
EXAMPLES: dict[str, Settings] = {
    "completion": {
        "type": {
            "field_instruction": "prompt", "field_output": "completion", "format": "{instruction}",
            "no_input_format": "{instruction}",
        },
    },
    "messages": {
        "type": "chat_template", "field_messages": "messages", "roles_to_train": ["assistant"], "train_on_eos": "turn",
    },
}  # fmt: skip


def settings(order: Order) -> Settings:
    """
    Raises:
        BadInput: axolotl has no way to say it.
    """
    recipe = order.recipe
    if recipe.weights != recipe.compute:
        raise refuse(NAME, f"{recipe.compute} products over {recipe.weights} weights")
    if recipe.upcasts_kbit and recipe.kbit_upcast:
        raise refuse(NAME, "kbit_upcast: it casts norms, embeddings and head back")
    row(NAME, "the optimizer", OPTIMIZERS, recipe.optimizer)
    kind = order.data.kind if order.data else "completion"
    return {
        "base_model": order.weights,
        "trust_remote_code": False,
        **_method(recipe),
        **row(NAME, "the compute type", TYPES, recipe.compute),
        "tf32": False,
        "attn_implementation": row(NAME, "the attention", ATTENTIONS, recipe.attention),
        **row(NAME, "the loss", LOSSES, recipe.loss),
        "datasets": [{"path": path_of(order.data), "ds_type": "json", **EXAMPLES[kind]}],
        "train_on_inputs": False,
        "val_set_size": 0.0,
        **_turn_ends(order, kind),
        "sequence_len": recipe.sequence_length,
        "excess_length_strategy": "truncate",  # unasked it drops such rows
        "sample_packing": recipe.packing,
        "pad_to_sequence_len": recipe.packing,
        "micro_batch_size": recipe.micro_batch,
        **({"eval_batch_size": recipe.evaluation_batch} if recipe.evaluation_batch else {}),
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        **({"num_epochs": 1.0} if order.steps is None else {"num_epochs": 1.0, "max_steps": order.steps}),
        "optimizer": recipe.optimizer,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler": scheduler(order.schedule),
        **_warm_up(order),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        **({"gradient_checkpointing_kwargs": {"use_reentrant": False}} if recipe.gradient_checkpointing else {}),
        "seed": recipe.seed,
        "output_dir": output_of(NAME),
        "logging_steps": 10,
        "save_strategy": "steps",
        "save_steps": 500,
        "save_total_limit": 2,
        **_parallel(order),
    }


def _turn_ends(order: Order, kind: str) -> Settings:
    """It learns the end of a turn only where that is the end of text, or named here: the first behind each turn."""
    found = special_tokens_of_turns(order.weights) if kind == "messages" else ()
    return {"eot_tokens": list(found)} if found else {}


def _warm_up(order: Order) -> Settings:
    """As many steps as elsewhere: of a share it takes the whole steps, of one epoch at most."""
    if order.schedule.warm_up_steps is None and order.steps is not None:
        return {"warmup_steps": math.ceil(WARM_UP_SHARE * order.steps)}
    return warm_up(order.schedule)


def _method(recipe: Recipe) -> Settings:
    adapter = recipe.adapter
    chosen = row(NAME, "the adapter and quantization", METHODS, f"{adapter.method} {recipe.quantization}")
    if adapter.trains_everything:
        return dict(chosen)
    everywhere = adapter.targets == ALL_LINEAR
    where: Settings = {"lora_target_linear": True} if everywhere else {"lora_target_modules": list(adapter.targets)}
    sizes = {"lora_r": adapter.rank, "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout}
    return chosen | sizes | where | OWN_KERNELS


def _parallel(order: Order) -> Settings:
    place = order.recipe.parallelism
    row(NAME, "the parallelism", dict.fromkeys(PARALLELISMS), place.kind)
    if place.kind == "ddp":
        return {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": order.recipe.buckets.ddp_mib}
    if place.kind == "fsdp2":
        return {"fsdp_version": 2, "fsdp_config": _fsdp2(order)}
    return {"deepspeed": DEEPSPEED_FILE} if order.zero else {}


def _fsdp2(order: Order) -> Settings:
    if "8bit" in order.recipe.optimizer:
        raise refuse(NAME, f"{order.recipe.optimizer} under fsdp2")
    return {
        "offload_params": bool(order.recipe.parallelism.offload),
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "cpu_ram_efficient_loading": False,
        "state_dict_type": "FULL_STATE_DICT",
    }


def files(order: Order) -> Mapping[str, str]:
    return {FILE: dump(settings(order)), **if_zero(order)}


def command(order: Order) -> str:
    nodes = ["--nnodes", str(order.nodes), "--node-rank", "0", "--master-addr", "HOST-OF-RANK-0"]
    launcher = ["--nproc-per-node", str(order.gpus_per_node), *(nodes if order.nodes > 1 else [])]
    allocator = "" if order.recipe.expandable_segments else NO_EXPANDABLE_SEGMENTS
    rest = visible(replace(order, recipe=replace(order.recipe, expandable_segments=False)))
    prepare = shlex.join(["axolotl", "preprocess", FILE])  # it would keep rows of data that have changed since
    return f"{prepare} && {allocator}{rest}" + shlex.join(
        ["axolotl", "train", FILE, "--launcher", "torchrun", "--", *launcher]
    )


def notes(order: Order) -> tuple[str, ...]:
    found = [PREPARED_NOTE]
    if order.recipe.gradient_accumulation > 1 or order.recipe.parallelism.devices > 1:
        found.append(WEIGHED_NOTE)
    text = template_in(order.weights)
    unread = text is None or ("eos_token" in text and NAMED_END.search(text))
    if order.data is not None and order.data.kind == "messages" and unread:
        found.append(ENDS_NOTE)
    return tuple(found)


def _doubt(order: Order) -> str | None:
    """What loaders/model.py of 0.19 casts, or does not, otherwise than was estimated."""
    recipe = order.recipe
    if recipe.upcasts_kbit:
        return "casts norms, embeddings and head of a quantised base back to 16 bits"
    whole = recipe.adapter.trains_everything and recipe.compute != "float32"
    if whole and recipe.attention != "flash_attention_2" and not order.zero and recipe.parallelism.kind != "fsdp2":
        return "keeps embeddings, head and norms in float32 without flash attention"
    return None


TOOL = Tool(
    name=NAME,
    packages=("axolotl",),
    files=files,
    command=command,
    brings={"bitsandbytes": "", "liger-kernel": "", "deepspeed": "deepspeed"},
    program=lambda order: ("--module", "axolotl.cli.train", FILE),
    doubt=_doubt,
    notes=notes,
)
