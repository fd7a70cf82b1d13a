"""`plan --from`: what a tool does where its file says nothing, or says it in words of its own, by its own sources."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from estimators.errors import BadInput
from estimators.hardware import Cluster
from estimators.models import load_model
from planner.__main__ import main
from planner.emit.taken import Taken, take, tool_of
from planner.emit.yaml_read import parse
from tests.planner.emit_cases import CLUSTER, MODEL

ALONE = replace(CLUSTER, gpus=CLUSTER.gpus[:1])
AXOLOTL = "base_model: a\nsequence_len: 512\nadapter: lora\nlora_r: 8\nlora_alpha: 8\nlora_target_linear: true\n"
FULL = "base_model: a\nsequence_len: 512\nsample_packing: true\n"
QLORA = AXOLOTL.replace("adapter: lora", "adapter: qlora\nload_in_4bit: true")
FACTORY = "model_name_or_path: a\nstage: sft\nfinetuning_type: lora\ncutoff_len: 512\nbf16: true\n"
TRL = "model_name_or_path: a\nuse_peft: true\nmax_length: 512\ndtype: bfloat16\n"


def taken(text: str, cluster: Cluster = ALONE, folder: Path = Path("/nowhere"), accelerate: str | None = None) -> Taken:
    document = parse(text, str(folder / "train.yaml"))
    return take(document, tool_of(document), load_model(MODEL), cluster, accelerate, None)


def said(found: Taken) -> str:
    return "\n".join(found.assumed)


@pytest.mark.parametrize(
    ("text", "cluster", "expected"),
    [
        (AXOLOTL, ALONE, True),  # axolotl/utils/__init__.py, set_pytorch_cuda_alloc_conf
        (FACTORY, ALONE, False),
        (FACTORY, CLUSTER, True),  # llamafactory/launcher.py, OPTIM_TORCH
        (FACTORY + "deepspeed: {stage: 3, zero_optimization: {stage: 3}}\n", ALONE, True),  # which needs torchrun
        (TRL, CLUSTER, False),
    ],
)
def test_expandable_segments_are_on_where_the_tools_own_command_asks_for_them(
    text: str, cluster: Cluster, expected: bool
) -> None:
    found = taken(text, cluster)
    assert found.recipe.expandable_segments is expected
    assert ("expandable_segments, which" in said(found)) is expected


def test_a_launch_file_of_accelerates_starts_llamafactory_without_its_launcher(tmp_path: Path) -> None:
    path = tmp_path / "acc.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    assert not taken(FACTORY, CLUSTER, accelerate=str(path)).recipe.expandable_segments


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", "bfloat16"), ("bf16: auto\n", "bfloat16"), ("bf16: auto\nfp16: true\n", "float16"),
        ("bf16: true\nfp16: true\n", "bfloat16"), ("fp16: true\n", "float16"), ("bf16: false\n", "float32"),
        ("bf16: false\nfp16: true\n", "float16"), ("bf16: false\nbfloat16: true\n", "bfloat16"),
    ],
)  # fmt: skip
def test_axolotl_computes_in_what_its_resolve_dtype_makes_of_three_keys(more: str, expected: str) -> None:
    recipe = taken(AXOLOTL + more).recipe
    assert (recipe.weights, recipe.compute) == (expected, expected)


def test_axolotl_casts_back_what_peft_upcast_under_a_quantised_base() -> None:
    assert not taken(QLORA).recipe.upcasts_kbit


@pytest.mark.parametrize(("attention", "told"), [("sdpa", True), ("eager", True), ("flash_attention_2", False)])
def test_axolotl_keeps_embeddings_in_float32_for_a_full_fine_tuning_without_flash(attention: str, told: bool) -> None:
    assert ("stay in float32" in said(taken(FULL + f"attn_implementation: {attention}\n"))) is told
    cut = "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\n"
    assert "stay in float32" not in said(taken(FULL + cut))  # which needs 16 bits
    assert "stay in float32" not in said(taken(AXOLOTL + f"attn_implementation: {attention}\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (AXOLOTL, True), (QLORA, True), (AXOLOTL + "load_in_8bit: true\n", False),
        (AXOLOTL + "trust_remote_code: true\n", False), (AXOLOTL + "lora_mlp_kernel: false\n", False),
        (FULL, False),
    ],
)  # fmt: skip
def test_axolotls_own_kernels_are_told_where_it_switches_them_on(text: str, told: bool) -> None:
    assert ("switches on by itself" in said(taken(text))) is told


@pytest.mark.parametrize(
    ("more", "loss"),
    [
        ("liger_fused_linear_cross_entropy: true\n", "plain"),  # no plugin that hears it
        ("plugins: [axolotl.integrations.liger.LigerPlugin]\nliger_fused_linear_cross_entropy: true\n", "liger"),
        ("plugins: [axolotl.integrations.liger.LigerPlugin]\nliger_rms_norm: true\n", "plain"),
        ("plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\n", "liger"),  # on by itself
        ("plugins: [a.CutCrossEntropyPlugin, a.cut_cross_entropy]\ncut_cross_entropy: false\n", "plain"),
        ("chunked_cross_entropy: true\n", "plain"),
    ],
)
def test_losses_of_axolotls_plugins(more: str, loss: str) -> None:
    found = taken(AXOLOTL + "gradient_checkpointing: true\n" + more)
    assert found.recipe.loss == loss
    assert found.not_understood == ()


def test_a_fused_loss_without_kernels_for_layers_is_priced_as_plain_where_layers_decide() -> None:
    more = "plugins: [axolotl.integrations.liger.LigerPlugin]\nliger_fused_linear_cross_entropy: true\n"
    assert taken(AXOLOTL + more).recipe.loss == "plain"
    assert taken(AXOLOTL + "gradient_checkpointing: true\n" + more).recipe.loss == "liger"


def test_cut_cross_entropy_keeps_no_logits_where_it_evaluates_either() -> None:
    more = "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\ngradient_checkpointing: true\n"
    found = taken(AXOLOTL + more + "val_set_size: 0.1\nevals_per_epoch: 1\neval_batch_size: 8\n")
    assert found.recipe.evaluation_batch is None
    assert any("evaluation in batches of 8 is not priced" in one for one in found.assumed)


@pytest.mark.parametrize("text", [AXOLOTL, FACTORY, TRL])
def test_seeds_are_as_large_as_trainers_take(text: str) -> None:
    assert taken(text + "seed: 4294967295\n").recipe.seed == 4_294_967_295
    with pytest.raises(BadInput, match="seed must be a whole number"):
        taken(text + "seed: 4294967296\n")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("fsdp_config: {1: 2}\n", "fsdp"),
        ("deepspeed: {zero_optimization: {1: 2, stage: 2}}\n", None),
        ("deepspeed: {1: 2}\n", None),
        ("deepspeed: {zero_optimization: {stage: 2, reduce_bucket_size: 0}}\n", "reduce_bucket_size must be a number"),
        ("deepspeed: {zero_optimization: {stage: 2, reduce_bucket_size: 1.0e+308}}\n", "must be a number"),
        ("deepspeed: {zero_optimization: {stage: 2, allgather_bucket_size: true}}\n", "must be a number"),
    ],
)
def test_odd_sections_are_told_in_one_line(more: str, said: str | None) -> None:
    if said is None:
        assert any("1" in name for name in taken(AXOLOTL + more, CLUSTER).not_understood)
    else:
        with pytest.raises(BadInput, match=said):
            taken(AXOLOTL + more, CLUSTER)


def test_every_word_for_evaluation_is_heard() -> None:
    found = taken(FACTORY + "val_size: 0.1\ndo_eval: true\neval_strategy: steps\n")
    assert (found.recipe.evaluation_batch, found.not_understood) == (8, ())


def test_one_of_two_missing_words_that_was_mistyped_is_named() -> None:
    mistyped = AXOLOTL.replace("lora_target_linear", "lora_target_linears")
    assert mistyped != AXOLOTL
    with pytest.raises(BadInput, match="did you mean lora_target_linear"):
        taken(mistyped)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (AXOLOTL + "val_set_size: 0.1\nmicro_batch_size: 2\nevals_per_epoch: 4\n", 2),
        (AXOLOTL + "val_set_size: 0.1\neval_batch_size: 4\neval_strategy: epoch\n", 4),
        (AXOLOTL + "val_set_size: 0.1\n", None),  # no time is set for it
        (AXOLOTL + "val_set_size: 0.0\nevals_per_epoch: 4\n", None),
        (FACTORY + "val_size: 0.1\n", None),
        (FACTORY + "val_size: 0.1\neval_strategy: steps\n", 8),
        (FACTORY + "val_size: 0.1\ndo_eval: true\nper_device_eval_batch_size: 1\n", 1),
        (TRL + "eval_strategy: steps\n", 8),
        (TRL + "eval_strategy: no\n", None),
    ],
)
def test_rows_are_evaluated_as_many_at_a_time_as_the_tool_would(text: str, rows: int | None) -> None:
    found = taken(text)
    assert found.recipe.evaluation_batch == rows
    assert found.not_understood == ()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (TRL + "attn_implementation: kernels-community/flash-attn2\n", "flash_attention_2"),
        (TRL + "attn_implementation: kernels-community/flash-attn3@v1\n", "flash_attention_2"),
        (AXOLOTL + "xformers_attention: true\nflash_attention: true\n", "sdpa"),  # the first of its old words
        (AXOLOTL + "sdp_attention: true\n", "sdpa"),
    ],
)
def test_attention_that_keeps_as_much_as_another_is_priced_as_it(text: str, name: str) -> None:
    assert taken(text).recipe.attention == name


@pytest.mark.parametrize("loss", ["nll", "chunked_nll", "dft"])
def test_trl_makes_its_losses_of_the_same_chunks(loss: str) -> None:
    assert taken(TRL + f"loss_type: {loss}\n").recipe.loss == "plain"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (TRL + "packing: true\n", True),
        (TRL + "packing: true\npacking_strategy: wrapped\n", False),
        (TRL + "packing: true\nattn_implementation: flash_attention_2\n", False),
        (TRL + "padding_free: true\n", True),
        (FACTORY + "neat_packing: true\n", True),
        (FACTORY + "neat_packing: true\nflash_attn: fa2\n", False),
        (FACTORY + "packing: true\n", False),
    ],
)
def test_rows_that_are_kept_apart_by_a_mask_are_priced_with_one(text: str, masked: bool) -> None:
    found = taken(text)
    assert found.recipe.padded is masked
    assert found.not_understood == ()


def test_llamafactory_loads_a_frozen_base_in_the_checkpoints_16_bits() -> None:
    plain = taken(FACTORY.replace("bf16: true\n", ""))
    assert (plain.recipe.weights, plain.recipe.compute) == ("bfloat16", "bfloat16")
    assert "neither bf16 nor fp16" in said(plain)
    whole = taken(FACTORY.replace("lora", "full").replace("bf16: true\n", "")).recipe
    assert (whole.weights, whole.compute) == ("float32", "float32")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (AXOLOTL + "lora_modules_to_save: [lm_head]\n", "lora_modules_to_save trains whole layers"),
        (AXOLOTL + "rl: dpo\n", "rl is another training"),
        (AXOLOTL + "context_parallel_size: 2\n", "context_parallel_size splits every sequence"),
        (AXOLOTL + "bf16: full\n", "bf16 must be auto"),
        (AXOLOTL.replace("lora_target_linear: true\n", ""), "lora_target_linear or lora_target_modules missing"),
        (AXOLOTL + "fsdp: [full_shard]\nfsdp_config: {offload_params: true}\n", "first version"),
        (AXOLOTL + "fsdp_config: {fsdp_version: 2, reshard_after_forward: false}\n", "reshard_after_forward"),
        (AXOLOTL + "attn_implementation: flex_attention\n", "flex_attention"),
        (AXOLOTL + "deepspeed: {zero_optimization: {stage: 2}, optimizer: {type: Lion}}\n", "Lion"),
        (FACTORY + "additional_target: embed_tokens\n", "additional_target trains whole layers"),
        (FACTORY + "use_galore: true\n", "use_galore is another optimizer"),
        (FACTORY + "quantization_bit: 4\nquantization_method: hqq\n", "hqq"),
        (TRL + "lora_modules_to_save: [lm_head]\n", "lora_modules_to_save trains whole layers"),
        (TRL.replace("512", "null"), "max_length null"),
        (TRL + "loss_type: sigmoid\n", "sigmoid"),
        (TRL + "accelerate_config: fsdp1\n", "first version"),
        (TRL + "beta: 0.1\n", "beta is of another training"),
    ],
)
def test_another_job_than_would_be_priced_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        taken(text, CLUSTER)


@pytest.mark.parametrize(
    "text",
    [
        AXOLOTL + "context_parallel_size: 1\nactivation_offloading: false\nrl:\nlora_modules_to_save: []\n",
        FACTORY + "use_unsloth: false\nadditional_target: null\nuse_galore: false\n",
        TRL + "activation_offloading: false\nuse_liger_kernel: false\ntorch_compile: false\n",
    ],
)
def test_switches_that_are_off_say_nothing(text: str) -> None:
    found = taken(text)
    assert found.not_understood == ()
    assert "priced without" not in said(found) and "priced as not" not in said(found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (AXOLOTL + "gradient_checkpointing: offload\n", "gradient_checkpointing offload"),
        (AXOLOTL + "gradient_checkpointing: true\n", "re-entrant"),
        (AXOLOTL + "torch_compile: true\n", "torch_compile: priced as not compiled"),
        (FACTORY + "use_unsloth: true\n", "use_unsloth: priced as"),
        (TRL + "use_liger_kernel: true\n", "use_liger_kernel: priced without"),
        (TRL.replace("dtype: bfloat16\n", ""), "weights in float32, which is trl's default"),
        (TRL, "rows of the full length"),
    ],
)
def test_what_is_priced_as_something_near_is_told(text: str, told: str) -> None:
    found = taken(text)
    assert told in said(found)
    assert found.not_understood == ()


def test_deepspeed_files_that_a_tool_publishes_need_not_lie_there(tmp_path: Path) -> None:
    for name, kind, offload in (
        ("deepspeed_configs/zero1.json", "zero1", ()),
        ("deepspeed_configs/zero2.json", "zero2", ("optimizer",)),
        ("../deepspeed_configs/zero3_bf16_cpuoffload_all.json", "zero3", ("optimizer", "parameters")),
    ):
        found = taken(AXOLOTL + f"deepspeed: {name}\n", CLUSTER)
        assert (found.recipe.parallelism.kind, found.recipe.parallelism.offload) == (kind, offload)
        assert "that its tool publishes" in said(found)
    found = taken(FACTORY + "deepspeed: examples/deepspeed/ds_z3_config.json\n", CLUSTER)
    assert found.recipe.buckets.reduce_elements == load_model(MODEL).hidden_size ** 2
    found = taken(FACTORY + "deepspeed: examples/deepspeed/ds_z0_config.json\n", CLUSTER)
    assert found.recipe.parallelism.kind == "ddp" and "stage 0" in said(found)
    (tmp_path / "deepspeed_configs").mkdir()
    (tmp_path / "deepspeed_configs" / "zero1.json").write_text('{"zero_optimization": {"stage": 2}}')
    found = taken(AXOLOTL + "deepspeed: deepspeed_configs/zero1.json\n", CLUSTER, tmp_path)
    assert found.recipe.parallelism.kind == "zero2"  # a file that is there counts


def test_an_optimizer_of_deepspeeds_own_takes_the_place_of_the_trainers() -> None:
    section: dict[str, Any] = {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {}}}
    text = AXOLOTL + f"optimizer: adamw_8bit\ndeepspeed: {json.dumps(section)}\n"
    found = taken(text, CLUSTER)
    assert found.recipe.optimizer == "adamw_torch" and "in place of adamw_8bit" in said(found)
    assert taken(text.replace("adamw_8bit", "adamw_torch_fused"), CLUSTER).recipe.optimizer == "adamw_torch_fused"


def test_fsdp_that_checkpoints_itself_and_what_else_its_section_says() -> None:
    config = "{fsdp_version: 2, fsdp_activation_checkpointing: true, state_dict_type: FULL_STATE_DICT, mystery: 1}"
    found = taken(AXOLOTL + f"fsdp_config: {config}\n", CLUSTER)
    assert (found.recipe.parallelism.kind, found.recipe.gradient_checkpointing) == ("fsdp2", True)
    assert found.not_understood == ("fsdp_config.mystery",)
    assert taken(TRL + "fsdp_config: {version: 2}\n", CLUSTER).recipe.parallelism.kind == "ddp"  # nothing asks for it
    assert taken(TRL + "fsdp: full_shard\n", CLUSTER).recipe.parallelism.kind == "fsdp2"  # transformers' version


def test_the_buckets_of_ddp_are_read() -> None:
    assert taken(TRL + "ddp_bucket_cap_mb: 100\n", CLUSTER).recipe.buckets.ddp_mib == 100


def test_evaluation_alone_that_does_not_fit_is_named_with_what_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(FACTORY.replace("512", "2048") + "per_device_train_batch_size: 1\neval_strategy: steps\n")
    words = ("--from", str(path), "--model", "qwen3-4b", "--gpus", "rtx-4090", "--fast")
    assert main(words) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "evaluating 8 rows at a time takes" in out
    assert "it fits with evaluations of 1 instead of 8 rows at a time:" in out
    assert main((*words, "--emit", str(tmp_path / "better"))) == 3
    changed = (tmp_path / "better/mine.yaml.diff").read_text()
    assert [line for line in changed.splitlines() if line[:2] in ("+p", "-p")] == ["+per_device_eval_batch_size: 1"]
    path.write_text(path.read_text() + "per_device_eval_batch_size: 1\n")
    assert main(words) == 0
