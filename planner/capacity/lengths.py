"""How long the examples of a data file are, what sequence length holds them, and what padding them wastes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

PERCENTILES = (50, 90, 95, 99, 100)
MULTIPLE = 128
"""Suggested lengths are rounded up to it."""
CHARACTERS_A_TOKEN = 4.0
"""Of English text in today's tokenizers, roughly; code and other languages have fewer."""
COVERED = 99
"""The percentile of examples that the suggested length holds whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """The lengths of a file's examples in tokens, in its order."""

    path: str
    tokens: tuple[int, ...]
    counted_by: str
    """ "the tokenizer in FOLDER", or what the estimate is made from."""
    counted: bool
    """False: estimated from characters."""

    @property
    def examples(self) -> int:
        return len(self.tokens)

    def percentile(self, share: int) -> int:
        """The length that so many of a hundred examples do not exceed."""
        ordered = sorted(self.tokens)
        return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]

    def kept(self, length: int) -> int:
        """Tokens of all examples, each cut at `length`."""
        return _kept(self.tokens, length)

    def cut(self, length: int) -> int:
        """How many examples lose their end at that length."""
        return sum(one > length for one in self.tokens)

    def padded(self, length: int, micro_batch: int) -> int:
        """Tokens processed where each micro-batch is as wide as the longest example in it, in the file's order."""
        return _padded(self.tokens, length, micro_batch)

    def suggested(self) -> int:
        """The sequence length that holds 99 of 100 examples whole."""
        return -(-self.percentile(COVERED) // MULTIPLE) * MULTIPLE


@cache
def _kept(tokens: tuple[int, ...], length: int) -> int:
    return sum(min(one, length) for one in tokens)


@cache
def _padded(tokens: tuple[int, ...], length: int, micro_batch: int) -> int:
    batches = (tokens[start : start + micro_batch] for start in range(0, len(tokens), micro_batch))
    return sum(len(batch) * min(max(batch), length) for batch in batches)


def by_characters(path: str, characters: Sequence[int], why: str) -> Lengths:
    """Estimated where no tokenizer can be had; `why` says that."""
    tokens = tuple(max(1, math.ceil(one / CHARACTERS_A_TOKEN)) for one in characters)
    text = f"an estimate of {CHARACTERS_A_TOKEN:g} characters a token: {why}"
    return Lengths(path=path, tokens=tokens, counted_by=text, counted=False)
