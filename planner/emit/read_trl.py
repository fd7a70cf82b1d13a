"""TRL's YAML as a recipe, with SFTConfig's and ModelConfig's own defaults (trl 1.16)."""

from collections.abc import Mapping
from typing import Any

from estimators.errors import BadInput
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from estimators.strategies.attention.sdpa_no_cudnn import NAME as NO_CUDNN
from estimators.techniques import OPTIMIZERS
from estimators.trainable import default_targets
from planner.emit.arguments import ATTENTIONS
from planner.emit.reading import Fields, Setting, known
from runners.environment import CUDNN_LAST

NAME = "trl"
SIGNS = ("model_name_or_path", "lora_r", "use_peft", "max_length", "dtype", "lora_target_modules", "load_in_4bit")
HARMLESS = (
    "trust_remote_code", "datasets", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split",
    "output_dir", "num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "logging_steps", "save_strategy", "save_steps", "save_total_limit", "report_to", "run_name", "lora_task_type",
    "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "deepspeed", "fsdp", "fsdp_config", "num_processes",
    "accelerate_config", "push_to_hub", "hub_model_id", "logging_first_step", "eval_strategy", "eval_steps",
    "dataloader_num_workers", "model_revision", "adam_beta1", "adam_beta2", "adam_epsilon", "bnb_4bit_quant_storage",
    "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "assistant_only_loss", "completion_only_loss",
    "packing_strategy", "save_only_model", "dataset_num_proc", "use_rslora", "disable_tqdm", "ddp_timeout",
)  # fmt: skip
"""Keys without a say in the memory or the speed of a step, or read elsewhere."""


def read(fields: Fields, setting: Setting) -> Recipe:
    """
    Raises:
        BadInput: a key is wrong, or names what is not priced here.
    """
    environment = {name: str(value) for name, value in fields.table("env").items()}
    weights = fields.one_of("dtype", TYPES | {"auto": setting.half}, "float32")
    half, fp16 = fields.flag("bf16", True), fields.flag("fp16", False)
    compute = "float16" if fp16 else "bfloat16" if half else "float32"
    if fields.take("loss_type") not in (None, "nll"):
        raise BadInput(f"{fields.where}: loss_type other than nll is not priced here")
    checkpointing = fields.flag("activation_checkpointing", fields.flag("gradient_checkpointing", True))
    return Recipe(
        model=setting.model.name,
        adapter=_adapter(fields, setting),
        trainer="trl",
        quantization=quantization(fields, fields.flag("use_bnb_nested_quant", False)),
        weights=weights,
        compute=compute,
        optimizer=known(NAME, "the optimizer", OPTIMIZERS, fields.text("optim", "adamw_torch_fused")),
        gradient_checkpointing=checkpointing,
        attention=_attention(fields, environment),
        loss="plain",
        micro_batch=fields.whole("per_device_train_batch_size", 8, 1, 65_536),
        gradient_accumulation=fields.whole("gradient_accumulation_steps", 1, 1, 1 << 20),
        sequence_length=fields.length("max_length", 1024, NAME),
        packing=fields.flag("packing", False),
        parallelism=setting.place,
        evaluation_batch=_evaluation(fields),
        learning_rate=fields.number("learning_rate", 2e-5),
        seed=fields.whole("seed", 42),
        expandable_segments=any("expandable_segments:True" in value for value in environment.values()),
    )


TYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def _adapter(fields: Fields, setting: Setting) -> Adapter:
    rank, alpha = fields.whole("lora_r", 16, 1, 65_536), fields.whole("lora_alpha", 32, 1, 1 << 20)
    dropout, dora = fields.number("lora_dropout", 0.05), fields.flag("use_dora", False)
    targets = targets_of(fields, "lora_target_modules", ALL_LINEAR, setting)
    if not fields.flag("use_peft", False):
        return Adapter(method="full")
    return Adapter(method="dora" if dora else "lora", rank=rank, alpha=alpha, dropout=dropout, targets=targets)


def targets_of(fields: Fields, name: str, everywhere: str, setting: Setting) -> tuple[str, ...] | str:
    """Layer names; the tool's own word for all of them; PEFT's choice for the model where nothing is said."""
    if fields.left.get(name) in (everywhere, [everywhere]):
        del fields.left[name]
        return ALL_LINEAR
    return fields.names(name) or default_targets(setting.model)


def quantization(fields: Fields, nested: bool) -> str:
    """bitsandbytes' words in every tool that hands them on."""
    four, eight = fields.flag("load_in_4bit", False), fields.flag("load_in_8bit", False)
    if (kind := fields.text("bnb_4bit_quant_type", "nf4")) != "nf4":
        raise BadInput(f"{fields.where}: bnb_4bit_quant_type {kind[:20]!a} is not priced here (nf4 is)")
    if four:
        return "nf4" if nested else "nf4-single"
    return "int8" if eight else "none"


def _evaluation(fields: Fields) -> int | None:
    batch = fields.whole("per_device_eval_batch_size", 8, 1, 65_536)
    evaluates: Any = fields.left.get("eval_strategy", "no")
    return batch if evaluates not in ("no", False) else None


def _attention(fields: Fields, environment: Mapping[str, str]) -> str:
    name = known(NAME, "the attention", ATTENTIONS.values(), fields.text("attn_implementation", "sdpa"))
    return NO_CUDNN if name == "sdpa" and environment.get(CUDNN_LAST) == "1" else name
