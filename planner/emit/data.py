"""The user's examples, each checked, and what stands where none were given."""

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
        kinds = {"messages" in example for example in read_examples(Path(path))}
    except ValueError as error:  # a NUL in the name
        raise BadInput(f"--data {path[:120]!a}: {error}") from None
    except BadInput as error:
        raise BadInput(f"--data {error}") from None
    if len(kinds) > 1:
        raise BadInput(
            f"--data {path[:120]!a}: has both messages and prompts with completions, and a trainer reads one"
        )
    return Data(path=str(Path(path).absolute()), kind="messages" if kinds.pop() else "completion")


def path_of(data: Data | None) -> str:
    return data.path if data else PLACEHOLDER
