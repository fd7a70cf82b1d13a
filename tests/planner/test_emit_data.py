"""What `plan --emit --data` says of the examples: how many they are, and whether the weights can read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from estimators.recipe import Recipe
from planner.__main__ import main
from planner.emit.chat_template import check_template, state_of
from planner.emit.data import data_of
from planner.emit.folder import emit
from planner.emit.tools import find_tool, write_for
from tests.planner.emit_cases import adapter_of, order
from tests.runners import tiny_checkpoint

CARD = ("--gpus", "rtx-4090", "--fast", "--method", "lora")
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PAIR = {"prompt": "a b", "completion": " c"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()  # what libraries print as checkpoints are made
        code = main(words)
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint as base models are: with a tokenizer that has no chat template."""
    folder = tiny_checkpoint.make(tmp_path / "base")
    for path in folder.glob("chat_template*"):
        path.unlink()
    tiny_checkpoint.tokenizer(None).save_pretrained(folder)
    return folder


def file_of(path: Path, example: dict[str, Any], count: int = 1) -> str:
    return tiny_checkpoint.file_of(path / "examples.jsonl", [example] * count)


@pytest.mark.parametrize("tool", ["transformers", "trl", "axolotl", "unsloth", "slurm"])
def test_messages_are_refused_for_weights_without_a_chat_template(
    plan: Run, base: Path, tmp_path: Path, tool: str
) -> None:
    words = ("--model", str(base), *CARD, "--emit", str(tmp_path / "job"), "--for", tool, "--data")
    code, out, err = plan(*words, file_of(tmp_path, CHAT))
    assert (code, out) == (2, "") and len(err.splitlines()) == (2 if tool == "trl" else 1)
    assert "no chat template" in err and "use an instruct model, or examples of prompt and completion" in err
    assert not (tmp_path / "job").exists()


def test_what_needs_no_template_is_written(plan: Run, base: Path, tmp_path: Path) -> None:
    words = ("--model", str(base), *CARD, "--emit")
    assert plan(*words, str(tmp_path / "pairs"), "--data", file_of(tmp_path, PAIR))[0] == 0
    factory = ("--precision", "bf16", "--for", "llamafactory", "--data", file_of(tmp_path, CHAT))
    code, out, _ = plan(*words, str(tmp_path / "factory"), *factory)
    assert code == 0 and "name one of its own templates" in " ".join(out.split())
    (base / "chat_template.jinja").write_text(tiny_checkpoint.CHATML)
    code, out, _ = plan(*words, str(tmp_path / "chat"), "--data", file_of(tmp_path, CHAT))
    assert code == 0 and "could not be read" not in out


def test_of_a_hub_id_the_note_says_when_the_job_stops(plan: Run, tmp_path: Path) -> None:
    words = ("--model", "llama-3.2-1b", *CARD, "--emit", str(tmp_path / "job"), "--data")
    code, out, _ = plan(*words, file_of(tmp_path, CHAT), "--json")
    (note,) = (note for note in json.loads(out)["emitted"]["notes"] if "chat template" in note)
    assert code == 0 and "if its tokenizer has none, as those of base models, the job stops at its first row" in note
    assert note in (tmp_path / "job" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "text", "state"),
    [
        ("tokenizer_config.json", '{"chat_template": ""}', "missing"),
        ("tokenizer.json", "{}", "missing"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "x"}]}', "there"),
        ("chat_template.jinja", "x", "there"),
        ("tokenizer_config.json", "[1]", "unknown"),
        ("tokenizer_config.json", "{", "unknown"),
        ("model.safetensors", "", "unknown"),
    ],
)
def test_only_a_tokenizer_that_was_read_is_said_to_have_no_template(
    tmp_path: Path, name: str, text: str, state: str
) -> None:
    (tmp_path / name).write_text(text)
    assert state_of(str(tmp_path)) == state
    if state != "missing":
        check_template(str(tmp_path), data_of(file_of(tmp_path, CHAT)), [find_tool("trl")])


def test_the_files_say_how_much_there_is_to_learn(plan: Run, tmp_path: Path) -> None:
    words = ("--model", "llama-3.2-1b", *CARD, "--global-batch", "16", "--data", file_of(tmp_path, PAIR, 120), "--emit")
    code, out, _ = plan(*words, str(tmp_path / "job"))
    assert code == 0 and "120 examples: 8 steps of 16 an epoch" in " ".join(out.split())
    assert "120 examples: 8 steps of 16 an epoch" in (tmp_path / "job" / "README.md").read_text()
    code, out, _ = plan(*words, str(tmp_path / "packed"), "--packing", "--seq-len", "512", "--json")
    found = json.loads(out)["emitted"]
    assert code == 0 and found["data"] == "120 examples, joined into rows of 512 tokens: 16 rows a step"


@pytest.mark.parametrize("tool", ["transformers", "unsloth", "slurm"])
@pytest.mark.parametrize(("letters", "short"), [(400, True), (600, False)])
def test_data_shorter_than_one_packed_row_are_said_to_be(tmp_path: Path, tool: str, letters: int, short: bool) -> None:
    recipe = Recipe(model="llama-3.2-1b", adapter=adapter_of("lora"), packing=True, sequence_length=512)
    data = data_of(file_of(tmp_path, {"prompt": "é" * (letters // 2), "completion": "b"}))
    one = order(recipe, data=data)
    notes = emit(tmp_path / "job", one, write_for(one, [tool]), "{}").notes
    assert sum("no row to learn" in note for note in notes) == short
