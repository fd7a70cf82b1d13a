"""Conversations as tokens, through the checkpoint's own chat template, and which of them the assistant said."""

import re
from typing import Any

from estimators.errors import BadInput
from runners.examples import Example
from runners.turns import Messages, encode, render, shared, turns

NOT_LEARNED = -100
"""The label that torch's cross entropy leaves out."""
Labelled = tuple[list[int], list[int]]
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
    for turn in turns(messages, text, tokenizer):
        if turn is None:
            raise BadInput(
                "the chat template rewrites earlier turns, so that the assistant's cannot be told from others:"
                " give it {% generation %} marks, or learn whole conversations"
            )
        first, last = (shared(encode(text[:place], tokenizer), tokens) for place in turn)
        labels[first:last] = tokens[first:last]
    return tokens, labels


def _marked(messages: Messages, tokenizer: Any) -> Labelled:
    """A template that marks the assistant's words itself, with {% generation %}."""
    found = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    tokens = list(found["input_ids"])
    said = found["assistant_masks"]
    return tokens, [token if one else NOT_LEARNED for token, one in zip(tokens, said, strict=True)]
