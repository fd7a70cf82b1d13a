"""transformers' TrainingArguments of a recipe, as runners/trainers.py makes them, for the tools that read them.

`gradient_checkpointing` is the name that every transformers 5 reads; 5.23 would rather hear `activation_checkpointing`.
"""

from estimators.learning import transformers_schedule
from estimators.recipe import Recipe
from planner.emit.deepspeed import FILE as DEEPSPEED_FILE
from planner.emit.order import Order, Schedule, Settings
from planner.emit.rows import refuse, row
from planner.usual import WARM_UP_SHARE

TOOL = "transformers"
PRECISIONS = {
    "bfloat16": {"bf16": True, "fp16": False},
    "float16": {"bf16": False, "fp16": True},
    "float32": {"bf16": False, "fp16": False},
}
OPTIMIZERS = dict.fromkeys(
    ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
     "adafactor", "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit", "sgd"), True,
)  # fmt: skip
"""Names that are its own (OptimizerNames)."""
ATTENTIONS = {"sdpa": "sdpa", "sdpa_no_cudnn": "sdpa", "eager": "eager", "flash_attention_2": "flash_attention_2"}
"""As from_pretrained takes them in attn_implementation; what stands before the command says the rest."""
LOSSES = {"plain": False, "liger": True}
DATA_TYPES = {name: name for name in ("float32", "bfloat16", "float16")}
PARALLELISMS = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp2")


def output_of(tool: str) -> str:
    """Where a job puts what it learned: of each tool elsewhere, for several may run in one folder."""
    return f"trained-{tool}"


def training_arguments(order: Order, tool: str = TOOL) -> Settings:
    """Of the whole job, parallelism too.

    Raises:
        BadInput: there is no way to say it.
    """
    recipe = order.recipe
    row(tool, "the optimizer", OPTIMIZERS, recipe.optimizer)
    return {
        "output_dir": output_of(tool),
        "per_device_train_batch_size": recipe.micro_batch,
        "per_device_eval_batch_size": recipe.evaluation_batch or 1,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        **length(order),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": scheduler(order.schedule),
        "warmup_steps": warm_up_share_or_steps(order.schedule),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        **row(tool, "the compute type", PRECISIONS, recipe.compute),
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "optim": recipe.optimizer,
        "seed": recipe.seed,
        "logging_steps": 10,
        "save_strategy": "steps",
        "save_steps": 500,
        "save_total_limit": 2,
        "report_to": "none",
        **parallel(order, tool),
    }


def scheduler(schedule: Schedule) -> str:
    return transformers_schedule(schedule.name, warms_up=schedule.warm_up_steps != 0)


def warm_up_share_or_steps(schedule: Schedule) -> float:
    """TrainingArguments have one name for both: what is below 1 is a share of all steps."""
    return WARM_UP_SHARE if schedule.warm_up_steps is None else schedule.warm_up_steps


def warm_up(schedule: Schedule) -> Settings:
    """For tools that have a name for each."""
    if schedule.warm_up_steps is None:
        return {"warmup_ratio": WARM_UP_SHARE}
    return {"warmup_steps": schedule.warm_up_steps}


def length(order: Order) -> Settings:
    return {"num_train_epochs": 1.0} if order.steps is None else {"max_steps": order.steps}


def parallel(order: Order, tool: str) -> Settings:
    """What TrainingArguments say of parallelism, by torchrun and by accelerate alike."""
    place = order.recipe.parallelism
    row(tool, "the parallelism", dict.fromkeys(PARALLELISMS), place.kind)
    if order.zero:
        return {"deepspeed": DEEPSPEED_FILE}
    if place.offload and place.kind != "fsdp2":
        raise refuse(tool, f"offload under {place.kind}")
    if place.kind == "ddp":
        return {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": order.recipe.buckets.ddp_mib}
    if place.kind == "fsdp2":
        options = "full_shard auto_wrap offload" if place.offload else "full_shard auto_wrap"
        return {"fsdp": options, "fsdp_config": {"fsdp_version": 2, "reshard_after_forward": True}}
    return {}


def quantization(recipe: Recipe, tool: str) -> Settings:
    """BitsAndBytesConfig, but for the compute type.

    Raises:
        BadInput: no row.
    """
    return dict(row(tool, "the quantization", QUANTIZATIONS, recipe.quantization))


QUANTIZATIONS: dict[str, Settings] = {
    "none": {},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4-single": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
    "int8": {"load_in_8bit": True},
}
