"""The sentences of a plan: the next command gives the same plan again, whatever was asked for."""

import json
import shlex
from pathlib import Path

import pytest

from planner.__main__ import main


@pytest.mark.parametrize(
    "options",
    [
        "--gpus 1xrtx-4090",
        "--gpus 2xa100-80gb --host-memory 256GiB --method full,lora --objective throughput",
        "--gpus h100 --seq-len 1024 --global-batch 32 --rank 64 --targets all-linear --trainer trl --vram-budget 40GiB",
        "--gpus 4xl40s --nodes 2 --link 25GB/s --offload never --precision amp --no-checkpointing --headroom 1GiB",
        "--gpus t4 --method qlora --optimizer paged_adamw_8bit --attention eager --loss liger --padded --tokens 10000",
    ],
)
def test_the_next_command_gives_the_same_plan(capsys: pytest.CaptureFixture[str], options: str) -> None:
    assert main(["--model", "llama-3.2-1b", *shlex.split(options), "--quiet", "--fast"]) in (0, 3)
    first = capsys.readouterr().out
    command = first.strip().splitlines()[-1]
    words = shlex.split(command.split(" > ")[0])
    assert words[0] == "plan"
    again = [word for word in words[1:] if word != "--json"]
    main([*again, "--quiet", "--fast"])
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("more", [[], ["--packing"]])
def test_a_plan_that_rows_of_data_shaped_has_no_next_command_that_forgets_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str]
) -> None:
    """Packed rows are of one width, whatever the data: then the command needs none."""
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    options = ["--model", "llama-3.2-1b", "--method", "lora", "--gpus", "h200", "--learning-rate", "2e-4", "--fast"]
    assert main([*options, *more, "--data", str(data), "--emit", str(tmp_path / "job")]) == 0
    capsys.readouterr()
    plan = json.loads((tmp_path / "job" / "plan.json").read_text())
    assert bool(plan["next_command"]) is bool(more)
    for command in filter(None, [plan["next_command"]]):
        assert main([*shlex.split(command.split(" > ")[0])[1:], "--fast"]) == 0
        assert json.loads(capsys.readouterr().out)["chosen"]["recipe"] == plan["chosen"]["recipe"]


@pytest.mark.parametrize(
    "options", ["--model llama-3.1-8b --gpus t4 --seq-len 8192", "--model llama-2-70b --gpus t4 --method qlora"]
)
def test_where_nothing_fits_the_next_command_is_one_that_does(capsys: pytest.CaptureFixture[str], options: str) -> None:
    assert main([*shlex.split(options), "--quiet", "--fast"]) == 3
    words = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert main([*words[1:], "--quiet", "--fast"]) == 0


def assumed(capsys: pytest.CaptureFixture[str], options: str) -> str:
    main([*shlex.split(options), "--fast", "--json"])
    return "\n".join(json.loads(capsys.readouterr().out)["assumptions"])


def test_a_network_between_nodes_that_nobody_described_is_an_assumption(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "--model llama-3.2-1b --gpus 4xl40s --nodes 2"
    assert "100 Gb/s network" in assumed(capsys, nodes)
    assert "network" not in assumed(capsys, f"{nodes} --link 25GB/s")


def test_a_budget_beyond_the_card_is_no_budget_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--vram-budget is more than" in assumed(capsys, "--model llama-3.2-1b --gpus t4 --vram-budget 40GiB")
    assert "--vram-budget" not in assumed(capsys, "--model llama-3.2-1b --gpus t4 --vram-budget 10GiB")


def test_a_model_made_for_shorter_sequences_is_planned_at_its_own_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert "sequences of 1024 tokens" in assumed(capsys, "--model gpt2-xl --gpus h200")
    assert "sequences of 2048 tokens" in assumed(capsys, "--model llama-3.2-1b --gpus h200")
    assert "beyond the 2048" in assumed(capsys, "--model tinyllama-1.1b --gpus h200 --seq-len 4096")
