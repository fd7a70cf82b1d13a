"""`plan sweep` from the command line: a real sweep that learns, killed and gone on with; what is refused, and how."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("optuna", reason="optuna is not installed")
pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")

from estimators.errors import BadInput, NoUsableGpu, PlanError, UnknownName
from planner.cli import command
from planner.commands.sweep import STORAGE
from tests.planner.kills import survivors
from tests.runners import tiny_checkpoint
from tests.runners.tiny_job import CONFIG

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 300.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint.file_of(folder / "echo.jsonl", tiny_checkpoint.echoes(200))
    return tiny_checkpoint.make(folder)


def words(checkpoint: Path, folder: Path) -> list[str]:
    return [
        "sweep", "--model", str(checkpoint), "--data", str(checkpoint / "echo.jsonl"), "--cpu", "--ranks", "2,4,8",
        "--steps", "16", "--seq-len", "16", "--global-batch", "8", "--learning-rates", "5e-2", "--targets",
        "all-linear", "--schedule", "constant", "--repeats", "0", "--folder", str(folder / "sweep"), "--store",
        str(folder / "store.sqlite"), "--json",
    ]  # fmt: skip


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    command_line = [sys.executable, "-W", "ignore", "-m", "planner", *arguments]
    return subprocess.Popen(command_line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_real_sweep_learns_and_survives_kill_9(checkpoint: Path, tmp_path: Path) -> None:
    """Three ranks of a tiny model: every loss falls below the untrained model's, whoever kills the supervisor."""
    process = start(words(checkpoint, tmp_path))
    first, until = tmp_path / "sweep/trials/0001-1/job.json", time.monotonic() + PATIENCE_SECONDS
    while not first.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert survivors(tmp_path / "sweep") == []
    again = start(words(checkpoint, tmp_path))
    out, err = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, err
    done: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert done["resumed"] == 1
    assert [one["recipe"]["adapter"]["rank"] for one in done["trials"]] == [2, 4, 8]
    assert [one["recipe"]["adapter"]["alpha"] for one in done["trials"]] == [8, 16, 32]
    assert all(one["loss"] < one["untrained_loss"] - 0.3 for one in done["trials"]), done["trials"]
    assert done["recommendation"]["number"] in (0, 1, 2)
    stored = CliRunner().invoke(command, ["history", "--store", str(tmp_path / "store.sqlite"), "--json"])
    assert {one["job"] for one in json.loads(stored.stdout)["runs"]} == {one["job"] for one in done["trials"]}


def refusal(*more: str, environment: dict[str, str] | None = None) -> BaseException | None:
    done = CliRunner().invoke(command, ["sweep", *more], standalone_mode=False, env=environment)
    return done.exception


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--model is missing"),
        (["--cpu", "--model", "llama-3.2-1b"], "--data is missing"),
        (["--cpu", "--model", "llama-3.2-1b", "--data", "x.jsonl", "--weights", "."], "x.jsonl"),
        (["--cpu", "--model", "llama-3.2-1b", "--objective", "memory"], "needs a GPU"),
        (["--cpu", "--model", "gpt2", "--objective", "speed", "--steps", "5", "--tokens-per-trial", "9"], "not both"),
        (["--cpu", "--model", "llama-3.2-1b", "--objective", "speed", "--storage", "redis://h/0"], "--storage"),
        (["--cpu", "--model", "llama-3.2-1b", "--objective", "speed", "--methods", "lorra"], "lorra"),
        (["--cpu", "--model", "llama-3.2-1b", "--ranks", "0"], "--ranks"),
        (["--model", "llama-3.2-1b", "--gpus", "h200"], "leave --gpus at auto"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(more: list[str], said: str) -> None:
    found = refusal(*more)
    assert isinstance(found, (BadInput, UnknownName)), found
    assert said in str(found)


def test_without_a_gpu_the_cpu_is_never_taken_silently() -> None:
    found = refusal("--model", "llama-3.2-1b", "--objective", "speed")
    assert isinstance(found, NoUsableGpu)
    assert "--cpu" in str(found)


def test_data_need_a_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    """--model's own folder is where the weights are looked for; a config alone has none."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    found = refusal("--cpu", "--model", str(config), "--data", str(checkpoint / "echo.jsonl"))
    assert isinstance(found, BadInput)
    assert "--weights" in str(found)


def test_a_password_in_the_environment_is_not_shown_and_not_passed_on(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    url = "postgresql+psycopg://me:hunter2%21@127.0.0.1:1/none?sslpassword=canary"
    found = refusal("--cpu", "--model", str(config), "--objective", "speed", "--folder", str(tmp_path / "sweep"),
                    "--verbose", environment={STORAGE: url})  # fmt: skip
    assert isinstance(found, PlanError), found
    assert "***" in str(found)
    text = str(found) + repr(found) + "".join(map(str, (found.__cause__,)))
    assert not any(secret in text for secret in ("hunter2", "canary"))
    assert STORAGE not in os.environ
