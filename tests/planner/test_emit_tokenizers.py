"""What written files take from a checkpoint's tokenizer: ends of turns, the beginning of texts, the template's name."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

pytest.importorskip("trl", reason="trl is not installed")

from estimators.recipe import Recipe
from planner.emit import axolotl, llamafactory
from planner.emit.order import DataKind
from planner.emit.tokenizer_files import special_tokens_of_turns, text_begins_with, weights_type
from planner.emit.tools import TOOLS, write_for
from tests.planner.emit_cases import MODEL, adapter_of, order
from tests.runners.test_turns import tokenizer_of


def checkpoint(folder: Path, template: str, *, eos: str = "<eos>", begins: str | None = None) -> str:
    """A folder with a real tokenizer, and the configuration beside it."""
    import tokenizers

    made = tokenizer_of(template)
    made.eos_token = eos
    if begins:
        made.add_tokens([tokenizers.AddedToken(begins, special=True)])
        place = made.convert_tokens_to_ids(begins)
        made.backend_tokenizer.post_processor = tokenizers.processors.Sequence([
            tokenizers.processors.ByteLevel(trim_offsets=False),
            tokenizers.processors.TemplateProcessing(single=f"{begins} $A", special_tokens=[(begins, place)]),
        ])  # fmt: skip
        assert made("a")["input_ids"][0] == place
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32"}))
    return str(folder)


def written(tool: str, weights: str, kind: DataKind = "messages", **changes: Any) -> tuple[dict[str, Any], str]:
    """The YAML, and what is said beside it."""
    one = order(Recipe(model=MODEL, adapter=adapter_of("lora"), **changes), kind, weights=weights, steps=4)
    file = {"axolotl": axolotl.FILE, "llamafactory": llamafactory.FILE}[tool]
    return yaml.safe_load(write_for(one, [tool]).files[file]), " ".join(TOOLS[tool].notes(one))


def test_axolotl_is_told_what_ends_a_turn_where_that_is_not_the_end_of_text(tmp_path: Path) -> None:
    found, notes = written("axolotl", checkpoint(tmp_path / "a", "qwen2_5"))
    assert "<|im_end|>" in found["eot_tokens"] and axolotl.ENDS_NOTE not in notes
    same, _ = written("axolotl", checkpoint(tmp_path / "b", "qwen2_5", eos="<|im_end|>"))
    assert "eot_tokens" not in same
    unread, notes = written("axolotl", "Qwen/Qwen2.5-1.5B")
    assert "eot_tokens" not in unread and axolotl.ENDS_NOTE in notes
    assert axolotl.ENDS_NOTE in written("axolotl", checkpoint(tmp_path / "c", "phi3"))[1]
    assert "eot_tokens" not in written("axolotl", str(tmp_path / "a"), "completion")[0]


def test_axolotl_cuts_long_rows_warms_up_as_long_and_prepares_rows_anew(tmp_path: Path) -> None:
    found, notes = written("axolotl", "x/y", gradient_accumulation=4)
    assert (found["excess_length_strategy"], found["warmup_steps"]) == ("truncate", 1)
    assert axolotl.WEIGHED_NOTE in notes and axolotl.WEIGHED_NOTE not in written("axolotl", "x/y")[1]
    command = TOOLS["axolotl"].command
    one = order(Recipe(model=MODEL, adapter=adapter_of("lora")))
    assert command is not None and command(one).startswith("axolotl preprocess axolotl.yaml && ")
    assert yaml.safe_load(write_for(one, ["axolotl"]).files[axolotl.FILE])["warmup_ratio"] == 0.1


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("llama3_2", "llama3"), ("gemma3", "gemma"), ("phi3", "phi"), ("qwen3", "qwen3_nothink"), ("qwen2_5", None),
    ],
)  # fmt: skip
def test_llamafactory_is_told_the_template_that_it_takes_apart_wrongly(
    template: str, name: str | None, tmp_path: Path
) -> None:
    weights = checkpoint(tmp_path / "weights", template)
    assert written("llamafactory", weights)[0].get("template") == name


def test_of_a_hub_id_llamafactorys_template_is_known_by_its_name_or_the_doubt_is_said() -> None:
    found, notes = written("llamafactory", "meta-llama/Llama-3.2-1B-Instruct")
    assert found["template"] == "llama3" and "by trial" not in notes
    for other in (
        "mistralai/Mistral-7B-Instruct-v0.1",
        "NousResearch/Hermes-3-Llama-3.1-8B",
        "Qwen/Qwen3-4B-Thinking-2507",
    ):
        found, notes = written("llamafactory", other)
        assert "template" not in found and "by trial" in notes, other


def test_llamafactory_begins_completions_as_the_tokenizer_does(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "a", "qwen2_5", begins="<begin>")
    found, notes = written("llamafactory", weights, "completion")
    assert (found["template"], found["default_system"]) == ("empty", "<begin>")
    assert llamafactory.BEGINNING_NOTE not in notes
    found, _ = written("llamafactory", checkpoint(tmp_path / "b", "qwen2_5"), "completion")
    assert "default_system" not in found
    assert llamafactory.BEGINNING_NOTE in written("llamafactory", "x/y", "completion")[1]


def test_llamafactory_is_doubted_where_the_checkpoint_is_of_another_type(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "a", "qwen2_5")
    one = order(Recipe(model=MODEL, adapter=adapter_of("lora")), weights=weights)
    assert (
        "loads the base in float32, as the checkpoint has it"
        in write_for(one, ["llamafactory"]).files[llamafactory.FILE]
    )


def test_a_folder_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    for text in (
        "[",
        "[1]",
        '{"added_tokens": [3], "post_processor": {"processors": [{"single": [0]}]}}',
        '{"post_processor": {"single": [{"SpecialToken": null}]}}',
    ):
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            (tmp_path / name).write_text(text)
        weights = str(tmp_path)
        assert (special_tokens_of_turns(weights), text_begins_with(weights), weights_type(weights)) == ((), None, None)
