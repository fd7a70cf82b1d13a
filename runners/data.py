"""Rows of tokens for a job: random ones, or a JSONL file of prompts with completions or of messages."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from estimators.errors import BadInput
from runners.job import RANDOM, Job

LONGEST_LINE = 16_000_000
NOT_LEARNED = -100
"""The label that torch's cross entropy leaves out."""
Row = dict[str, Tensor]


class RandomTokens(Dataset[Row]):
    """Rows of random tokens, the same for the same index; with `padded`, every second row is half padding."""

    def __init__(self, vocabulary: int, length: int, rows: int, *, padded: bool, seed: int) -> None:
        self._vocabulary, self._length, self._rows = vocabulary, length, rows
        self._padded, self._seed = padded, seed

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        source = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        tokens = torch.randint(0, self._vocabulary, (self._length,), generator=source)
        mask, labels = torch.ones_like(tokens), tokens.clone()
        if self._padded and index % 2:
            mask[self._length // 2 :], labels[self._length // 2 :] = 0, NOT_LEARNED
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


class TokenRows(Dataset[Row]):
    """Rows that were read, as long as each is; used again from the start where a job needs more."""

    def __init__(self, rows: Sequence[Row], count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return self._rows[index % len(self._rows)]


@dataclass(frozen=True, slots=True)
class Padding:
    """A collator: rows become one batch, as wide as the longest of them."""

    pad_token: int

    def __call__(self, rows: Sequence[Row]) -> Row:
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad_token, "attention_mask": 0, "labels": NOT_LEARNED}
        return {
            name: torch.stack(
                [torch.nn.functional.pad(row[name], (0, width - len(row[name])), value=value) for row in rows]
            )
            for name, value in fill.items()
        }


def make_rows(job: Job, vocabulary: int, tokenizer: Any) -> Dataset[Row]:
    """As many rows as the job's steps take, and as many again for a batch that is fetched ahead.

    Raises:
        BadInput: the file is not what it should be; the message names the line.
    """
    recipe = job.recipe
    count = recipe.global_batch * job.steps * 2
    if job.data is None:
        return RandomTokens(vocabulary, recipe.sequence_length, count, padded=recipe.padded, seed=job.seed)
    examples = read_examples(Path(job.data), count)
    rows = [tokenize(example, tokenizer, recipe.sequence_length) for example in examples]
    if recipe.packing:
        rows = list(islice(pack(cycle(rows), recipe.sequence_length), count))
    return TokenRows(rows, count)


def load_tokenizer(job: Job) -> Any:
    """The checkpoint's own tokenizer, from files alone.

    Raises:
        BadInput: data are given without a checkpoint that has one.
    """
    if job.data is None:
        return None
    if job.weights == RANDOM:
        raise BadInput("data need a tokenizer, which random weights have none of: give a checkpoint folder as weights")
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            job.weights, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"{job.weights}: no tokenizer: {str(error).splitlines()[0][:120]}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_examples(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` examples of a file, each checked.

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


def _examples(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > LONGEST_LINE:
            raise BadInput(f"{where}: longer than {LONGEST_LINE:,} characters")
        if line.strip():
            yield _example(line, where)


def _example(line: str, where: str) -> dict[str, Any]:
    try:
        example = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput(f"{where}: not JSON") from None
    if isinstance(example, dict) and _is_example(example):
        return example
    raise BadInput(f'{where}: must have "prompt" and "completion" texts, or "messages" of "role" and "content" texts')


def _is_example(example: dict[str, Any]) -> bool:
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


def tokenize(example: dict[str, Any], tokenizer: Any, longest: int) -> Row:
    """An example as tokens, at most `longest`; of a prompt with a completion only the completion is learned.

    Raises:
        BadInput: messages, and a tokenizer without a chat template.
    """
    if "messages" in example:
        if not tokenizer.chat_template:
            raise BadInput("messages need a tokenizer with a chat template, and this checkpoint's has none")
        text = tokenizer.apply_chat_template(example["messages"], tokenize=False)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        labels = list(tokens)
    else:
        prompt = tokenizer(example["prompt"])["input_ids"]
        completion = tokenizer(example["completion"], add_special_tokens=False)["input_ids"]
        completion = [*completion, tokenizer.eos_token_id]
        tokens, labels = [*prompt, *completion], [NOT_LEARNED] * len(prompt) + completion
    return _row(tokens[:longest], labels[:longest])


def pack(rows: Iterator[Row], length: int) -> Iterator[Row]:
    """Rows joined end to end and cut into pieces of `length`: no padding, and attention across examples."""
    tokens: list[int] = []
    labels: list[int] = []
    for row in rows:
        tokens += row["input_ids"].tolist()
        labels += row["labels"].tolist()
        while len(tokens) >= length:
            yield _row(tokens[:length], labels[:length])
            tokens, labels = tokens[length:], labels[length:]


def _row(tokens: Sequence[int], labels: Sequence[int]) -> Row:
    found = torch.tensor(tokens)
    return {"input_ids": found, "attention_mask": torch.ones_like(found), "labels": torch.tensor(labels)}
