"""Examples of a JSONL file, one a line and each checked, and the share of them that is held out of training."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from estimators.errors import BadInput
from runners.turns import ASSISTANT

LONGEST_LINE = 16_000_000
Example = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One file of examples as two that share none."""

    train: Path
    held_out: Path
    trained: int
    """Examples in the file to train on, repeated ones counted each time."""
    evaluated: int
    """Different examples in the held-out file."""


def read_examples(path: Path, count: int | None = None) -> list[Example]:
    """The first `count` examples of a file, each checked; None: all of them.

    Raises:
        BadInput: unreadable, empty, or a line is not an example; the message names it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            found = list(islice(_examples(file, path), count))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not found:
        raise BadInput(f"{path}: has no example")
    return found


def split(path: Path, share: float, seed: int, folder: Path) -> Split:
    """Holds a share of a file's examples out, the same ones for the same seed, whatever order they stand in.

    An example that the file repeats goes to one side only: trained on as often as it stands there, or evaluated once.
    Both files are in an order drawn from the seed, so that the first lines of one are a sample of all of it.

    Raises:
        BadInput: the file is not one of examples, has fewer than two different ones, or `folder` cannot be written.
    """
    if not 0 < share < 1:
        raise BadInput(f"the share to hold out must lie between 0 and 1, not {share:g}")
    alike: dict[str, list[Example]] = {}
    for example in read_examples(path):
        alike.setdefault(_drawn(example, seed), []).append(example)
    if len(alike) < 2:
        raise BadInput(f"{path}: one example alone cannot be split into some to learn and some to hold out")
    order = sorted(alike)
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    held_out = [alike[key][0] for key in order[:count]]
    train = [example for key in order[count:] for example in alike[key]]
    paths = folder / "train.jsonl", folder / "held-out.jsonl"
    for target, examples in zip(paths, (train, held_out), strict=True):
        _write(target, examples)
    return Split(train=paths[0], held_out=paths[1], trained=len(train), evaluated=len(held_out))


def question_of(example: Mapping[str, Any]) -> str | list[dict[str, str]]:
    """What the model is asked: the prompt, or the conversation up to the assistant's last turn."""
    if "messages" not in example:
        return str(example["prompt"])
    messages: list[dict[str, str]] = example["messages"]
    last = max((n for n, one in enumerate(messages) if one["role"] == ASSISTANT), default=len(messages))
    return messages[:last]


def _drawn(example: Example, seed: int) -> str:
    """A number drawn from the seed and what the example says; its spacing and other keys do not count."""
    if "messages" in example:
        texts = [text for one in example["messages"] for text in (one["role"], one["content"])]
    else:
        texts = ["", example["prompt"], example["completion"]]
    said = json.dumps([seed, *(" ".join(text.split()) for text in texts)])
    return hashlib.sha256(said.encode()).hexdigest()


def _write(path: Path, examples: Iterable[Example]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(example) + "\n" for example in examples)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise BadInput(f"{path}: {error.strerror}") from None


def _examples(file: Any, path: Path) -> Iterator[Example]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > LONGEST_LINE:
            raise BadInput(f"{where}: longer than {LONGEST_LINE:,} characters")
        if line.strip():
            yield _example(line, where)


def _example(line: str, where: str) -> Example:
    try:
        example = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{where}: not JSON") from None
    if isinstance(example, dict) and _is_example(example):
        return example
    raise BadInput(f'{where}: must have "prompt" and "completion" texts, or "messages" of "role" and "content" texts')


def _is_example(example: Example) -> bool:
    messages = example.get("messages")
    if messages is None:
        return all(isinstance(example.get(name), str) for name in ("prompt", "completion"))
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(one, dict) and all(isinstance(one.get(name), str) for name in ("role", "content"))
            for one in messages
        )
    )
