"""TRL's YAML as a recipe, with SFTConfig's and ModelConfig's own defaults (trl 1.16)."""

from collections.abc import Mapping

from estimators.errors import BadInput
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from estimators.strategies.attention.sdpa_no_cudnn import NAME as NO_CUDNN
from estimators.techniques import OPTIMIZERS
from estimators.trainable import default_targets
from planner.emit.read_usual import (
    ARGUMENTS,
    ARGUMENTS_TOLD,
    MODULES_TO_SAVE,
    evaluation,
    near_attention,
    strategy_says,
)
from planner.emit.reading import Fields, Setting, known
from planner.options import LARGEST_SEED
from runners.environment import CUDNN_LAST

NAME = "trl"
SIGNS = ("model_name_or_path", "lora_r", "use_peft", "max_length", "dtype", "lora_target_modules", "load_in_4bit")
HARMLESS = (
    *ARGUMENTS, "datasets", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split",
    "dataset_streaming", "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "lora_task_type", "num_processes",
    "accelerate_config", "model_revision", "bnb_4bit_quant_storage", "activation_checkpointing_kwargs",
    "assistant_only_loss", "completion_only_loss", "use_rslora", "eos_token", "pad_token",
    "chat_template_path", "truncation_mode", "shuffle_dataset", "eval_packing", "do_eval",
)  # fmt: skip
"""Keys without a say in the memory or the speed of a step, or read elsewhere."""
REFUSED = {
    "lora_modules_to_save": MODULES_TO_SAVE,
    "lora_target_parameters": "adapts parameters that are no layers",
    "model_init_kwargs": "says how the weights are loaded",
    **dict.fromkeys(
        ("beta", "num_generations", "reward_funcs", "reward_model_path", "max_prompt_length", "max_completion_length"),
        "is of another training than supervised fine-tuning",
    ),
}
TOLD = ARGUMENTS_TOLD | {
    "activation_offloading": "priced without, which takes more memory and less time",
    "use_liger_kernel": "priced without its kernels for layers, which takes more memory; the loss is SFTTrainer's own",
}
LOSSES = ("nll", "chunked_nll", "dft")
"""All made of the same chunks of log-probabilities (add_fused_lm_head)."""


def read(fields: Fields, setting: Setting) -> Recipe:
    """
    Raises:
        BadInput: a key is wrong, or names what is not priced here.
    """
    fields.refuse(REFUSED)
    environment = {name: str(value) for name, value in fields.table("env").items()}
    weights = _weights(fields, setting)
    half, fp16 = fields.flag("bf16", True), fields.flag("fp16", False)
    compute = "float16" if fp16 else "bfloat16" if half else "float32"
    if (loss := fields.take("loss_type", "nll")) not in LOSSES:
        raise BadInput(f"{fields.where}: loss_type {loss!a:.20} is not priced here ({', '.join(LOSSES)} are)")
    fields.tell(TOLD)
    packing, attention = fields.flag("packing", False), _attention(fields, environment)
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
        attention=attention,
        loss="plain",
        micro_batch=fields.whole("per_device_train_batch_size", 8, 1, 65_536),
        gradient_accumulation=fields.whole("gradient_accumulation_steps", 1, 1, 1 << 20),
        sequence_length=_length(fields),
        packing=packing,
        padded=_masked(fields, attention, packing=packing),
        parallelism=setting.place,
        evaluation_batch=evaluation(fields, "per_device_eval_batch_size", 8, evaluates=strategy_says(fields)),
        learning_rate=fields.number("learning_rate", 2e-5),
        seed=fields.whole("seed", 42, high=LARGEST_SEED),
        expandable_segments=any("expandable_segments:True" in value for value in environment.values()),
    )


TYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def _weights(fields: Fields, setting: Setting) -> str:
    if fields.left.get("dtype") == "auto":
        fields.assumed.append(f"dtype auto: priced as weights stored in {setting.half}")
    elif fields.left.get("dtype") is None:
        fields.assumed.append("weights in float32, which is trl's default: dtype is not there")
    return fields.one_of("dtype", TYPES | {"auto": setting.half}, "float32")


def _length(fields: Fields) -> int:
    if "max_length" in fields.given and fields.left.get("max_length") is None:
        raise BadInput(f"{fields.where}: max_length null lets sequences be as long as the data: write their length")
    return fields.length("max_length", 1024, NAME)


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


def _masked(fields: Fields, attention: str, *, packing: bool) -> bool:
    """Rows laid end to end, which is its way to pack, are kept apart by a mask where attention is not flash's."""
    strategy = fields.text("packing_strategy", "bfd")
    flat = fields.flag("padding_free", False) or (packing and strategy != "wrapped")
    if not flat or attention == "flash_attention_2":
        return False
    fields.assumed.append(f"with the attention {attention} TRL lays the rows of a micro-batch end to end under a mask: "
                          "priced as a mask for each row, which takes less where there are several")  # fmt: skip
    return True


def _attention(fields: Fields, environment: Mapping[str, str]) -> str:
    name = near_attention(NAME, fields, fields.text("attn_implementation", "sdpa"))
    return NO_CUDNN if name == "sdpa" and environment.get(CUDNN_LAST) == "1" else name
