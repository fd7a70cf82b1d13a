"""A checkpoint of two tiny layers with a tokenizer of words, and examples that it can learn."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from tests.runners import tiny_job

CHATML = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }}\n{{ message['content'] }} <|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant\n{% endif %}"
)
WORDS = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "<think>", *"abcdefghij")


def make(folder: Path) -> Path:
    """Random weights, the same each time, and the tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = transformers.AutoConfig.for_model(**tiny_job.CONFIG)
        transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer(template: str | None = CHATML) -> Any:
    words = {word: number for number, word in enumerate(WORDS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", chat_template=template)


def bytes_tokenizer(template: str) -> Any:
    """A tokenizer of bytes, which reads any template's words."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(tokenizers.models.BPE({one: place for place, one in enumerate(alphabet)}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    fast: Any = transformers.PreTrainedTokenizerFast
    ends = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return fast(tokenizer_object=model, chat_template=template, **ends)


def file_of(path: Path, examples: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return str(path)


def echoes(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Whatever is asked, the answer is j, as often as it takes to fill a few tokens."""
    letters = "abcdefghi"
    return [
        {"prompt": " ".join(letters[(first + n * k) % 9] for k in range(1, 5)), "completion": " j j j"}
        for n in range(count)
    ]
