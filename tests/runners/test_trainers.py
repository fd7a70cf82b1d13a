"""Each tool's settings say what the recipe says, in words that the tool accepts."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.training_args import OptimizerNames

from estimators.errors import BadInput
from estimators.learning import Training
from estimators.recipe import Buckets, Parallelism
from estimators.techniques import OPTIMIZERS, PARALLELISMS
from runners import trainers
from runners.job import Job
from runners.weights import check_checkpoint, quantization
from tests.runners import tiny_job


def work(**changes: Any) -> Job:
    return Job(recipe=tiny_job.recipe(**changes), config=tiny_job.CONFIG, steps=7, seed=3)


def test_transformers_accepts_and_keeps_every_setting(tmp_path: Path) -> None:
    arguments = trainers.training_arguments(
        work(gradient_accumulation=4, compute="bfloat16", learning_rate=3e-4), tmp_path, "cpu"
    )
    assert isinstance(arguments, transformers.TrainingArguments)
    found = (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps, arguments.max_steps)
    assert found == (2, 4, 7)
    assert (arguments.bf16, arguments.fp16, arguments.learning_rate, arguments.seed) == (True, False, 3e-4, 3)
    assert arguments.gradient_checkpointing and arguments.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert arguments.ddp_timeout == trainers.COLLECTIVE_SECONDS < 600
    assert arguments.report_to == [] and str(arguments.save_strategy.value) == "no"


@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_a_job_that_says_nothing_of_learning_trains_as_the_library_does(trainer: str, tmp_path: Path) -> None:
    """So that plain measured runs are the ones that anybody gets who sets nothing."""
    arguments = trainers.training_arguments(work(trainer=trainer), tmp_path, "cpu")
    plain = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    names = ("lr_scheduler_type", "warmup_steps", "max_grad_norm", "weight_decay", "train_sampling_strategy")
    assert {name: getattr(arguments, name) for name in names} == {name: getattr(plain, name) for name in names}


@pytest.mark.parametrize(
    ("schedule", "warm_up", "expected"),
    [
        ("linear", 3, [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25]),
        ("cosine", 3, [1 / 3, 2 / 3, 1, 0.854, 0.5, 0.146]),
        ("constant", 3, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_learning_rate_goes_as_the_schedule_says(
    schedule: str, warm_up: int, expected: list[float], tmp_path: Path
) -> None:
    job = replace(work(learning_rate=1.0), training=Training(schedule=schedule, warm_up_steps=warm_up, clip_norm=0.5))
    arguments = trainers.training_arguments(job, tmp_path, "cpu")
    assert arguments.max_grad_norm == 0.5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = transformers.get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(7), num_training_steps=7
    )
    found = []
    for _ in range(6):
        optimizer.step()
        rates.step()
        found.append(rates.get_last_lr()[0])
    assert found == pytest.approx(expected, abs=1e-3)


def test_trl_accepts_the_same(tmp_path: Path) -> None:
    arguments = trainers.training_arguments(work(trainer="trl"), tmp_path, "cpu")
    assert type(arguments).__name__ == "SFTConfig"
    assert (arguments.max_length, arguments.packing) == (32, False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_transformers_has_every_optimizer_under_our_name(name: str, tmp_path: Path) -> None:
    assert OptimizerNames(trainers.transformers_settings(work(optimizer=name), tmp_path)["optim"])


@pytest.mark.parametrize("kind", PARALLELISMS)
def test_every_parallelism_has_settings(kind: str, tmp_path: Path) -> None:
    settings = trainers.parallel_settings(tiny_job.recipe(parallelism=Parallelism(kind=kind, devices=2)), tmp_path)
    assert json.dumps(settings)
    assert bool(settings) == (kind != "none")


def test_zero_carries_stage_buckets_and_offload(tmp_path: Path) -> None:
    parallel = Parallelism(kind="zero3", devices=2, offload=("optimizer", "parameters"))
    recipe = tiny_job.recipe(parallelism=parallel, buckets=Buckets(reduce_elements=123), compute="bfloat16")
    document = trainers.parallel_settings(recipe, tmp_path)["deepspeed"]
    zero = document["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"], document["bf16"]) == (3, 123, {"enabled": True})
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert zero["stage3_prefetch_bucket_size"] == Buckets().prefetch_elements
    assert document["optimizer"]["type"] == "AdamW"


def test_offload_to_disk_stays_in_the_jobs_folder(tmp_path: Path) -> None:
    parallel = Parallelism(kind="zero3", devices=2, offload=("optimizer",), offload_to="nvme")
    zero = trainers.zero_settings(tiny_job.recipe(parallelism=parallel), tmp_path)
    assert zero["offload_optimizer"]["nvme_path"] == str(tmp_path / "offload")
    assert "offload_param" not in zero


def test_an_optimizer_that_deepspeed_has_not_is_refused_by_name(tmp_path: Path) -> None:
    recipe = tiny_job.recipe(parallelism=Parallelism(kind="zero2", devices=2), optimizer="adafactor")
    with pytest.raises(BadInput, match="adafactor"):
        trainers.parallel_settings(recipe, tmp_path)


def test_fsdps_offload_reaches_accelerate(tmp_path: Path) -> None:
    """A word of fsdp_config that a version does not know is dropped in silence."""
    for offload in ((), ("optimizer", "parameters")):
        parallel = Parallelism(kind="fsdp2", devices=2, offload=offload)
        found: Any = trainers.training_arguments(work(parallelism=parallel), tmp_path, "cpu")
        assert found.fsdp_plugin_args.get("cpu_offload", False) == bool(offload)
        assert found.fsdp_plugin_args["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("kind", "deepspeed", "fsdp", "right"),
    [
        ("none", False, False, True), ("ddp", False, False, True), ("zero2", True, False, True),
        ("fsdp2", False, True, True), ("zero3", False, False, False), ("fsdp2", False, False, False),
        ("none", True, False, False),
    ],
)  # fmt: skip
def test_what_runs_must_be_what_was_asked_for(kind: str, deepspeed: bool, fsdp: bool, right: bool) -> None:
    trainer = SimpleNamespace(is_deepspeed_enabled=deepspeed, is_fsdp_enabled=fsdp)
    recipe = tiny_job.recipe(parallelism=Parallelism(kind=kind, devices=2))
    if right:
        trainers.check_parallelism(recipe, trainer)
        return
    with pytest.raises(BadInput, match=kind):
        trainers.check_parallelism(recipe, trainer)


@pytest.mark.parametrize(
    ("name", "four", "eight", "double"),
    [("nf4", True, False, True), ("nf4-single", True, False, False), ("int8", False, True, False)],
)
def test_a_checkpoint_is_quantised_as_the_recipe_says(name: str, four: bool, eight: bool, double: bool) -> None:
    found = quantization(tiny_job.recipe(quantization=name))
    assert (found.load_in_4bit, found.load_in_8bit, found.bnb_4bit_use_double_quant) == (four, eight, double)
    assert quantization(tiny_job.recipe()) is None


def test_a_checkpoint_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no \*.safetensors"):
        check_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_checkpoint(tmp_path)
