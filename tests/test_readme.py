"""The README says what is true: its session, its figures, its commands, its tree, its links."""

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.readme import accuracy, session
from estimators.models import load_config
from planner.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [command for command in dict.fromkeys(re.findall(r"`(plan [^`]+)`", TEXT)) if "recipe.json" not in command]


def part(name: str) -> str:
    return TEXT.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def test_the_session_is_what_the_command_prints() -> None:
    assert part("session") == session()


def test_the_errors_are_those_of_the_measured_runs() -> None:
    assert part("accuracy") == accuracy()


def test_accuracy_md_is_current() -> None:
    from benchmarks.accuracy import document

    assert (ROOT / "accuracy.md").read_text() == document()


NEEDS_A_GPU = ("calibrate", "measure", "sweep")
"""They say so, and end with 4, where there is none."""
EXAMPLE = '{"prompt": "What is a GPU?", "completion": "A card with many cores."}'
AXOLOTL = """base_model: meta-llama/Llama-3.1-8B
adapter: lora
lora_r: 16
lora_alpha: 64
lora_target_modules: [q_proj, v_proj]
sequence_len: 2048
micro_batch_size: 4
gradient_accumulation_steps: 4
optimizer: adamw_torch_fused
bf16: true
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands name, in the folder that they run in."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine.jsonl", "train.jsonl"):
        Path(name).write_text(f"{EXAMPLE}\n" * 20)
    Path("axolotl.yaml").write_text(AXOLOTL)
    Path("checkpoint").mkdir()
    Path("checkpoint/config.json").write_text(json.dumps(dict(load_config("llama-3.2-1b").fields)))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in shlex.split(command)[1:] if word not in ("auto",)]
    if "--gpus" in words and words.index("--gpus") == len(words) - 1:
        words[-1:] = ["--gpus", "h200"]
    if words[0] in NEEDS_A_GPU:
        assert main(words) in (0, 4)
        return
    assert main(words) in (0, 3)
    assert capsys.readouterr().out


def test_the_two_commands_stand_as_they_must() -> None:
    blocks = re.findall(r"```\n(python3 [^\n]+)\n```", TEXT)
    assert len(blocks) == 2
    assert blocks[0].endswith(".venv/bin/plan --model llama-7b --gpus auto")
    assert "requirements/all.lock" in blocks[1] and blocks[1].endswith(".venv/bin/pytest")


def test_the_tree_names_what_is_there() -> None:
    tree = TEXT.split("## The tree")[1].split("```")[1]
    folder = ROOT
    for line in tree.strip().splitlines():
        names = line.split("  ")[0 if not line.startswith(" ") else 1].split()
        if line.startswith(" "):
            names = re.split(r"\s{2,}", line.strip())[0].split()
            for name in names:
                path = folder / name if name.endswith("/") else folder / f"{name}.py"
                assert path.exists(), f"the tree names {path.relative_to(ROOT)}"
        else:
            folder = ROOT / names[0]
            assert folder.is_dir(), f"the tree names {names[0]}"


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
