"""The sentences of a plan: the next command gives the same plan again, whatever was asked for."""

import shlex

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
