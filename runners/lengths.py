"""How many tokens each example of a data file has, counted exactly as a run would read it."""

from pathlib import Path

from estimators.errors import BadInput
from runners.examples import Example, read_examples

NO_LIMIT = 1 << 40
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint's folder has a tokenizer beside its weights."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def token_counts(examples: list[Example], folder: Path) -> tuple[int, ...]:
    """The tokens of each example by the tokenizer of a checkpoint's folder.

    Raises:
        BadInput: the libraries or the tokenizer are missing, or the conversations fit no chat template of it.
    """
    try:
        from runners.data import tokenize, tokenizer_in
    except ImportError as error:
        raise BadInput(f"{error.name} is not installed") from None
    tokenizer = tokenizer_in(str(folder))
    return tuple(len(tokenize(example, tokenizer, NO_LIMIT)["input_ids"]) for example in examples)


def character_counts(examples: list[Example]) -> tuple[int, ...]:
    """The characters that each example says."""
    return tuple(_characters(example) for example in examples)


def _characters(example: Example) -> int:
    if "messages" in example:
        return sum(len(message["content"]) for message in example["messages"])
    return len(example["prompt"]) + len(example["completion"])


__all__ = ["character_counts", "has_tokenizer", "read_examples", "token_counts"]
