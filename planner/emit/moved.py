"""A configuration on its way into another folder: what it names beside it is found from there, and its secrets stay."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from estimators.errors import BadInput
from planner.emit.taken import MASKED
from planner.emit.yaml_read import Document, Position, parse
from planner.emit.yaml_text import scalar

PATHS = (
    "path", "data_files", "dataset_dir", "dataset_name", "deepspeed", "accelerate_config", "base_model",
    "model_name_or_path", "tokenizer_config", "tokenizer_name_or_path", "adapter_name_or_path", "lora_model_dir",
    "resume_from_checkpoint", "media_dir", "chat_template_path", "chat_template_jinja", "eval_data_files",
)  # fmt: skip
"""Keys that may name a file or a folder, or something on the Hub."""
SECRET = re.compile(r"(api_?key|secret|passw(or)?d|(hf|hub|hugging_?face(_hub)?|access|auth)_token)$", re.IGNORECASE)
FILE_LIKE = re.compile(r"\.{0,2}/.*|.*\.(jsonl?|parquet|csv|txt|arrow|ya?ml)")
FACTORY_TABLE = "data/dataset_info.json"
"""Where LLaMA-Factory looks for its table of data unless it is told."""
INSTEAD = "null  # a secret, not copied: set it here"
Edits = dict[Position, str]
"""What stands at a place of the text from now on. An alias repeats a place, which is edited once."""


class Value(NamedTuple):
    """A scalar of the file."""

    key: str
    """The nearest key above it."""
    node: Any
    flow: bool
    """Whether it stands inside brackets, where no comment may follow it."""


class Moved(NamedTuple):
    """The text to write, the user's own without its secrets, and what was done."""

    document: Document
    before: str
    notes: tuple[str, ...]


def move(document: Document, tool: str, replaced: Collection[str] = ()) -> Moved:
    """Nothing is said of the keys that are about to be `replaced`.

    Raises:
        BadInput: without its secrets it is no YAML (an anchor stood on one).
    """
    secrets: Edits = {}
    paths: Edits = {}
    notes = []
    for value in _values(yaml.compose(document.text, Loader=yaml.SafeLoader)):
        place, text = (value.node.start_mark.index, value.node.end_mark.index), value.node.value
        if _is_secret(value):
            ending = "\n" if document.text[slice(*place)].endswith("\n") else ""
            secrets[place] = ("null" if value.flow else INSTEAD) + ending
            notes.append(f"{value.key} is a secret and was not copied: set it in the file, or in the environment")
        elif value.key in PATHS and (found := _found(text, document.where)):
            paths[place] = scalar(str(found))
        elif value.key in replaced:
            continue
        elif value.key in PATHS and not Path(text).is_absolute() and FILE_LIKE.fullmatch(text):
            notes.append(f"{value.key} {text}: nothing of that name is here; it is looked for in the new folder")
    before = _edited(document.text, secrets)
    after = _edited(document.text, {**paths, **secrets})
    if tool == "llamafactory" and "dataset_dir" not in document.table and (found := _found(FACTORY_TABLE, "")):
        after = (after if after.endswith("\n") else after + "\n") + f"dataset_dir: {scalar(str(found.parent))}\n"
    try:
        return Moved(parse(after, document.where), before, tuple(dict.fromkeys(notes)))
    except BadInput:
        raise BadInput(f"{document.where}: an anchor stands on a secret, which is not copied: take it out") from None


def _values(root: Any) -> Iterator[Value]:
    waiting = [Value("", root, False)]
    while waiting:
        key, node, flow = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            yield Value(key, node, flow)
            continue
        inner = flow or bool(node.flow_style)
        if isinstance(node, yaml.MappingNode):
            waiting += [Value(str(name.value), child, inner) for name, child in node.value]
        else:
            waiting += [Value(key, child, inner) for child in node.value]


def _is_secret(value: Value) -> bool:
    named = value.key.lower() in MASKED or SECRET.search(value.key)
    return bool(named) and value.node.tag.endswith((":str", ":int", ":float")) and bool(value.node.value)


def _found(text: str, where: str) -> Path | None:
    """What a relative name means where the command is run, else beside the file."""
    if not text or Path(text).is_absolute() or len(text) > 4096 or "\0" in text:
        return None
    for folder in (Path.cwd(), Path(where).absolute().parent):
        try:
            if (folder / text).exists():
                return (folder / text).resolve()
        except OSError:
            continue
    return None


def _edited(text: str, edits: Edits) -> str:
    for (start, end), entry in sorted(edits.items(), reverse=True):
        text = text[:start] + entry + text[end:]
    return text
