"""What a checkpoint's folder says of its tokenizer: its chat template, what ends a turn in it, what begins a text."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def template_in(weights: str) -> str | None:
    """The chat template of a checkpoint's folder; None for a Hub id, whose files are not at hand."""
    folder = Path(weights)
    if not folder.is_absolute():
        return None
    try:
        if (page := folder / "chat_template.jinja").is_file():
            return page.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = _table(folder / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def special_tokens_of_turns(weights: str) -> tuple[str, ...]:
    """The special tokens that the chat template names, where the end of text is none of them."""
    template, eos = template_in(weights), _end_of_text(weights)
    if template is None or "eos_token" in template or (eos and eos in template):
        return ()
    return tuple(one for one in _special(weights) if one in template)


def text_begins_with(weights: str) -> str | None:
    """The special token that the tokenizer puts before every text; None: none, or its files are not at hand."""
    for processor in _processors(_table(Path(weights) / "tokenizer.json").get("post_processor")):
        pieces = processor.get("single")
        first = pieces[0] if isinstance(pieces, list) and pieces else None
        token = first.get("SpecialToken") if isinstance(first, dict) else None
        name = token.get("id") if isinstance(token, dict) else None
        if isinstance(name, str):
            return name
    return None


def weights_type(weights: str) -> str | None:
    """The data type of a checkpoint, as its configuration has it."""
    config = _table(Path(weights) / "config.json")
    found = config.get("dtype") or config.get("torch_dtype")
    return found if isinstance(found, str) else None


def _end_of_text(weights: str) -> str | None:
    found = _table(Path(weights) / "tokenizer_config.json").get("eos_token")
    content = found.get("content") if isinstance(found, dict) else found
    return content if isinstance(content, str) else None


def _special(weights: str) -> Iterator[str]:
    added = _table(Path(weights) / "tokenizer.json").get("added_tokens")
    for one in added if isinstance(added, list) else ():
        if isinstance(one, dict) and one.get("special") and isinstance(one.get("content"), str):
            yield one["content"]


def _processors(found: Any) -> Iterator[Mapping[str, Any]]:
    """A sequence of post-processors holds others."""
    if isinstance(found, dict):
        yield found
        inner = found.get("processors")
        for one in inner if isinstance(inner, list) else ():
            yield from _processors(one)


def _table(path: Path) -> Mapping[str, Any]:
    """Of a file at hand; empty where there is none, or none that can be read."""
    if not path.is_absolute():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
