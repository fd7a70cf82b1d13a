"""Whether weights have the chat template that jobs over messages need: most stop at their first row without one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from estimators.errors import BadInput
from planner.emit.order import Data, Order, Tool

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
ELSEWHERE = ("chat_template.jinja", "chat_template.json", "additional_chat_templates", "tekken.json")
"""Where else than in tokenizer_config.json a template may be; Mistral's own tokenizer (tekken.json) needs none."""
State = Literal["there", "missing", "unknown"]


def check_template(weights: str, data: Data | None, tools: Sequence[Tool]) -> None:
    """
    Raises:
        BadInput: a job would stop at its first conversation.
    """
    if _is_needed(data, tools) and state_of(weights) == "missing":
        raise BadInput(
            f"--data has messages, and these weights have no chat template ({weights[:120]!a}): use an instruct model, "
            "or examples of prompt and completion"
        )


def template_note(order: Order, tools: Sequence[Tool]) -> tuple[str, ...]:
    """For weights whose files are not at hand."""
    if not _is_needed(order.data, tools) or state_of(order.weights) != "unknown":
        return ()
    return (
        f"whether {order.weights} has a chat template could not be read here: if its tokenizer has none, as those of "
        "base models, the job stops at its first row (then use an instruct model, or prompt and completion)",
    )


def state_of(weights: str) -> State:
    """Of a checkpoint's folder; unknown of a Hub id, and where the tokenizer's files cannot be read."""
    folder = Path(weights)
    if not folder.is_absolute():
        return "unknown"
    if any((folder / name).exists() for name in ELSEWHERE):
        return "there"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return "unknown"
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError, RecursionError):
        return "unknown"
    if not isinstance(settings, dict):
        return "unknown"
    return "there" if settings.get("chat_template") else "missing"


def _is_needed(data: Data | None, tools: Sequence[Tool]) -> bool:
    started = any(tool.command is not None and not tool.own_template for tool in tools)
    return started and data is not None and data.kind == "messages"
