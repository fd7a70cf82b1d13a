"""What the written jobs learn of an example: what a trial of `plan sweep` or `plan measure` learns of it."""

import ast
import contextlib
import hashlib
import json
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from estimators.recipe import Recipe
from planner.emit import llamafactory, transformers, trl, trl_templates, unsloth
from planner.emit.data import data_of
from planner.emit.tokenizer_files import template_in
from planner.emit.tools import write_for
from runners.chat import NOT_LEARNED
from runners.data import learned, tokenize
from tests.planner.emit_cases import adapter_of, order
from tests.runners import tiny_checkpoint, tiny_job
from tests.runners.test_data import MARKED, THINKING
from tests.runners.tiny_checkpoint import CHATML, bytes_tokenizer

TURNS = (("system", "i"), ("user", "a b"), ("assistant", "c d"), ("user", "e"), ("assistant", "f c d"))
CHAT = {"messages": [{"role": role, "content": said} for role, said in TURNS]}
UNANSWERED = {"messages": CHAT["messages"][:2]}
PAIRS = [{"prompt": "a b", "completion": " c d"}, {"prompt": "a " * 99, "completion": " c"}]
Labels = list[list[int]]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tools' own, about names that their next version drops
        yield


@contextlib.contextmanager
def job(tool: str, folder: Path, examples: Sequence[Any], template: str = CHATML, **changes: Any) -> Iterator[Any]:
    """The files of a job over a tiny checkpoint, with the tokenizer that they name."""
    weights = tiny_checkpoint.make(folder / "weights")
    tokenizer = tiny_checkpoint.tokenizer(template)
    tokenizer.save_pretrained(weights)
    data = data_of(tiny_checkpoint.file_of(folder / "examples.jsonl", examples))
    recipe = tiny_job.recipe(**({"sequence_length": 40} | changes))
    yield write_for(order(recipe, weights=str(weights), data=data, steps=2), [tool]).files, tokenizer


def functions_of(text: str) -> types.ModuleType:
    """A script without what it imports from packages that need a GPU."""
    kept = [
        node for node in ast.parse(text).body
        if not (isinstance(node, ast.ImportFrom) and node.module in ("unsloth", "trl", "datasets"))
    ]  # fmt: skip
    module = types.ModuleType("emitted")
    exec(compile(ast.Module(kept, []), "emitted", "exec"), module.__dict__)
    return module


def of_the_trials(examples: Sequence[Any], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    rows = [tokenize(example, tokenizer, 40) for example in examples]
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in rows if learned(row)]


@pytest.mark.parametrize(("tool", "file"), [("transformers", transformers.FILE), ("unsloth", unsloth.FILE)])
@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING])
@pytest.mark.parametrize("examples", [[CHAT, UNANSWERED], PAIRS], ids=["messages", "pairs"])
def test_a_script_learns_what_the_trials_learn(
    tool: str, file: str, template: str, examples: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"weights": "bfloat16", "compute": "bfloat16"}  # what Unsloth has
    with job(tool, tmp_path, examples, template, **both) as (files, tokenizer):
        rows = functions_of(files[file]).rows_of(tokenizer)
    found = [(row["input_ids"], row["labels"]) for row in rows]
    assert found == of_the_trials(examples, tokenizer) and len(found) == 1
    said = tokenizer.decode([label for label in found[0][1] if label != NOT_LEARNED])
    assert "c d" in said and not {"a", "b", "i", "e", "user", "system"} & set(said.split())
    assert "left out, with nothing to learn within 40 tokens: 1" in capsys.readouterr().err


def test_a_script_can_learn_everything_and_stops_where_turns_cannot_be_told(tmp_path: Path) -> None:
    backwards = "{% for message in messages | reverse %}{{ message['role'] }} {{ message['content'] }}\n{% endfor %}"
    with job("transformers", tmp_path, [CHAT], backwards) as (files, tokenizer):
        script = functions_of(files[transformers.FILE])
        with pytest.raises(SystemExit, match="COMPLETION_ONLY = False"):
            script.rows_of(tokenizer)
        script.COMPLETION_ONLY = False  # type: ignore[attr-defined]
        (row,) = script.rows_of(tokenizer)
    assert row["labels"] == row["input_ids"] and len(row["labels"]) > 10


@pytest.mark.parametrize("packing", [False, True])
def test_the_script_runs_as_it_is(packing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations without an answer among them: a row with nothing to learn has no loss."""
    adapter = adapter_of("lora")
    examples = [CHAT, UNANSWERED] * 4
    with job("transformers", tmp_path, examples, adapter=adapter, packing=packing, sequence_length=24) as (files, _):
        script = functions_of(files[transformers.FILE])
    script.ARGUMENTS |= {"use_cpu": True, "logging_steps": 1}  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    script.main()
    (state,) = Path("trained-transformers").glob("checkpoint-*/trainer_state.json")
    losses = [one["loss"] for one in json.loads(state.read_text())["log_history"] if "loss" in one]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    assert Path("trained-transformers/adapter_model.safetensors").is_file()


def labels_of_trl(files: dict[str, str], folder: Path) -> tuple[Labels, Labels]:
    """What SFTTrainer makes of the examples that train.yaml names."""
    import datasets  # type: ignore[import-untyped]
    from trl.scripts.sft import make_parser
    from trl.trainer.sft_trainer import SFTTrainer

    (folder / trl.FILE).write_text(files[trl.FILE])
    words = ["--config", str(folder / trl.FILE), "--use_cpu", "true", "--output_dir", str(folder / "out")]
    _, settings, model, data = make_parser().parse_args_and_config(words)
    assert data.datasets[0].path == "json"
    examples = datasets.Dataset.from_list(
        list(map(json.loads, Path(data.datasets[0].data_files).read_text().splitlines()))
    )
    trainer = SFTTrainer(model=model.model_name_or_path, args=settings, train_dataset=examples)
    rows: Any = trainer.train_dataset
    return rows["input_ids"][:], rows["labels"][:]


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize("examples", [[CHAT], PAIRS], ids=["messages", "pairs"])
def test_trl_learns_what_the_trials_learn_or_says_what_it_learns(
    template: str, examples: list[Any], tmp_path: Path
) -> None:
    with job("trl", tmp_path, examples, template, trainer="trl") as (files, tokenizer):
        tokens, labels = labels_of_trl(files, tmp_path)
    ((wanted_tokens, wanted_labels),) = of_the_trials(examples, tokenizer)
    assert tokens == [wanted_tokens]
    if template == CHATML and examples == [CHAT]:
        assert labels == tokens and "# TRL learns whole conversations here" in files[trl.FILE]
    else:
        assert labels == [wanted_labels] and "whole conversations" not in files[trl.FILE]


def test_trl_does_not_stop_at_a_conversation_without_an_answer(tmp_path: Path) -> None:
    with job("trl", tmp_path, [CHAT, UNANSWERED], MARKED, trainer="trl") as (files, _):
        tokens, labels = labels_of_trl(files, tmp_path)
    assert labels == tokens and "without a turn of the assistant" in files[trl.FILE]


def templates_of_trl() -> list[Path]:
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    return [path for path in sorted(folder.glob("*.jinja")) if not path.stem.endswith("_training")]


def test_the_templates_that_trl_can_take_apart_are_those_of_the_installed_one() -> None:
    from trl.chat_template_utils import get_training_chat_template

    able = {}
    for path in templates_of_trl():
        tokenizer = bytes_tokenizer(path.read_text(encoding="utf-8"))
        with contextlib.suppress(Exception):  # it takes no texts, or TRL has no template of its own for it
            template = get_training_chat_template(tokenizer)
            words = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
            found = tokenizer.apply_chat_template(CHAT["messages"][1:], chat_template=template, **words)
            pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
            said = tokenizer.decode([token for token, one in pairs if one])
            if template and said.count("c d") == 2 and "a b" not in said:
                able[hashlib.sha256(path.read_bytes()).hexdigest()[:16]] = path.stem
    assert able == trl_templates.KNOWN


@pytest.mark.parametrize("known", ["llama3", "qwen2_5", "qwen3"])
def test_trl_takes_the_usual_templates_apart(known: str, tmp_path: Path) -> None:
    """The real trainer, over a checkpoint with the template as its makers wrote it."""
    path = next(path for path in templates_of_trl() if path.stem == known)
    template = path.read_text(encoding="utf-8")
    with job("trl", tmp_path, [CHAT], template, trainer="trl", sequence_length=300) as (files, _):
        assert yaml.safe_load(files[trl.FILE])["assistant_only_loss"] is True
    tokenizer = bytes_tokenizer(template)
    tokenizer.save_pretrained(tmp_path / "weights")
    (labels,) = labels_of_trl(files, tmp_path)[1]
    said = tokenizer.decode([label for label in labels if label != NOT_LEARNED])
    wanted = tokenize(CHAT, tokenizer, 300)["labels"]
    assert said.count("c d") == 2 and "f c d" in said and not any(word in said for word in ("a b", "user", "system"))
    if known == "llama3":  # the others' have the line's ends learned as well
        assert labels == wanted.tolist()


def test_templates_that_trl_cannot_take_apart_are_learned_whole(tmp_path: Path) -> None:
    (path,) = (path for path in templates_of_trl() if path.stem == "llama3_2")
    (tmp_path / "chat_template.jinja").write_text(path.read_text(encoding="utf-8"))
    assert "none of its own" in str(trl_templates.objection(str(tmp_path)))
    assert "could not be read" in str(trl_templates.objection("meta-llama/Llama-3.2-1B-Instruct"))
    for broken in ("[1]", "{", '{"chat_template": 3}'):
        (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        (tmp_path / "tokenizer_config.json").write_text(broken)
        assert template_in(str(tmp_path)) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": MARKED}))
    assert trl_templates.objection(str(tmp_path)) is None


def test_axolotl_and_llamafactory_are_told_whose_turns_to_learn() -> None:
    recipe = Recipe(model="llama-3.2-1b", adapter=adapter_of("lora"))
    one = order(recipe, kind="messages")
    found = yaml.safe_load(write_for(one, ["axolotl"]).files["axolotl.yaml"])
    (data,) = found["datasets"]
    assert (data["roles_to_train"], data["train_on_eos"], found["train_on_inputs"]) == (["assistant"], "turn", False)
    text = write_for(one, ["llamafactory"]).files[llamafactory.FILE]
    found = yaml.safe_load(text)
    assert (found["train_on_prompt"], found["mask_history"]) == (False, False)
    assert f"# {llamafactory.TURNS_NOTE}\n" in text
