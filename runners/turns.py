"""Where the assistant's turns stand in the text of a conversation.

The scripts of `plan --emit` hold this code as it is: it needs nothing but Python and the tokenizer.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

ASSISTANT = "assistant"
END_OF_THOUGHTS = "</think>"
Messages = Sequence[dict[str, str]]


def turns(messages: Messages, text: str, tokenizer: Any) -> Iterator[tuple[int, int] | None]:
    """Of each of the assistant's turns where it begins and ends, with what ends it but without the end of the line;
    None where that cannot be told."""
    for number, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            yield _as_it_grew(messages, number, text, tokenizer) or _by_marks(messages, number, text, tokenizer)


def render(messages: Messages, tokenizer: Any, *, asking: bool = False) -> str:
    """The conversation as the model reads it; `asking`: with the beginning of the answer that is wanted."""
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asking))


def encode(text: str, tokenizer: Any) -> list[int]:
    """Without tokens of its own: a template writes those itself."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many tokens, or letters, two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (left, right) in pairs if left != right), min(len(one), len(other)))


def _as_it_grew(messages: Messages, number: int, text: str, tokenizer: Any) -> tuple[int, int] | None:
    """Between what is written up to its turn and what is written with it, where the whole text goes on from there."""
    if not number:  # what a template puts before the first turn is nobody's
        return None
    said, before = messages[number]["content"], render(messages[:number], tokenizer, asking=True)
    end = _end(said.strip(), text, len(before), render(messages[: number + 1], tokenizer))
    if end is None or not text.startswith(before) or not _stands(said, text[len(before) : end]):
        return None  # there are templates that leave out what is no list of parts
    return len(before), end


def _end(said: str, text: str, begin: int, upto: str) -> int | None:
    """Some templates write the last turn otherwise than earlier ones: its end is looked for behind what was said."""
    if text.startswith(upto):
        return len(upto.rstrip())
    at = text.find(said, begin)
    tail = upto[upto.rfind(said) + len(said) :].rstrip()
    return at + len(said) + len(tail) if at >= 0 and text.startswith(tail, at + len(said)) else None


def _by_marks(messages: Messages, number: int, text: str, tokenizer: Any) -> tuple[int, int] | None:
    """Where a template rewrites earlier turns: a mark in place of each answer shows what it writes around them."""
    stem = "zq"
    while stem in text:
        stem += "q"
    marks = {turn: f"{stem}{turn}z" for turn, one in enumerate(messages[: number + 1]) if one["role"] == ASSISTANT}
    marked = [{**one, "content": marks.get(turn, one["content"])} for turn, one in enumerate(messages)]
    around, at, begin, before = render(marked, tokenizer), 0, 0, ""
    for turn, mark in marks.items():
        before, found, around = around.partition(mark)
        begin = at + len(before)
        said = next((one for one in _written(messages[turn]["content"]) if text.startswith(one, begin)), None)
        if not found or said is None or not text.startswith(before, at):
            return None
        at = begin + len(said)
    end = render(marked[: number + 1], tokenizer).rpartition(marks[number])[2].rstrip()
    return begin - _own(before, marked[:number], tokenizer), at + _ending(end, text[at:], tokenizer)


def _stands(said: str, text: str) -> bool:
    return any(one and one in text for one in _written(said))


def _written(said: str) -> tuple[str, ...]:
    """As templates may write it: as it is, without the space around it, without the thoughts before it."""
    behind = said.rpartition(END_OF_THOUGHTS)[2]
    return said, said.rstrip(), said.strip(), behind, behind.rstrip(), behind.strip()


def _own(before: str, earlier: Messages, tokenizer: Any) -> int:
    """How much of what stands before an answer the model writes itself: what lies behind the request for it."""
    if not earlier:
        return 0
    asking = render(earlier, tokenizer, asking=True)
    request = asking[shared(asking, render(earlier, tokenizer)) :]
    name = re.match(r"\W*\w+", request)  # less is in common by chance
    for length in range(len(request), name.end() - 1 if name else len(request), -1):
        at = before.rfind(request[:length])
        if at >= 0:
            return len(before) - at - length
    return 0


def _ending(usual: str, behind: str, tokenizer: Any) -> int:
    """How much of what stands behind an answer ends the turn: its usual end as far as it is there, or the token that
    stands in its place."""
    if behind.startswith(usual):
        return len(usual)
    ends, follows = encode(usual, tokenizer), encode(behind, tokenizer)
    found = str(tokenizer.decode(follows[: max(shared(ends, follows), 1)])).rstrip()
    return len(found) if behind.startswith(found) else 0
