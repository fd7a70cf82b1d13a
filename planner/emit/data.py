"""The user's examples, each checked, and what stands where none were given."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from estimators.errors import BadInput
from planner.emit.order import Data, Order

PLACEHOLDER = "NO-DATA-YET-give-plan-the-option-data.jsonl"
"""Named by every file that was written without --data: the tools say that there is no such file."""


AROUND_A_PAIR, AROUND_A_TURN, AROUND_A_CONVERSATION = 8, 32, 256
"""Tokens that tokenizers and chat templates add, generously."""


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
    talks = kinds.pop()
    return Data(
        path=str(Path(path).absolute()),
        kind="messages" if talks else "completion",
        answered=not talks or all(any(map(_is_answer, example["messages"])) for example in examples),
        examples=len(examples),
        most_tokens=sum(map(_most_tokens, examples)),
    )


def _most_tokens(example: Mapping[str, Any]) -> int:
    """No tokenizer makes more than one token of a byte, but for what stands around the texts."""
    if "messages" not in example:
        return _size(example["prompt"]) + _size(example["completion"]) + AROUND_A_PAIR
    return AROUND_A_CONVERSATION + sum(_size(one["content"]) + AROUND_A_TURN for one in example["messages"])


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _is_answer(message: Mapping[str, str]) -> bool:
    return message["role"] == "assistant" and bool(message["content"].strip())


def path_of(data: Data | None) -> str:
    return data.path if data else PLACEHOLDER


def amount_of(order: Order) -> str:
    """ "120 examples: 8 steps of 16 an epoch"; empty where they were not counted."""
    data, recipe = order.data, order.recipe
    if data is None or data.examples is None:
        return ""
    examples = f"{data.examples:,} example{'s' if data.examples > 1 else ''}"
    if recipe.packing:
        return f"{examples}, joined into rows of {recipe.sequence_length:,} tokens: {recipe.global_batch} rows a step"
    steps = math.ceil(data.examples / recipe.global_batch)
    return f"{examples}: {steps:,} step{'s' if steps > 1 else ''} of {recipe.global_batch:,} an epoch"


def too_short_to_pack(order: Order) -> tuple[str, ...]:
    """For jobs that leave out what does not fill a row."""
    data, length = order.data, order.recipe.sequence_length
    if not order.recipe.packing or data is None or data.most_tokens is None or data.most_tokens >= length:
        return ()
    return (
        f"all of --data together is shorter than one row of {length:,} tokens (--packing): the job would have no row "
        "to learn, and stops; leave --packing out, or make --seq-len smaller",
    )
