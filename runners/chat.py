"""Conversations as tokens, through the checkpoint's own chat template, and which of them the assistant said."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from estimators.errors import BadInput
from runners.examples import ASSISTANT, Example

NOT_LEARNED = -100
"""The label that torch's cross entropy leaves out."""
Labelled = tuple[list[int], list[int]]
Messages = Sequence[dict[str, str]]
_MARKED = re.compile(r"\{%-?\s*generation\b")


def conversation(example: Example, tokenizer: Any) -> Labelled:
    """The tokens of a conversation and their labels: only what the assistant says is learned.

    Raises:
        BadInput: the tokenizer has no chat template, or one that cannot be taken apart into turns.
    """
    messages: Messages = example["messages"]
    if not tokenizer.chat_template:
        raise BadInput("messages need a tokenizer with a chat template, and this checkpoint's has none")
    if _MARKED.search(str(tokenizer.chat_template)):
        return _marked(messages, tokenizer)
    text = render(messages, tokenizer)
    tokens = encode(text, tokenizer)
    labels = [NOT_LEARNED] * len(tokens)
    for begin, end in _spans(messages, text, tokenizer):
        first, last = (_shared(encode(text[:place], tokenizer), tokens) for place in (begin, end))
        labels[first:last] = tokens[first:last]
    return tokens, labels


def render(messages: Messages, tokenizer: Any, *, asking: bool = False) -> str:
    """The conversation as the model reads it; `asking`: with the beginning of the answer that is wanted."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asking))


def encode(text: str, tokenizer: Any) -> list[int]:
    """Without tokens of its own: a template writes those itself."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _marked(messages: Messages, tokenizer: Any) -> Labelled:
    """A template that marks the assistant's words itself, with {% generation %}."""
    found = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = list(found["input_ids"])
    said = found["assistant_masks"]
    return tokens, [token if one else NOT_LEARNED for token, one in zip(tokens, said, strict=True)]


def _spans(messages: Messages, text: str, tokenizer: Any) -> Iterator[tuple[int, int]]:
    """Where the assistant's turns stand in the whole text, without the line's end behind each."""
    for number, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            before = render(messages[:number], tokenizer, asking=True) if number else ""
            upto = render(messages[: number + 1], tokenizer)
            end = _end(text, len(before), upto, message["content"])
            if end is None or not text.startswith(before):
                raise BadInput(
                    "the chat template rewrites earlier turns, so that the assistant's cannot be told from others:"
                    " give it {% generation %} marks, or learn whole conversations"
                )
            yield len(before), end


def _end(text: str, begin: int, upto: str, said: str) -> int | None:
    """Where a turn ends. Some templates write the last turn otherwise than earlier ones: then it is what was said and
    what follows that in the last turn."""
    if text.startswith(upto):
        return len(upto.rstrip())
    content = said.strip()
    at = text.find(content, begin)
    tail = upto[upto.rfind(content) + len(content) :].rstrip()
    return at + len(content) + len(tail) if at >= 0 and text.startswith(tail, at + len(content)) else None


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))
