"""`plan --from … --emit`: whatever said how a job is spread, the folder that is written says it again; and the numbers
of a file that evaluates too much agree with each other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from estimators.models import load_model
from estimators.recipe import Parallelism
from planner.__main__ import main
from planner.emit.accelerate import FILE as ACCELERATE_FILE
from planner.emit.moved import move
from planner.emit.rewrite import edits, rewrite, written_beside
from planner.emit.taken import Taken, take, tool_of
from planner.emit.yaml_read import parse
from tests.planner.emit_cases import CLUSTER, MODEL, order

BASES = {
    "axolotl": (
        "base_model: meta-llama/Llama-3.2-1B\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\n"
        "sequence_len: 512\nmicro_batch_size: 4\nlearning_rate: 1e-4\nbf16: true\ngradient_checkpointing: false\n"
    ),
    "llamafactory": (
        "model_name_or_path: meta-llama/Llama-3.2-1B\nstage: sft\nfinetuning_type: lora\nlora_target: all\nbf16: true\n"
        "cutoff_len: 512\nper_device_train_batch_size: 4\ndisable_gradient_checkpointing: true\n"
    ),
    "trl": (
        "model_name_or_path: meta-llama/Llama-3.2-1B\nuse_peft: true\nlora_r: 8\ndtype: bfloat16\nmax_length: 512\n"
        "per_device_train_batch_size: 4\ngradient_checkpointing: false\n"
    ),
}
SECTION = "fsdp_config:\n  fsdp_version: 2\n  fsdp_activation_checkpointing: true\n"
ACCELERATE = "distributed_type: FSDP\nnum_processes: 2\n" + SECTION
ASKED = {"axolotl": "", "llamafactory": "fsdp: full_shard auto_wrap\n", "trl": "fsdp: full_shard auto_wrap\n"}
ABSENT = "deepspeed: examples/deepspeed/ds_z3_config.json\n"
ZERO = '{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}'
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "smaller batches": {"micro_batch": 2, "gradient_accumulation": 2},
    "zero2": {"parallelism": Parallelism(kind="zero2", devices=2)},
    "zero3": {"parallelism": Parallelism(kind="zero3", devices=2, offload=("optimizer",)), "micro_batch": 1},
    "fsdp2": {"parallelism": Parallelism(kind="fsdp2", devices=2)},
    "fsdp2, offloaded": {"parallelism": Parallelism(kind="fsdp2", devices=2, offload=("optimizer", "parameters"))},
}  # fmt: skip


def read(path: Path, accelerate: Path | None = None, deepspeed: Path | None = None) -> Taken:
    document = parse(path.read_text(), str(path))
    beside = [str(one) if one else None for one in (accelerate, deepspeed)]
    return take(document, tool_of(document), load_model(MODEL), CLUSTER, *beside)


def given(tool: str, how: str, folder: Path) -> Taken:
    """A configuration of the tool, spread in one of the ways that people do."""
    path, accelerate, deepspeed = folder / "mine.yaml", folder / "acc.yaml", folder / "ds.json"
    accelerate.write_text(ACCELERATE)
    deepspeed.write_text(ZERO)
    more = {"its own section": ASKED[tool] + SECTION, "a published file": ABSENT, "both": ASKED[tool] + SECTION}
    more["DeepSpeed"] = f"{'optimizer' if tool == 'axolotl' else 'optim'}: adafactor\n"  # which its own goes before
    path.write_text(BASES[tool] + more.get(how, ""))
    by_accelerate = how in ("accelerate", "both")
    return read(path, accelerate if by_accelerate else None, deepspeed if how == "DeepSpeed" else None)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", ["accelerate", "its own section", "both", "a published file", "DeepSpeed"])
@pytest.mark.parametrize("tool", BASES)
def test_what_is_written_is_spread_and_checkpointed_as_it_was_priced(
    tool: str, how: str, change: str, tmp_path: Path
) -> None:
    taken = given(tool, how, tmp_path)
    recipe = replace(taken.recipe, **CHANGES[change])
    assert recipe.gradient_checkpointing is ("zero" not in taken.recipe.parallelism.kind)
    made = order(recipe)
    altered, dropped, notes = edits(taken, made)
    folder = tmp_path / "new"
    folder.mkdir()
    moved = move(taken.document, tool, {*altered, *dropped})
    (folder / "mine.yaml").write_text(rewrite(moved.document, altered, dropped))
    for name, text in written_beside(tool, made, "mine.yaml").files.items():
        (folder / name).write_text(text)
    launched = folder / ACCELERATE_FILE
    found = read(folder / "mine.yaml", launched if launched.exists() else None)
    for name in ("parallelism", "gradient_checkpointing", "optimizer", "micro_batch", "gradient_accumulation"):
        assert getattr(found.recipe, name) == getattr(recipe, name), name
    table = found.document.table
    assert not ("deepspeed" in table and {"fsdp", "fsdp_config", "fsdp_version"} & set(table))
    if "deepspeed" in table:
        assert (folder / table["deepspeed"]).exists()
    inner = table.get("fsdp_config") or {}
    by_fsdp = any(inner.get(name) for name in ("fsdp_activation_checkpointing", "activation_checkpointing"))
    assert (by_fsdp, found.alone.gradient_checkpointing).count(True) == recipe.gradient_checkpointing
    assert any("no longer FSDP's" in note for note in notes) is (recipe.gradient_checkpointing and not by_fsdp)
    assert not any("looked for in the new folder" in note for note in moved.notes)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def run(text: str, *words: str) -> tuple[int, str, str]:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        code = main(("--from", str(path), "--fast", *words))
        return (code, *capsys.readouterr())

    return run


def test_a_published_file_that_is_not_here_is_replaced_by_the_one_beside(plan: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    words = ("--gpus", "2xh100-sxm", "--emit", str(folder), "--json")
    code, out, _ = plan(BASES["llamafactory"] + ABSENT, *words)
    assert code == 0
    assert yaml.safe_load((folder / "mine.yaml").read_text())["deepspeed"] == "deepspeed.json"
    assert json.loads((folder / "deepspeed.json").read_text())["zero_optimization"]["stage"] == 3
    assert "looked for" not in "".join(json.loads(out)["emitted"]["notes"])


def test_a_published_file_of_stage_0_leaves_no_name_behind(plan: Run, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    text = BASES["llamafactory"] + ABSENT.replace("z3", "z0")
    code, out, _ = plan(text, "--gpus", "2xh100-sxm", "--emit", str(folder))
    assert code == 0 and "looked for" not in out
    assert (folder / "mine.yaml").read_text() == BASES["llamafactory"]
    assert not (folder / "deepspeed.json").exists()


def test_fsdp_that_a_launch_file_asked_to_checkpoint_does_so_in_the_new_folder(plan: Run, tmp_path: Path) -> None:
    (tmp_path / "acc.yaml").write_text(ACCELERATE)
    folder = tmp_path / "new"
    words = ("--accelerate-config", str(tmp_path / "acc.yaml"), "--gpus", "2xh100-sxm", "--emit", str(folder))
    code, out, _ = plan(BASES["trl"], *words)
    assert code == 0 and "no longer FSDP's" in out
    found = yaml.safe_load((folder / "mine.yaml").read_text())
    assert (found["gradient_checkpointing"], found["gradient_checkpointing_kwargs"]) == (True, {"use_reentrant": False})
    assert "-gradient_checkpointing: false\n+gradient_checkpointing: true\n" in (folder / "mine.yaml.diff").read_text()


EVALUATES = "per_device_eval_batch_size: 400\neval_strategy: steps\nval_size: 0.1\n"


@pytest.mark.parametrize("trains_too_much", [False, True])
def test_the_numbers_of_an_evaluation_that_is_too_large_agree(plan: Run, trains_too_much: bool) -> None:
    text = BASES["llamafactory"] + EVALUATES
    text = text.replace("train_batch_size: 4", f"train_batch_size: {64 if trains_too_much else 4}")
    words = ("--gpus", "rtx-4090", "--headroom", "0")
    code, out, _ = plan(text, *words, "--json")
    price = json.loads(out)["chosen"]["price"]
    _, page, _ = plan(text, *words)
    said = " ".join(page.split())
    assert code == 3 and "evaluating 400 rows at a time takes" in said
    worst = said.split("evaluating 400 rows at a time takes ")[1].split("(at most ")[1].split(")")[0]
    missing = said.split("it needs ")[1].split(" more")[0]
    assert f"missing {missing} evaluating, at most {worst}: does not fit" in said
    room = price["per_gpu"][0]["budget_bytes"] / 2**30
    assert worst.endswith(" GiB") and missing.endswith(" GiB")
    assert float(worst.split()[0]) - room == pytest.approx(float(missing.split()[0]), abs=0.2)
    assert (", and training " in said) is trains_too_much


def test_where_training_is_the_worst_nothing_is_said_of_evaluation(plan: Run) -> None:
    text = BASES["llamafactory"].replace("train_batch_size: 4", "train_batch_size: 256")
    code, out, _ = plan(text, "--gpus", "rtx-4090")
    said = " ".join(out.split())
    assert code == 3 and "evaluating" not in said and "at the upper end of the error bar: does not fit" in said


@pytest.mark.parametrize(
    "words",
    [("--warm-up-steps", "3"), ("--seq-len", "64"), ("--rules", "x"), ("--method", "lora"), ("--no-checkpointing",),
     ("--checkpointing",), ("--padded",), ("--seed", "0")],
)  # fmt: skip
def test_an_option_of_a_goal_is_refused_by_the_name_that_was_typed(plan: Run, words: tuple[str, ...]) -> None:
    code, _, err = plan(BASES["axolotl"], "--gpus", "rtx-4090", *words)
    assert code == 2 and f"how: {words[0]} cannot be given beside it" in err
