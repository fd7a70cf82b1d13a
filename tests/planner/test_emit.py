"""Files for transformers, TRL, accelerate and DeepSpeed: their own parsers read them, and find what the recipe says."""

import ast
import dataclasses
import importlib.util
import json
import os
import shlex
import subprocess
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from estimators.errors import BadInput, UnknownName
from estimators.recipe import ALL_LINEAR, Parallelism, Recipe
from estimators.techniques import ADAPTERS, ATTENTIONS, LOSSES, OPTIMIZERS, PARALLELISMS, QUANTIZATIONS
from planner.emit import accelerate, arguments, deepspeed, slurm, transformers, trl
from planner.emit.checked import CHECKED
from planner.emit.order import Data, Order, Schedule
from planner.emit.packages import install
from planner.emit.tools import TOOLS, job_of, write_for
from tests.planner.emit_cases import MODEL, SCHEDULES, adapter_of, name_of, order, recipes

ALL = list(recipes())
NO_DEEPSPEED = importlib.util.find_spec("deepspeed") is None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that the files lie in and are read from; what the parsers set in the environment goes again."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tools' own, about names that their next version drops
        yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def put(folder: Path, tool: str, one: Order) -> dict[str, str]:
    files = dict(write_for(one, [tool]).files)
    for name, text in files.items():
        (folder / name).write_text(text)
    return files


def parsed_by_trl(folder: Path) -> tuple[Any, ...]:
    from trl.scripts.sft import make_parser

    words = ["--config", str(folder / trl.FILE), "--use_cpu", "true"]
    parsed: tuple[Any, ...] = make_parser().parse_args_and_config(words)
    return parsed


def constants_of(text: str) -> dict[str, Any]:
    """The settings at the head of a script, read without running it."""
    found = {}
    for node in takewhile(lambda node: not isinstance(node, ast.FunctionDef), ast.parse(text).body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def can(tool: str, recipe: Recipe) -> bool:
    try:
        write_for(order(recipe), [tool])
    except BadInput:
        return False
    return True


FOR_TRL = [one for one in ALL if can("trl", one)]


@pytest.mark.parametrize("recipe", FOR_TRL, ids=name_of)
def test_trl_reads_what_the_recipe_says(recipe: Recipe, here: Path) -> None:
    if NO_DEEPSPEED and recipe.parallelism.kind.startswith("zero"):
        pytest.skip("DeepSpeed is not installed")
    put(here, "trl", order(recipe))
    _, settings, model, data = parsed_by_trl(here)
    assert (settings.max_length, settings.per_device_train_batch_size) == (recipe.sequence_length, recipe.micro_batch)
    assert (settings.gradient_accumulation_steps, settings.seed) == (recipe.gradient_accumulation, recipe.seed)
    assert settings.learning_rate == recipe.learning_rate and type(settings.learning_rate) is float
    assert settings.get_warmup_steps(200) == 20
    assert (settings.bf16, settings.fp16) == (recipe.compute == "bfloat16", recipe.compute == "float16")
    assert str(settings.optim.value) == recipe.optimizer
    assert settings.gradient_checkpointing == recipe.gradient_checkpointing
    assert settings.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert bool(settings.deepspeed) == recipe.parallelism.kind.startswith("zero")
    assert bool(settings.fsdp) == (recipe.parallelism.kind == "fsdp2")
    assert (model.dtype, model.attn_implementation) == (recipe.weights, arguments.ATTENTIONS[recipe.attention])
    assert (model.use_peft, model.use_dora) == (recipe.adapter.method != "full", recipe.adapter.method == "dora")
    assert model.load_in_4bit == recipe.quantization.startswith("nf4")
    assert model.load_in_8bit == (recipe.quantization == "int8")
    assert data.datasets[0].data_files == "/data/examples.jsonl"
    if model.use_peft:
        targets = recipe.adapter.targets if recipe.adapter.targets == ALL_LINEAR else list(recipe.adapter.targets)
        assert (model.lora_r, model.lora_alpha, model.lora_target_modules) == (8, 32, targets)


def test_trl_nests_4_bit_constants_as_the_recipe_says(here: Path) -> None:
    for quantization, nested in (("nf4", True), ("nf4-single", False)):
        put(here, "trl", order(Recipe(model=MODEL, adapter=adapter_of("lora"), quantization=quantization)))
        assert parsed_by_trl(here)[2].use_bnb_nested_quant == nested


@pytest.mark.parametrize("recipe", ALL, ids=name_of)
def test_the_script_is_what_the_runner_would_run(recipe: Recipe, here: Path) -> None:
    """TrainingArguments of train.py against those of runners/trainers.py for the same recipe."""
    from transformers import TrainingArguments

    from runners.job import Job
    from runners.trainers import training_arguments

    if NO_DEEPSPEED and recipe.parallelism.kind.startswith("zero"):
        pytest.skip("DeepSpeed is not installed")
    text = put(here, "transformers", order(recipe, steps=6))[transformers.FILE]
    compile(text, transformers.FILE, "exec")
    written = TrainingArguments(**constants_of(text)["ARGUMENTS"], use_cpu=True).to_dict()
    job = Job(recipe=dataclasses.replace(recipe, trainer="transformers"), config={}, steps=6, seed=recipe.seed)
    ran = training_arguments(job, here, "cpu").to_dict()
    mine = {name for name, value in written.items() if value != ran.get(name)}
    on_a_gpu_only = any(word in recipe.optimizer for word in ("fused", "bnb", "paged"))  # the runner's CPU lacks them
    assert mine <= NOT_OF_THE_RECIPE | ({"optim"} if on_a_gpu_only else set())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_schedule_is_what_the_runner_would_run(schedule: Schedule, here: Path) -> None:
    """TRL's and transformers' arguments against those of a trial that was given the same schedule."""
    from transformers import TrainingArguments

    from estimators.learning import Training
    from runners.job import Job
    from runners.trainers import training_arguments

    one = order(Recipe(model=MODEL, adapter=adapter_of("lora")), steps=200, schedule=schedule)
    text = put(here, "transformers", one)[transformers.FILE]
    put(here, "trl", one)
    first = 20 if schedule.warm_up_steps is None else schedule.warm_up_steps
    training = Training(schedule=schedule.name, warm_up_steps=first)
    job = Job(recipe=dataclasses.replace(one.recipe, trainer="transformers"), config={}, steps=200, training=training)
    ran = training_arguments(job, here, "cpu")
    for written in (TrainingArguments(**constants_of(text)["ARGUMENTS"], use_cpu=True), parsed_by_trl(here)[1]):
        assert written.lr_scheduler_type == ran.lr_scheduler_type
        assert written.get_warmup_steps(200) == ran.get_warmup_steps(200) == first
        assert (written.max_grad_norm, written.weight_decay) == (ran.max_grad_norm, ran.weight_decay)


NOT_OF_THE_RECIPE = {
    "output_dir", "run_name", "logging_dir", "ddp_timeout", "logging_steps", "save_strategy", "save_steps",
    "save_total_limit", "disable_tqdm", "deepspeed", "fsdp_config", "warmup_steps",
}  # fmt: skip
"""Where it writes, what it logs, how it warms up and when it gives up; ZeRO and FSDP have tests of their own below."""


ZERO = [one for one in ALL if one.parallelism.kind.startswith("zero")]


@pytest.mark.parametrize("recipe", ZERO, ids=name_of)
def test_deepspeed_gets_what_the_runner_gives_it(recipe: Recipe, tmp_path: Path) -> None:
    from runners.trainers import deepspeed_settings

    ran = deepspeed_settings(recipe, tmp_path)["deepspeed"]
    written = json.loads(write_for(order(recipe), ["deepspeed"]).files[deepspeed.FILE])
    for section in ("offload_optimizer", "offload_param"):  # whose folder is the job's
        for document in (ran, written):
            document["zero_optimization"].get(section, {}).pop("nvme_path", None)
    # What saving gathers has no say in training.
    written["zero_optimization"].pop("stage3_gather_16bit_weights_on_model_save", None)
    assert {name: value for name, value in written.items() if ran[name] != "auto" and name != "optimizer"} == {
        name: value for name, value in ran.items() if value != "auto" and name != "optimizer"
    }
    assert written["optimizer"]["type"] == ran["optimizer"]["type"]
    assert written.keys() == ran.keys() and "auto" not in json.dumps(written)


@pytest.mark.skipif(NO_DEEPSPEED, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("recipe", ZERO, ids=name_of)
def test_deepspeed_reads_its_document_and_transformers_agrees(recipe: Recipe, here: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    text = put(here, "transformers", order(recipe, steps=6))[transformers.FILE]
    document = json.loads((here / deepspeed.FILE).read_text())
    found = DeepSpeedConfig(document)
    assert found.train_batch_size == recipe.micro_batch * recipe.gradient_accumulation  # of the one rank that asks
    assert found.zero_optimization_stage == int(recipe.parallelism.kind[-1])
    assert found.zero_config.reduce_bucket_size == recipe.buckets.reduce_elements
    assert bool(found.zero_config.offload_optimizer) == ("optimizer" in recipe.parallelism.offload)
    assert bool(found.zero_config.offload_param) == ("parameters" in recipe.parallelism.offload)
    assert {name for name in document if name not in TOP_LEVEL} == set()
    arguments = TrainingArguments(**constants_of(text)["ARGUMENTS"], use_cpu=True)
    held = HfTrainerDeepSpeedConfig(document)
    held.trainer_config_process(arguments)  # raises where the two contradict each other
    assert held.mismatches == []


TOP_LEVEL = {
    "zero_optimization", "bf16", "fp16", "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps", "gradient_clipping", "zero_allow_untested_optimizer", "optimizer",
}  # fmt: skip
"""Names of deepspeed/runtime/constants.py 0.19.8: at the top DeepSpeed lets every other word pass in silence."""


@pytest.mark.parametrize("recipe", ALL, ids=name_of)
def test_accelerate_reads_its_file_and_launches_from_it(recipe: Recipe, here: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    put(here, "accelerate", order(recipe))
    path = str(here / accelerate.FILE)
    found = load_config_from_file(path)
    assert found.num_processes == recipe.parallelism.devices
    assert found.distributed_type.value == accelerate.BACKENDS[recipe.parallelism.kind]
    parser = launch_command_parser()
    known = {action.dest for action in parser._actions}
    nested = {**(found.fsdp_config or {}), **(found.deepspeed_config or {})}
    assert nested.keys() <= known, "accelerate would drop these in silence"
    read, _, _ = _validate_launch_command(parser.parse_args(["--config_file", path, "train.py"]))
    assert (read.use_deepspeed, read.use_fsdp) == (
        recipe.parallelism.kind.startswith("zero"), recipe.parallelism.kind == "fsdp2",
    )  # fmt: skip
    if recipe.parallelism.kind == "fsdp2":
        assert int(read.fsdp_version) == 2
        assert str(read.fsdp_offload_params).lower() == str(bool(recipe.parallelism.offload)).lower()


def test_fsdp_offload_reaches_accelerates_plugin(here: Path) -> None:
    """Words of fsdp_config that a version does not read are dropped in silence."""
    from transformers import TrainingArguments

    for offload in ((), ("optimizer", "parameters")):
        recipe = Recipe(
            model=MODEL, adapter=adapter_of("lora"), parallelism=Parallelism(kind="fsdp2", devices=2, offload=offload)
        )
        found = TrainingArguments(**arguments.training_arguments(order(recipe)), use_cpu=True).fsdp_plugin_args
        assert (found["fsdp_version"], found["reshard_after_forward"]) == (2, True)
        assert found.get("cpu_offload", False) == bool(offload)


@pytest.mark.parametrize(
    ("axis", "known", "tables"),
    [
        ("adapter", ADAPTERS, (transformers.ADAPTERS, trl.ADAPTERS)),
        ("quantization", QUANTIZATIONS, (arguments.QUANTIZATIONS,)),
        ("optimizer", OPTIMIZERS, (arguments.OPTIMIZERS,)),
        ("parallelism", PARALLELISMS, (arguments.PARALLELISMS, accelerate.BACKENDS)),
        ("attention", ATTENTIONS, (arguments.ATTENTIONS,)),
        ("loss", LOSSES, (arguments.LOSSES,)),
    ],
)
def test_every_technique_has_a_row_for_the_trainers_that_run_it(axis: str, known: Any, tables: Any) -> None:
    for table in tables:
        assert set(table) == set(known), axis


@pytest.mark.parametrize(
    ("tool", "changes", "named"),
    [
        ("trl", {"loss": "liger"}, "liger"),
        ("trl", {"quantization": "nf4", "kbit_upcast": True}, "kbit_upcast"),
        ("axolotl", {"weights": "float32"}, "float32"),
        ("llamafactory", {"weights": "float32"}, "float32"),
        ("unsloth", {"attention": "eager"}, "eager"),
        ("unsloth", {"parallelism": Parallelism(kind="ddp", devices=2)}, "ddp"),
        ("unsloth", {"quantization": "nf4-single"}, "nf4-single"),
        ("deepspeed", {}, "'none'"),
        ("deepspeed", {"parallelism": Parallelism(kind="zero2", devices=2), "optimizer": "sgd"}, "sgd"),
    ],
)
def test_what_a_tool_cannot_say_is_refused_by_name(tool: str, changes: dict[str, Any], named: str) -> None:
    recipe = Recipe(**({"model": MODEL, "adapter": adapter_of("lora")} | changes))
    with pytest.raises(BadInput, match=rf"^{tool} cannot express .*{named}"):
        write_for(order(recipe), [tool])


def test_an_unknown_tool_is_refused_with_its_neighbours() -> None:
    with pytest.raises(UnknownName, match=r"did you mean .*axolotl"):
        write_for(order(ALL[0]), ["axolot"])


EVIL = "a'b\"; $(touch /tmp/evil) `id`\n#: - {x} \u202e\U0001f600"


@pytest.mark.parametrize("tool", TOOLS)
def test_names_from_outside_stay_data(tool: str) -> None:
    """A checkpoint path with quotes, newlines and shell words reads back as it is, and leaves no comment or literal."""
    zero = tool == "deepspeed"
    place = Parallelism(kind="zero2", devices=2) if zero else Parallelism()
    recipe = Recipe(model=MODEL, adapter=adapter_of("lora"), parallelism=place)
    one = order(recipe, weights="/" + EVIL, data=Data(path="/" + EVIL, kind="messages"), memory=EVIL)
    written = write_for(one, [tool])
    for name, text in written.files.items():
        assert text.isascii()
        if name.endswith(".yaml"):
            loaded = yaml.safe_load(text)
            names = {"/" + EVIL} & set(_texts(loaded))
            assert bool(names) == (name != accelerate.FILE)
        elif name.endswith(".json"):
            json.loads(text)
        elif name.endswith(".py"):
            assert constants_of(text)["DATA"] == "/" + EVIL
    command = TOOLS[tool].command
    assert command is None or "evil" not in command(one)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (key, *_texts(item))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


@pytest.mark.parametrize("rate", [1e-4, 2e-5, 1e-05, 0.001, 1.0])
def test_a_float_of_yaml_reads_back_as_a_float(rate: float) -> None:
    recipe = Recipe(model=MODEL, adapter=adapter_of("lora"), learning_rate=rate)
    for tool, name in (("trl", "train.yaml"), ("axolotl", "axolotl.yaml"), ("llamafactory", "llamafactory.yaml")):
        found = yaml.safe_load(write_for(order(recipe), [tool]).files[name])["learning_rate"]
        assert found == rate and type(found) is float


@pytest.mark.parametrize(
    "text", ["no", "1e-4", "012", "1:30", "null", "~", "true", "0x1f", " spaced ", "a: b", "-", "[x"]
)
def test_a_text_of_yaml_stays_a_text(text: str) -> None:
    recipe = Recipe(model=MODEL, adapter=adapter_of("lora"))
    found = yaml.safe_load(write_for(order(recipe, weights=text), ["trl"]).files["train.yaml"])
    assert found["model_name_or_path"] == text


@pytest.mark.parametrize(
    ("trainer", "other", "module"),
    [
        ("transformers", None, False), ("trl", None, True), ("transformers", "axolotl", True),
        ("trl", "llamafactory", True),
    ],
)  # fmt: skip
def test_sbatch_is_a_script_and_torchrun_understands_its_step(trainer: Any, other: str | None, module: bool) -> None:
    from torch.distributed.run import get_args_parser

    recipe = Recipe(
        model=MODEL, adapter=adapter_of("lora"), trainer=trainer, expandable_segments=True, attention="sdpa_no_cudnn",
        parallelism=Parallelism(kind="zero3", devices=8),
    )  # fmt: skip
    files = write_for(order(recipe, nodes=2, tool=other), ["slurm"]).files
    assert deepspeed.FILE in files
    text = files[slurm.FILE]
    assert text.startswith("#!/bin/bash\n#")
    assert "#SBATCH --nodes=2\n" in text and "#SBATCH --gpus-per-node=4\n" in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    step = shlex.split(text.splitlines()[-1])[-1]
    assert step.startswith(
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TORCH_CUDNN_SDPA_DEPRIORITIZED=1 torchrun "
    )
    for name, value in {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        step = step.replace(f"${name}", value)
    read = get_args_parser().parse_args(shlex.split(step)[3:])
    assert (read.nnodes, read.nproc_per_node, read.node_rank, read.module) == ("2", "4", 1, module)
    started = f"{other}.yaml" if other else {"transformers": transformers.FILE, "trl": trl.FILE}[trainer]
    assert [read.training_script, *read.training_script_args][-1] == started and started in files
    assert ("# Memory: " in text) == (other is None)


def test_what_a_tool_does_to_the_weights_on_its_own_is_refused_or_said() -> None:
    frozen = Recipe(model=MODEL, adapter=adapter_of("lora"), weights="float32", compute="float32")
    with pytest.raises(BadInput, match="llamafactory cannot express a frozen base in float32"):
        write_for(order(frozen), ["llamafactory"])
    full = Recipe(model=MODEL, adapter=adapter_of("full"))
    quantised = Recipe(model=MODEL, adapter=adapter_of("lora"), quantization="nf4")
    for recipe, words in ((full, "keeps embeddings, head and norms in float32"), (quantised, "back to 16 bits")):
        assert words in write_for(order(recipe), ["axolotl"]).files["axolotl.yaml"]
    flash = dataclasses.replace(full, attention="flash_attention_2")
    assert "float32 without flash" not in write_for(order(flash), ["axolotl"]).files["axolotl.yaml"]


def test_a_job_script_starts_what_was_named() -> None:
    named = {
        ("slurm",): "transformers", ("axolotl", "slurm"): "axolotl", ("trl", "llamafactory", "skypilot"): "trl",
        ("axolotl", "transformers", "slurm"): "transformers", ("accelerate", "slurm"): "transformers",
    }  # fmt: skip
    assert {tools: job_of("transformers", tools) for tools in named} == named


def test_what_torchrun_cannot_start_is_refused_by_name() -> None:
    lora = Recipe(model=MODEL, adapter=adapter_of("lora"))
    with pytest.raises(BadInput, match="slurm cannot express a job of 'unsloth'"):
        write_for(order(lora, tool="unsloth"), ["slurm"])
    sharded = dataclasses.replace(lora, parallelism=Parallelism(kind="fsdp2", devices=2))
    with pytest.raises(BadInput, match="llamafactory cannot express fsdp2 under torchrun alone"):
        write_for(order(sharded, tool="llamafactory"), ["skypilot"])


@pytest.mark.parametrize("tool", ["transformers", "trl", "llamafactory", "slurm", "axolotl"])
def test_what_a_recipe_needs_beside_its_tool_is_installed_with_it(tool: str) -> None:
    """axolotl brings them itself, DeepSpeed by an extra of its own."""
    recipe = Recipe(
        model=MODEL, adapter=adapter_of("full"), optimizer="adamw_8bit", loss="liger",
        parallelism=Parallelism(kind="zero2", devices=2),
    )  # fmt: skip
    found = {word.split("==")[0] for word in shlex.split(install(order(recipe), TOOLS[tool]))[2:]}
    if tool == "axolotl":
        assert found == {"axolotl[deepspeed]"}
    else:
        assert {"bitsandbytes", "deepspeed", "liger-kernel"} <= found
    plainly = install(order(Recipe(model=MODEL, adapter=adapter_of("lora"))), TOOLS[tool])
    assert "deepspeed" not in plainly and "liger" not in plainly


def test_the_tools_own_launchers_leave_the_allocator_as_the_recipe_has_it() -> None:
    """axolotl and LLaMA-Factory ask torch for expandable segments where nobody says otherwise."""
    for expandable in (True, False):
        one = order(Recipe(model=MODEL, adapter=adapter_of("lora"), expandable_segments=expandable))
        commands = {tool: TOOLS[tool].command for tool in ("axolotl", "llamafactory")}
        said = {tool: command(one) for tool, command in commands.items() if command}
        assert ("PYTORCH_ALLOC_CONF=expandable_segments:False axolotl train" in said["axolotl"]) == (not expandable)
        assert "OPTIM_TORCH=0 " in said["llamafactory"]
        assert ("expandable_segments:True" in said["llamafactory"]) == expandable


@pytest.mark.parametrize("package", ["transformers", "trl", "accelerate", "peft", "bitsandbytes"])
def test_headers_name_the_versions_that_these_tests_ran_with(package: str) -> None:
    assert version(package) == CHECKED[package]


def test_the_gpus_that_were_chosen_are_the_ones_that_run(here: Path) -> None:
    recipe = Recipe(model=MODEL, adapter=adapter_of("lora"))
    one = order(recipe, gpu_ids=(3,))
    assert yaml.safe_load(put(here, "transformers", one)[accelerate.FILE])["gpu_ids"] == "3"
    for tool in ("axolotl", "llamafactory", "unsloth"):
        command = TOOLS[tool].command
        assert command is not None and "CUDA_VISIBLE_DEVICES=3 " in command(one)
