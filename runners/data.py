"""Rows of tokens for a job: random ones, or those of a JSONL file of prompts with completions or of messages."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from estimators.errors import BadInput
from runners import chat
from runners.chat import NOT_LEARNED, Labelled
from runners.examples import Example, read_examples
from runners.job import RANDOM, Job

Row = dict[str, Tensor]


class RandomTokens(Dataset[Row]):
    """Rows of random tokens, the same for the same index; with `padded`, every second row is half padding."""

    dropped = 0

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
    """Rows that were read, as long as each is, in the order in which a job takes them."""

    def __init__(self, rows: Sequence[Row], dropped: int) -> None:
        self._rows, self.dropped = rows, dropped

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


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


def make_rows(job: Job, vocabulary: int, tokenizer: Any) -> RandomTokens | TokenRows:
    """As many rows as the job's steps take, and as many again for a batch that is fetched ahead.

    A file's come in an order drawn from the job's seed, and drawn anew each time that all of them were used.

    Raises:
        BadInput: the file is not what it should be; the message names the line.
    """
    recipe = job.recipe
    count = recipe.global_batch * job.steps * 2
    if job.data is None:
        return RandomTokens(vocabulary, recipe.sequence_length, count, padded=recipe.padded, seed=job.seed)
    path = Path(job.data)
    rows, dropped = tokenized(read_examples(path, count), path, job, tokenizer)
    ordered = shuffled_forever(rows, job.seed)
    if recipe.packing:  # a step of prompts alone would have no loss: the mean of nothing
        ordered = filter(learned, pack(ordered, recipe.sequence_length))
    return TokenRows(list(islice(ordered, count)), dropped)


def held_out_rows(job: Job, tokenizer: Any) -> list[Row]:
    """The examples that are only evaluated, each whole or cut to the recipe's length, and never packed.

    Raises:
        BadInput: the file is not what it should be.
    """
    if job.training.held_out is None:
        return []
    path = Path(job.training.held_out)
    return tokenized(read_examples(path), path, job, tokenizer)[0]


def tokenized(examples: Iterable[Example], path: Path, job: Job, tokenizer: Any) -> tuple[list[Row], int]:
    """The examples' rows, and how many examples have none: nothing of what is to be learned is left once it is cut.

    Raises:
        BadInput: not one of them has anything to learn.
    """
    longest, only = job.recipe.sequence_length, job.training.completion_only
    found = [tokenize(example, tokenizer, longest, completion_only=only) for example in examples]
    rows = [row for row in found if learned(row)]
    if not rows:
        raise BadInput(f"{path}: no example has anything to learn within {longest} tokens; are the prompts longer?")
    return rows, len(found) - len(rows)


def shuffled_forever(rows: Sequence[Row], seed: int) -> Iterator[Row]:
    """All rows, again and again, each time in another order."""
    order, source = list(range(len(rows))), random.Random(seed)
    while True:
        source.shuffle(order)
        yield from [rows[index] for index in order]


def load_tokenizer(job: Job) -> Any:
    """The checkpoint's own tokenizer, from files alone.

    Raises:
        BadInput: data are given without a checkpoint that has one.
    """
    if job.data is None and job.training.held_out is None:
        return None
    if job.weights == RANDOM:
        raise BadInput("data need a tokenizer, which random weights have none of: give a checkpoint folder as weights")
    return tokenizer_in(job.weights)


def tokenizer_in(folder: str) -> Any:
    """The tokenizer of a checkpoint's folder, from files alone.

    Raises:
        BadInput: it has none that can be read.
    """
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: no tokenizer: {str(error).splitlines()[0][:120]}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenize(example: Example, tokenizer: Any, longest: int, *, completion_only: bool = True) -> Row:
    """An example as tokens, at most `longest`; of it the completion is learned, or the assistant's turns, or all.

    Raises:
        BadInput: messages, and a tokenizer without a chat template.
    """
    tokens, labels = chat.conversation(example, tokenizer) if "messages" in example else _pair(example, tokenizer)
    labels = labels if completion_only else tokens
    return _row(tokens[:longest], labels[:longest])


def _pair(example: Example, tokenizer: Any) -> Labelled:
    prompt = tokenizer(example["prompt"])["input_ids"]
    completion = [*tokenizer(example["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [*prompt, *completion], [NOT_LEARNED] * len(prompt) + completion


def learned(row: Row) -> int:
    """How many tokens of a row are predicted and learned: the first has nothing before it to be predicted from."""
    return int((row["labels"][1:] != NOT_LEARNED).sum())


def pack(rows: Iterator[Row], length: int) -> Iterator[Row]:
    """Rows joined end to end and cut into pieces of `length`: no padding, and attention across examples.

    To keep examples apart, attention would need a mask, with which `sdpa` leaves its fastest kernels.
    """
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
