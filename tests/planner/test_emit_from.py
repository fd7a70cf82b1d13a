"""`plan --from`: configurations that people have, read as their tools read them, priced, and corrected."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from estimators.document import to_document
from estimators.errors import BadInput
from estimators.models import load_model
from estimators.recipe import Recipe
from estimators.techniques import OPTIMIZERS
from planner.emit import axolotl, llamafactory, trl
from planner.emit.arguments import ATTENTIONS
from planner.emit.rewrite import difference, rewrite
from planner.emit.taken import Taken, take, tool_of
from planner.emit.tools import write_for
from planner.emit.yaml_read import parse
from tests.planner.emit_cases import CLUSTER, MODEL, name_of, order, recipes

FILES = {"axolotl": axolotl.FILE, "llamafactory": llamafactory.FILE, "trl": trl.FILE}


def taken(text: str, folder: Path | None = None, **beside: str) -> Taken:
    document = parse(text, str((folder or Path("/nowhere")) / "train.yaml"))
    config = {"accelerate_config": None, "deepspeed_config": None, **beside}
    return take(document, tool_of(document), load_model(MODEL), CLUSTER, **config)


def written() -> list[tuple[str, Recipe]]:
    found = []
    for tool in FILES:
        for recipe in recipes():
            try:
                write_for(order(recipe), [tool])
            except BadInput:
                continue
            found.append((tool, recipe))
    return found


@pytest.mark.parametrize(("tool", "recipe"), written(), ids=lambda one: one if isinstance(one, str) else name_of(one))
def test_what_was_written_reads_back_as_the_recipe(tool: str, recipe: Recipe, tmp_path: Path) -> None:
    files = write_for(order(recipe), [tool, "accelerate"]).files
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = taken(files[FILES[tool]], tmp_path, accelerate_config=str(tmp_path / "accelerate.yaml"))
    assert found.tool == tool
    assert found.not_understood == ()
    said = replace(recipe, attention=ATTENTIONS[recipe.attention])  # the rest of it is in the environment
    expected, read = to_document(said), to_document(found.recipe)
    differ = {name for name in expected if expected[name] != read[name]}
    assert differ <= {"trainer", "kbit_upcast", *UNSAID[tool]}, differ


UNSAID = {
    "trl": {"evaluation_batch", "expandable_segments", "buckets"},
    "axolotl": {"evaluation_batch", "expandable_segments", "buckets"},
    "llamafactory": {"evaluation_batch", "expandable_segments", "buckets", "weights"},
}
"""What a tool's file does not hold: the environment, evaluation that is off, and the buckets of what is not sharded."""


def test_what_trl_puts_into_its_environment_is_of_the_recipe() -> None:
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}
    text = f"model_name_or_path: a\ndtype: bfloat16\nmax_length: 128\nenv: {environment}\n"
    found = taken(text).recipe
    assert (found.attention, found.expandable_segments) == ("sdpa_no_cudnn", True)
    with pytest.raises(BadInput, match="sdpa_no_cudnn"):  # transformers knows no such implementation
        taken("model_name_or_path: a\ndtype: bfloat16\nmax_length: 128\nattn_implementation: sdpa_no_cudnn\n")


def test_buckets_of_deepspeed_read_back_and_auto_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    document = {"stage": 3, "reduce_bucket_size": "auto", "sub_group_size": 1e9, "stage3_prefetch_bucket_size": 7}
    (tmp_path / "ds.json").write_text(f'{{"zero_optimization": {str(document).replace(chr(39), chr(34))}, "x": 1}}')
    found = taken("model_name_or_path: a\ndtype: bfloat16\nmax_length: 128\ndeepspeed: ds.json\n", tmp_path)
    hidden = load_model(MODEL).hidden_size
    assert (found.recipe.parallelism.kind, found.recipe.parallelism.devices) == ("zero3", 2)
    assert found.recipe.buckets.reduce_elements == hidden * hidden
    assert (found.recipe.buckets.sub_group_elements, found.recipe.buckets.prefetch_elements) == (10**9, 7)
    assert found.not_understood == ("x",)


def test_a_bucket_that_is_no_number_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "lots"}}')
    with pytest.raises(BadInput, match="reduce_bucket_size must be a number or auto, not 'lots'"):
        taken("model_name_or_path: a\ndtype: bfloat16\nmax_length: 128\ndeepspeed: ds.json\n", tmp_path)


def test_samples_that_the_real_parsers_accepted_are_read() -> None:
    found = taken(AXOLOTL)
    recipe = found.recipe
    assert (found.tool, recipe.quantization, recipe.adapter.rank) == ("axolotl", "nf4", 16)
    assert (recipe.optimizer, recipe.attention, recipe.packing) == ("paged_adamw_8bit", "flash_attention_2", True)
    assert (recipe.learning_rate, recipe.sequence_length) == (2e-4, 2048)
    assert found.not_understood == ("layer_offloading",)


AXOLOTL = """\
base_model: huggyllama/llama-7b
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_alpha: 64
lora_target_linear: true
sequence_len: 2048   # tokens
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 16
optimizer: paged_adamw_8bit
learning_rate: 2e-4
flash_attention: true
layer_offloading: true
"""


def test_defaults_are_those_of_the_tool() -> None:
    plain = taken("model_name_or_path: a\nuse_peft: true\nmax_length: 512\n").recipe
    assert (plain.trainer, plain.weights, plain.micro_batch, plain.adapter.dropout) == ("trl", "float32", 8, 0.05)
    factory = taken("model_name_or_path: a\nstage: sft\nfinetuning_type: lora\nbf16: true\n").recipe
    assert (factory.adapter.rank, factory.adapter.alpha, factory.adapter.targets) == (8, 16, "all-linear")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_can_be_read(optimizer: str) -> None:
    assert taken(AXOLOTL.replace("paged_adamw_8bit", optimizer)).recipe.optimizer == optimizer


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
"""Four hundred bytes that name forty million values."""


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (AXOLOTL.replace("paged_adamw_8bit", "muon"), "muon"),
        (AXOLOTL.replace("lora_r: 16", "lora_r: sixteen"), "lora_r must be a whole number"),
        (AXOLOTL.replace("sequence_len: 2048", "sequence_len: -1"), "sequence_len"),
        (AXOLOTL.replace("learning_rate: 2e-4", "learning_rate: .inf"), "learning_rate"),
        (AXOLOTL + "lora_r: 8\n", "'lora_r' a second time"),
        (AXOLOTL.replace("lora_alpha", "lora_alhpa"), r"'lora_alhpa': did you mean lora_alpha\?"),
        ("a: 1\n", "told apart"),
        ("- 1\n", "not a table"),
        ("a: [1\n", "not YAML in line"),
        (AXOLOTL + "x: !!python/object/apply:os.system ['true']\n", "tag"),
        (AXOLOTL + "fsdp_config:\n  fsdp_version: 1\n", "first version"),
        (AXOLOTL + "deepspeed: nowhere.json\n", "nowhere.json"),
        (AXOLOTL + "x: " + "[" * 200 + "]" * 200 + "\n", "nested"),
        (BOMB, "nested"),
        ("a: &a\n  b: *a\n", "nested"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_hostile_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        taken(text)


def test_a_correction_keeps_the_rest_of_the_file_and_its_diff_applies(tmp_path: Path) -> None:
    text = "# mine\n" + AXOLOTL + "plugins:\n  - my.plugin\ndatasets:\n  - path: x\n    type: alpaca\n# end"
    document = parse(text, "train.yaml")
    altered: dict[str, Any] = {
        "sequence_len": 1024, "plugins": ["liger"], "datasets": [{"path": "y"}], "gradient_checkpointing": True,
        "learning_rate": 1e-5,
    }  # fmt: skip
    after = rewrite(document, altered, ("flash_attention",))
    read = yaml.safe_load(after)
    expected = {**yaml.safe_load(text), **altered, "plugins": ["my.plugin", "liger"]}
    del expected["flash_attention"]
    assert read == expected
    assert after.startswith("# mine\n") and "1024   # tokens\n" in after and "# end" in after
    (tmp_path / "train.yaml").write_text(text)
    patch = difference(text, after, "train.yaml")
    done = subprocess.run(["patch", "-p1"], input=patch, text=True, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "train.yaml").read_text() == after


@pytest.mark.parametrize(
    ("more", "kind", "devices"),
    [
        ("accelerate_config: zero3\nnum_processes: 4\n", "zero3", 4),
        ("accelerate_config: multi_gpu\n", "ddp", 8),
        ("accelerate_config: single_gpu\n", "none", 1),
        ("num_processes: 2\n", "ddp", 2),
        ("fsdp: full_shard auto_wrap offload\nfsdp_config:\n  fsdp_version: 2\n", "fsdp2", 2),
        ("", "ddp", 2),
    ],
)
def test_how_trl_is_launched_is_read_too(more: str, kind: str, devices: int) -> None:
    place = taken("model_name_or_path: a\nuse_peft: true\nmax_length: 512\n" + more).recipe.parallelism
    assert (place.kind, place.devices) == (kind, devices)
    assert bool(place.offload) == ("offload" in more)


def test_an_accelerate_file_with_deepspeed_inline_is_read(tmp_path: Path) -> None:
    path = tmp_path / "acc.yaml"
    path.write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config:\n  zero_stage: 3\n"
        "  offload_optimizer_device: cpu\n  offload_param_device: cpu\n  zero3_init_flag: true\n  zero_hpz: 2\n"
    )
    found = taken(AXOLOTL, tmp_path, accelerate_config=str(path))
    place = found.recipe.parallelism
    assert (place.kind, place.devices, place.offload) == ("zero3", 4, ("optimizer", "parameters"))
    assert "zero_hpz" in found.not_understood
