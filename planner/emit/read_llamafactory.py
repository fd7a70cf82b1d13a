"""LLaMA-Factory's YAML as a recipe, with its own defaults (llamafactory 0.9.5)."""

from estimators.errors import BadInput
from estimators.recipe import Adapter, Recipe
from estimators.techniques import OPTIMIZERS
from planner.emit.read_trl import targets_of
from planner.emit.reading import Fields, Setting, known

NAME = "llamafactory"
SIGNS = ("finetuning_type", "stage", "cutoff_len", "lora_rank", "lora_target", "quantization_bit", "template")
HARMLESS = (
    "trust_remote_code", "do_train", "dataset", "dataset_dir", "template", "output_dir", "logging_steps", "save_steps",
    "save_total_limit", "save_strategy", "report_to", "num_train_epochs", "max_steps", "lr_scheduler_type",
    "warmup_ratio", "warmup_steps", "weight_decay", "max_grad_norm", "overwrite_cache", "overwrite_output_dir",
    "preprocessing_num_workers", "dataloader_num_workers", "plot_loss", "ddp_timeout", "max_samples", "val_size",
    "resume_from_checkpoint", "save_only_model", "deepspeed", "quantization_method", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "gradient_checkpointing", "gradient_checkpointing_kwargs", "run_name",
    "include_effective_tokens_per_second", "stage", "eval_strategy", "eval_steps", "per_device_eval_batch_size",
    "use_rslora", "eval_dataset", "mask_history", "train_on_prompt", "disable_tqdm", "seed_data",
)  # fmt: skip
ATTENTIONS = {"auto": "sdpa", "sdpa": "sdpa", "disabled": "eager", "fa2": "flash_attention_2"}


def read(fields: Fields, setting: Setting) -> Recipe:
    """
    Raises:
        BadInput: a key is wrong, or names what is not priced here.
    """
    if fields.left.get("stage", "sft") != "sft":
        raise BadInput(f"{fields.where}: only the stage sft is priced here")
    adapter = _adapter(fields, setting)
    pure = fields.flag("pure_bf16", False)
    half = fields.flag("bf16", False) or pure
    compute = "float16" if fields.flag("fp16", False) else "bfloat16" if half else "float32"
    checkpointing = not fields.flag("disable_gradient_checkpointing", False)
    if fields.flag("use_reentrant_gc", True) and checkpointing:
        fields.assumed.append("re-entrant checkpointing is priced as the other kind (use_reentrant_gc: false)")
    whole = adapter.trains_everything and not pure and not setting.place.kind.startswith("zero")
    return Recipe(
        model=setting.model.name,
        adapter=adapter,
        quantization=_quantization(fields),
        weights="float32" if whole else compute,  # it casts what is trained to float32
        compute=compute,
        optimizer=known(NAME, "the optimizer", OPTIMIZERS, fields.text("optim", "adamw_torch_fused")),
        gradient_checkpointing=checkpointing,
        attention=fields.one_of("flash_attn", ATTENTIONS, "auto"),
        loss="liger" if fields.flag("enable_liger_kernel", False) else "plain",
        micro_batch=fields.whole("per_device_train_batch_size", 8, 1, 65_536),
        gradient_accumulation=fields.whole("gradient_accumulation_steps", 1, 1, 1 << 20),
        sequence_length=fields.length("cutoff_len", 2048, NAME),
        packing=fields.flag("packing", False) or fields.flag("neat_packing", False),
        parallelism=setting.place,
        kbit_upcast=False,
        learning_rate=fields.number("learning_rate", 5e-5),
        seed=fields.whole("seed", 42),
    )


def _adapter(fields: Fields, setting: Setting) -> Adapter:
    kind = fields.one_of("finetuning_type", {"lora": "lora", "full": "full"}, "lora")
    rank = fields.whole("lora_rank", 8, 1, 65_536)
    alpha, dropout = fields.whole("lora_alpha", 2 * rank, 1, 1 << 20), fields.number("lora_dropout", 0.0)
    fields.left.setdefault("lora_target", "all")
    targets = targets_of(fields, "lora_target", "all", setting)
    dora = fields.flag("use_dora", False)
    if kind == "full":
        return Adapter(method="full")
    return Adapter(method="dora" if dora else "lora", rank=rank, alpha=alpha, dropout=dropout, targets=targets)


def _quantization(fields: Fields) -> str:
    nested, kind = fields.flag("double_quantization", True), fields.text("quantization_type", "nf4")
    bits = fields.whole("quantization_bit", 0)
    if kind != "nf4" or bits not in (0, 4, 8):
        raise BadInput(f"{fields.where}: quantization_bit {bits} of the type {kind[:20]!a} is not priced here")
    return {0: "none", 4: "nf4" if nested else "nf4-single", 8: "int8"}[bits]
