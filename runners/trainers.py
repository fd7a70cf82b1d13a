"""How each tool spells a recipe: transformers' TrainingArguments, TRL's SFTConfig, DeepSpeed's and FSDP's settings."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from estimators.errors import BadInput
from estimators.learning import transformers_schedule
from estimators.recipe import Recipe
from runners.data import Padding
from runners.job import Job
from runners.losses import DeviceName
from runners.tools import tool
from runners.zero import OPTIMIZERS, zero_optimization

COLLECTIVE_SECONDS = 180
"""After which NCCL and gloo give up on a lost peer; their own default is 10 to 30 minutes."""
NEVER = 10**6
PAD_TOKEN = 0


def make_trainer(
    job: Job, arguments: Any, model: Any, rows: Any, tokenizer: Any, callbacks: Sequence[transformers.TrainerCallback]
) -> Any:
    """The recipe's trainer over these rows."""
    return TRAINERS[job.recipe.trainer](arguments, model, rows, tokenizer, list(callbacks))


def make_padding(tokenizer: Any) -> Padding:
    return Padding(PAD_TOKEN if tokenizer is None else tokenizer.pad_token_id)


def training_arguments(job: Job, folder: Path, device: DeviceName) -> Any:
    """The recipe's trainer's own settings. Made before the model: ZeRO-3's shard the model as it is built."""
    recipe = job.recipe
    settings = transformers_settings(job, folder) | parallel_settings(recipe, folder)
    if device == "cpu":
        settings |= {"use_cpu": True, "optim": _without_fused(settings["optim"])}
    if recipe.trainer == "trl":
        return tool("trl").SFTConfig(**settings, max_length=recipe.sequence_length)
    return transformers.TrainingArguments(**settings)


def check_parallelism(recipe: Recipe, trainer: Any) -> None:
    """What runs must be what was asked for: settings that a version no longer reads are ignored in silence.

    Raises:
        BadInput: the trainer's state says otherwise.
    """
    kind = recipe.parallelism.kind
    found = {"zero": bool(trainer.is_deepspeed_enabled), "fsdp": bool(trainer.is_fsdp_enabled)}
    for prefix, engaged in found.items():
        if kind.startswith(prefix) != engaged:
            raise BadInput(f"{kind} was asked for, and the trainer has {prefix} {'on' if engaged else 'off'}")


def transformers_settings(job: Job, folder: Path) -> dict[str, Any]:
    """TrainingArguments of everything but parallelism."""
    recipe = job.recipe
    return {
        "output_dir": str(folder / "trained"),
        "per_device_train_batch_size": recipe.micro_batch,
        "per_device_eval_batch_size": recipe.evaluation_batch or 1,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "max_steps": job.steps,
        "learning_rate": recipe.learning_rate,
        "bf16": recipe.compute == "bfloat16",
        "fp16": recipe.compute == "float16",
        **checkpointing_settings(recipe),
        **learning_settings(job),
        "optim": recipe.optimizer,  # our names are its own (OptimizerNames)
        "use_liger_kernel": recipe.loss == "liger",
        "seed": job.seed,
        "ddp_timeout": COLLECTIVE_SECONDS,
        "logging_steps": NEVER,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def learning_settings(job: Job) -> dict[str, Any]:
    """How the job learns. A file's rows come in the order in which they were drawn; random ones need no other."""
    training = job.training
    return {
        "lr_scheduler_type": transformers_schedule(training.schedule, warms_up=training.warm_up_steps > 0),
        "warmup_steps": training.warm_up_steps,
        "max_grad_norm": training.clip_norm,
        "weight_decay": training.weight_decay,
        **({} if job.data is None else {"train_sampling_strategy": "sequential"}),
    }


def checkpointing_settings(recipe: Recipe) -> dict[str, Any]:
    """Under the name that this version of transformers asks for: 5.23 calls gradient checkpointing by what it saves."""
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
    return {name: recipe.gradient_checkpointing, f"{name}_kwargs": {"use_reentrant": False}}


def parallel_settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """TrainingArguments of the recipe's parallelism.

    Raises:
        BadInput: no tool here runs it.
    """
    kind = recipe.parallelism.kind
    if kind not in PARALLELISMS:
        raise BadInput(f"no trainer here has a way to run {kind!r} (they have {', '.join(PARALLELISMS)})")
    return PARALLELISMS[kind](recipe, folder)


def ddp_settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    return {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": recipe.buckets.ddp_mib}


def fsdp2_settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Offload stands among the words of `fsdp`, which every version reads: in fsdp_config its name has changed."""
    offload = " offload" if recipe.parallelism.offload else ""
    settings = {"fsdp_version": 2, "reshard_after_forward": True}
    return {"fsdp": f"full_shard auto_wrap{offload}", "fsdp_config": settings}


def deepspeed_settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The document that DeepSpeed reads; "auto" is filled in by transformers from its own arguments."""
    if recipe.optimizer not in OPTIMIZERS:
        raise BadInput(f"DeepSpeed has no {recipe.optimizer!r} here (it has {', '.join(OPTIMIZERS)})")
    automatic = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    document = {
        "zero_optimization": zero_settings(recipe, folder),
        "bf16": {"enabled": recipe.compute == "bfloat16"},
        "fp16": {"enabled": recipe.compute == "float16"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "optimizer": {"type": OPTIMIZERS[recipe.optimizer], "params": automatic},
    }
    return {"deepspeed": document}


def zero_settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The section "zero_optimization"; what is offloaded to NVMe lies in the job's folder."""
    return zero_optimization(recipe, int(recipe.parallelism.kind.removeprefix("zero")), str(folder / "offload"))


Settings = Callable[[Recipe, Path], dict[str, Any]]
PARALLELISMS: dict[str, Settings] = {
    "none": lambda recipe, folder: {},
    "ddp": ddp_settings,
    "fsdp2": fsdp2_settings,
    **dict.fromkeys(("zero1", "zero2", "zero3"), deepspeed_settings),
}


def _without_fused(name: str) -> str:
    """bitsandbytes' optimizers and the fused one want a GPU; a CPU only shows that the path is whole."""
    return "adamw_torch" if name == "adamw_torch_fused" or "bnb" in name or "paged" in name else name


def _stock(arguments: Any, model: Any, rows: Any, tokenizer: Any, callbacks: list[Any]) -> transformers.Trainer:
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=make_padding(tokenizer), callbacks=callbacks
    )


def _sft(arguments: Any, model: Any, rows: Any, tokenizer: Any, callbacks: list[Any]) -> Any:
    """TRL's, over rows that are tokens already: it pads and shifts them, and makes its own loss."""
    lists = [_unpadded(rows[index]) for index in range(len(rows))]
    table = tool("datasets").Dataset.from_list(lists)
    return tool("trl").SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=table,
        processing_class=tokenizer or _idle_tokenizer(),
        callbacks=callbacks,
    )


def _unpadded(row: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    real = row["attention_mask"].bool()
    return {name: row[name][real].tolist() for name in ("input_ids", "labels")}


def _idle_tokenizer() -> Any:
    """One that knows how to pad and is asked nothing else."""
    tokenizers = tool("tokenizers")
    words = tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="a")
    tokenizer: Any = transformers.PreTrainedTokenizerFast
    return tokenizer(tokenizer_object=tokenizers.Tokenizer(words), pad_token="<pad>", eos_token="<eos>")


TRAINERS: dict[str, Callable[..., Any]] = {"transformers": _stock, "trl": _sft}
