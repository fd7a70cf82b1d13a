"""axolotl's YAML as a recipe, with its own defaults (axolotl 0.19)."""

from estimators.errors import BadInput
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from estimators.techniques import OPTIMIZERS
from planner.emit.arguments import ATTENTIONS
from planner.emit.read_trl import targets_of
from planner.emit.reading import Fields, Setting, known

NAME = "axolotl"
SIGNS = (
    "base_model",
    "sequence_len",
    "micro_batch_size",
    "sample_packing",
    "adapter",
    "num_epochs",
    "lora_target_linear",
)
HARMLESS = (
    "trust_remote_code", "datasets", "dataset_prepared_path", "val_set_size", "output_dir", "num_epochs", "max_steps",
    "lr_scheduler", "warmup_ratio", "warmup_steps", "weight_decay", "max_grad_norm", "logging_steps", "save_strategy",
    "save_steps", "save_total_limit", "saves_per_epoch", "evals_per_epoch", "special_tokens", "pad_to_sequence_len",
    "wandb_project", "wandb_entity", "wandb_name", "wandb_watch", "wandb_log_model", "tf32", "chat_template",
    "train_on_inputs", "group_by_length", "resume_from_checkpoint", "local_rank", "deepspeed", "fsdp_version",
    "fsdp_config", "strict", "tokenizer_type", "model_type", "plugins", "liger_rope", "liger_rms_norm",
    "liger_glu_activation", "liger_layer_norm", "gradient_checkpointing_kwargs", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "seed_data", "hub_model_id", "debug", "lora_model_dir", "loss_watchdog_threshold",
    "loss_watchdog_patience", "early_stopping_patience", "auto_resume_from_checkpoints", "peft_use_rslora",
    "eval_strategy", "eval_steps", "save_safetensors", "include_tokens_per_second", "tokens",
)  # fmt: skip
ATTENTION_FLAGS = {
    "flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager",
}  # fmt: skip
"""Its older words for attn_implementation."""


def read(fields: Fields, setting: Setting) -> Recipe:
    """
    Raises:
        BadInput: a key is wrong, or names what is not priced here.
    """
    half = fields.take("bf16", "auto")
    half = setting.half == "bfloat16" if half == "auto" else half in (True, "true", "full")
    compute = "bfloat16" if half else "float16" if fields.flag("fp16", not half) else "float32"
    method = fields.text("adapter", "full")
    quantized = _quantization(fields)
    if method not in ("full", "lora", "qlora") or (method == "qlora") != quantized.startswith("nf4"):
        raise BadInput(f"{fields.where}: adapter {method[:20]!a} with the base {quantized} is not priced here")
    return Recipe(
        model=setting.model.name,
        adapter=_adapter(fields, setting, method),
        quantization=quantized,
        weights=compute,
        compute=compute,
        optimizer=known(NAME, "the optimizer", OPTIMIZERS, fields.text("optimizer", "adamw_torch_fused")),
        gradient_checkpointing=fields.flag("gradient_checkpointing", False),
        attention=_attention(fields),
        loss="liger" if fields.flag("liger_fused_linear_cross_entropy", False) else "plain",
        micro_batch=fields.whole("micro_batch_size", 1, 1, 65_536),
        gradient_accumulation=fields.whole("gradient_accumulation_steps", 1, 1, 1 << 20),
        sequence_length=fields.length("sequence_len", 512, NAME),
        packing=fields.flag("sample_packing", False),
        parallelism=setting.place,
        learning_rate=fields.number("learning_rate", 2e-4),
        seed=fields.whole("seed", 42),
    )


def _attention(fields: Fields) -> str:
    flags = [name for word, name in ATTENTION_FLAGS.items() if fields.flag(word, False)]
    name = fields.text("attn_implementation", flags[0] if flags else "sdpa")
    return known(NAME, "the attention", ATTENTIONS.values(), name)


def _quantization(fields: Fields) -> str:
    nested = fields.table("bnb_config_kwargs").get("bnb_4bit_use_double_quant", True)
    if fields.flag("load_in_4bit", False):
        return "nf4" if nested else "nf4-single"
    return "int8" if fields.flag("load_in_8bit", False) else "none"


def _adapter(fields: Fields, setting: Setting, method: str) -> Adapter:
    rank, alpha = fields.whole("lora_r", 0, 0, 65_536), fields.whole("lora_alpha", 0, 0, 1 << 20)
    dropout, everywhere = fields.number("lora_dropout", 0.0), fields.flag("lora_target_linear", False)
    targets = targets_of(fields, "lora_target_modules", ALL_LINEAR, setting)
    dora = fields.flag("peft_use_dora", False)
    kernels = [name for name in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel") if fields.take(name)]
    if method == "full":
        return Adapter(method="full")
    if not rank or not alpha:
        raise fields.missing([name for name, value in (("lora_r", rank), ("lora_alpha", alpha)) if not value])
    fields.assumed += [f"{', '.join(kernels)} priced as PEFT's own layers"] if kernels else []
    chosen = ALL_LINEAR if everywhere else targets
    return Adapter(method="dora" if dora else "lora", rank=rank, alpha=alpha, dropout=dropout, targets=chosen)
