"""The user's examples, each checked, and what stands where none were given."""

from collections.abc import Mapping
from pathlib import Path

from estimators.errors import BadInput
from planner.emit.order import Data

PLACEHOLDER = "NO-DATA-YET-give-plan-the-option-data.jsonl"
"""Named by every file that was written without --data: the tools say that there is no such file."""


def data_of(path: str) -> Data:
    """
    Raises:
        BadInput: the file cannot be read, or a line is no example, or examples are of both kinds.
    """
    from runners.examples import read_examples

    try:
        examples = read_examples(Path(path))
    except ValueError as error:  # a NUL in the name
        raise BadInput(f"--data {path[:120]!a}: {error}") from None
    except BadInput as error:
        raise BadInput(f"--data {error}") from None
    kinds = {"messages" in example for example in examples}
    if len(kinds) > 1:
        raise BadInput(
            f"--data {path[:120]!a}: has both messages and prompts with completions, and a trainer reads one"
        )
    if not kinds.pop():
        return Data(path=str(Path(path).absolute()), kind="completion")
    answered = all(any(map(_is_answer, example["messages"])) for example in examples)
    return Data(path=str(Path(path).absolute()), kind="messages", answered=answered)


def _is_answer(message: Mapping[str, str]) -> bool:
    return message["role"] == "assistant" and bool(message["content"].strip())


def path_of(data: Data | None) -> str:
    return data.path if data else PLACEHOLDER
