"""One rank of a measured job, started by measure_recipes.py: builds the recipe, trains, and writes what it took.

torch reads the allocator's settings when it is imported, so whoever starts this process has set them.
"""

import gc
import json
import os
import statistics
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
os.environ["WANDB_DISABLED"] = "true"

import measure_extras
import psutil
import pynvml
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from estimators.document import from_document
from estimators.models import Config, load_config
from estimators.recipe import Recipe
from runners.build import build_model

STEPS, WARM_UP = 6, 2


class RandomTokens(torch.utils.data.Dataset):
    """Rows of random tokens; with `padded`, every second row is half padding."""

    def __init__(self, vocabulary: int, length: int, rows: int, padded: bool) -> None:
        self.vocabulary, self.length, self.rows, self.padded = vocabulary, length, rows, padded

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict:
        tokens = torch.randint(0, self.vocabulary, (self.length,), generator=torch.Generator().manual_seed(index))
        mask, labels = torch.ones_like(tokens), tokens.clone()
        if self.padded and index % 2:
            mask[self.length // 2 :], labels[self.length // 2 :] = 0, -100
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


class Clock(TrainerCallback):
    """Synchronised optimizer steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *arguments: object, **named: object) -> None:
        torch.cuda.synchronize()
        self.started = time.perf_counter()

    def on_step_end(self, *arguments: object, **named: object) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)


def configuration(case: dict) -> Config:
    """The model's config.json: the case's own, else the catalogue's."""
    name = case["recipe"]["model"]
    return Config(name=name, source=name, fields=case["config"]) if "config" in case else load_config(name)


def parallel_arguments(recipe: Recipe) -> dict:
    """What the Trainer needs for the recipe's parallelism."""
    kind, offload = recipe.parallelism.kind, recipe.parallelism.offload
    if kind == "ddp":
        return {"ddp_find_unused_parameters": False}
    if kind == "fsdp2":
        return {
            "fsdp": "full_shard auto_wrap",
            "fsdp_config": {"fsdp_version": 2, "reshard_after_forward": True, "offload_params": bool(offload)},
        }
    if not kind.startswith("zero"):
        return {}
    zero: dict = {"stage": int(kind[-1]), "overlap_comm": True, "contiguous_gradients": True}
    for part, key in (("optimizer", "offload_optimizer"), ("parameters", "offload_param")):
        if part in offload:
            zero[key] = {"device": "cpu", "pin_memory": True}
    auto = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
    return {
        "deepspeed": {
            "zero_optimization": zero,
            "bf16": {"enabled": True},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
            "optimizer": {"type": "AdamW", "params": auto},
        }
    }


def make_trainer(case: dict, recipe: Recipe, clock: Clock, world: int) -> Trainer:
    steps = case.get("steps", STEPS)
    shared = dict(
        output_dir="out",
        per_device_train_batch_size=recipe.micro_batch,
        max_steps=steps,
        bf16=recipe.compute == "bfloat16",
        gradient_accumulation_steps=recipe.gradient_accumulation,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        optim=recipe.optimizer,
        logging_steps=10**6,
        save_strategy="no",
        report_to=[],
        learning_rate=recipe.learning_rate,
        disable_tqdm=True,
        use_liger_kernel=recipe.loss == "liger",
        **parallel_arguments(recipe),
    )
    rows = recipe.micro_batch * recipe.gradient_accumulation * steps * 2 * world
    # The arguments come first: with ZeRO-3 they make transformers build the model sharded, from the CPU's memory.
    sft = recipe.trainer == "trl"
    arguments = sft_arguments(recipe, shared) if sft else TrainingArguments(**shared)
    model = build_model(recipe, configuration(case), "cpu" if recipe.parallelism.kind == "zero3" else "cuda")
    data = RandomTokens(model.config.vocab_size, recipe.sequence_length, rows, recipe.padded and not sft)
    if sft:
        return sft_trainer(model, arguments, data, clock)
    return Trainer(model=model, args=arguments, train_dataset=data, callbacks=[clock])


def sft_arguments(recipe: Recipe, shared: dict) -> TrainingArguments:
    from trl import SFTConfig

    return SFTConfig(**shared, max_length=recipe.sequence_length)


def sft_trainer(model: torch.nn.Module, arguments: TrainingArguments, data: RandomTokens, clock: Clock) -> Trainer:
    """TRL's trainer over the same rows, with a tokenizer that has nothing to do."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    table = Dataset.from_dict({"input_ids": [data[row]["input_ids"].tolist() for row in range(len(data))]})
    return SFTTrainer(model=model, args=arguments, train_dataset=table, processing_class=tokenizer, callbacks=[clock])


def own_process_bytes(handle: object) -> int | None:
    for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid():
            return process.usedGpuMemory
    return None


def measure(case: dict) -> dict:
    recipe, rank = from_document(case["recipe"]), int(os.environ.get("LOCAL_RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(rank)
    before, host_before = pynvml.nvmlDeviceGetMemoryInfo(handle).used, psutil.virtual_memory().used
    torch.cuda.set_device(rank)
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    measure_extras.check_environment(recipe)
    context = pynvml.nvmlDeviceGetMemoryInfo(handle).used - before - torch.cuda.memory_reserved()
    clock = Clock()
    extra = measure_extras.checkpoint_load(case, recipe, configuration(case))
    measure_extras.start_history(case)
    trainer = make_trainer(case, recipe, clock, world)
    gc.collect()
    torch.cuda.empty_cache()
    loaded = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    measure_extras.mark_loaded(case)
    measure_extras.apply_cap(case)
    trainer.train()
    torch.cuda.synchronize()
    measure_extras.save_history(case)
    mine = dict(
        **extra,
        loaded_bytes=loaded,
        peak_allocated_bytes=torch.cuda.max_memory_allocated(),
        peak_reserved_bytes=torch.cuda.max_memory_reserved(),
        process_bytes=own_process_bytes(handle),
        context_bytes=context,
        outside_torch_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).used - before - torch.cuda.memory_reserved(),
        host_used_bytes=psutil.virtual_memory().used - host_before,
        resident_set_bytes=psutil.Process().memory_info().rss,
        allocator_retries=torch.cuda.memory_stats().get("num_alloc_retries"),
    )
    mine |= measure_extras.evaluation_peak(trainer, recipe)
    ranks = [mine] * world
    if world > 1:
        torch.distributed.all_gather_object(ranks, mine)
    libraries = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "deepspeed", "liger-kernel")
    return dict(
        name=case["name"],
        outcome="ok",
        recipe=case["recipe"],
        ranks=ranks,
        step_seconds=statistics.median(clock.seconds[WARM_UP:]),
        steps_seconds=[round(second, 4) for second in clock.seconds],
        gpu=torch.cuda.get_device_name(0),
        driver=pynvml.nvmlSystemGetDriverVersion(),
        versions={name: version(name) for name in libraries if has(name)},
    )


def has(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    case = json.loads(sys.stdin.readline() if sys.argv[1] == "-" else sys.argv[1])
    try:
        result = measure(case)
    except torch.cuda.OutOfMemoryError as error:
        result = {"name": case["name"], "recipe": case["recipe"], "outcome": "out_of_memory", "evidence": str(error)}
    except Exception:
        result = {
            "name": case["name"],
            "recipe": case["recipe"],
            "outcome": "failed",
            "evidence": traceback.format_exc()[-1500:],
        }
    result |= {key: case[key] for key in ("cap_bytes", "predicted") if key in case}
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(sys.argv[2]).write_text(json.dumps(result))
    os._exit(0)
