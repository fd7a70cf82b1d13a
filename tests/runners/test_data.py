"""Rows for a job: random ones repeat, a file's are read strictly, and nothing but the completion is learned."""

from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from estimators.errors import BadInput
from runners.chat import NOT_LEARNED
from runners.data import Padding, RandomTokens, learned, load_tokenizer, make_rows, pack, tokenize
from runners.job import Job
from tests.runners import tiny_checkpoint, tiny_job
from tests.runners.tiny_checkpoint import CHATML


class Letters:
    """A tokenizer: each letter is a token, 1 begins a text and 2 ends it."""

    eos_token_id, pad_token_id = 2, 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


PAIR = {"prompt": "ab", "completion": "cd"}


def test_random_rows_repeat_for_a_seed_and_differ_for_another() -> None:
    one, same, other = (RandomTokens(100, 16, 4, padded=False, seed=seed) for seed in (7, 7, 8))
    assert all(torch.equal(one[index]["input_ids"], same[index]["input_ids"]) for index in range(4))
    assert not torch.equal(one[0]["input_ids"], other[0]["input_ids"])
    assert not torch.equal(one[0]["input_ids"], one[1]["input_ids"])
    assert int(one[0]["input_ids"].max()) < 100


def test_every_second_padded_row_is_half_padding() -> None:
    rows = RandomTokens(100, 16, 2, padded=True, seed=1)
    assert [int(rows[index]["attention_mask"].sum()) for index in range(2)] == [16, 8]
    assert int((rows[1]["labels"] == NOT_LEARNED).sum()) == 8


def test_only_the_completion_is_learned() -> None:
    row = tokenize(PAIR, Letters(), 100)
    assert row["input_ids"].tolist() == [1, ord("a"), ord("b"), ord("c"), ord("d"), 2]
    assert row["labels"].tolist() == [NOT_LEARNED] * 3 + [ord("c"), ord("d"), 2]
    assert len(tokenize(PAIR, Letters(), 4)["input_ids"]) == 4


CHAT = [
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "c d"},
    {"role": "user", "content": "e"},
    {"role": "assistant", "content": "f c d"},
]
MARKED = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} <|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }} <|im_end|>{% endif %}{{ ' ' }}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last %}<think> {% endif %}{{ message['content'] }} <|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant\n{% endif %}"
)
"""It writes the last turn otherwise than earlier ones, as Qwen3's does."""


def test_no_packed_row_is_of_prompts_alone(tmp_path: Path) -> None:
    """Its loss would be the mean of nothing, and every weight nan after it."""
    examples = [{"prompt": "", "completion": "x"}, {"prompt": "a" * 6, "completion": ""}]
    joined = pack(cycle([tokenize(example, Letters(), 8) for example in examples]), 8)
    assert not all(map(learned, islice(joined, 20)))
    rows = make_rows(work_of(tmp_path / "rows", *examples, packing=True), 256, Letters())
    assert len(rows) == 20 and all(learned(rows[index]) for index in range(20))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, "c d <|im_end|> f c d <|im_end|>"),
        (MARKED, "c d <|im_end|> f c d <|im_end|>"),
        (THINKING, "c d <|im_end|> <think> f c d <|im_end|>"),
    ],
)
def test_of_a_conversation_only_what_the_assistant_says_is_learned(template: str, said: str) -> None:
    tokenizer = tiny_checkpoint.tokenizer(template)
    row = tokenize({"messages": CHAT}, tokenizer, 100)
    assert tokenizer.decode(row["labels"][row["labels"] != NOT_LEARNED]) == said
    whole = tokenize({"messages": CHAT}, tokenizer, 100, completion_only=False)
    assert torch.equal(whole["labels"], whole["input_ids"]) and torch.equal(whole["input_ids"], row["input_ids"])
    assert learned(tokenize({"messages": CHAT[:1]}, tokenizer, 100)) == 0


def test_a_template_that_cannot_be_taken_apart_is_refused() -> None:
    backwards = "{% for message in messages | reverse %}{{ message['role'] }} {{ message['content'] }}\n{% endfor %}"
    with pytest.raises(BadInput, match="generation"):
        tokenize({"messages": CHAT}, tiny_checkpoint.tokenizer(backwards), 100)


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(BadInput, match="chat template"):
        tokenize({"messages": CHAT}, tiny_checkpoint.tokenizer(None), 100)


def test_a_prompt_is_learned_where_the_job_says_so() -> None:
    row = tokenize(PAIR, Letters(), 100, completion_only=False)
    assert torch.equal(row["labels"], row["input_ids"])


def test_a_batch_is_as_wide_as_its_longest_row() -> None:
    batch = Padding(9)([tokenize(PAIR, Letters(), 6), tokenize(PAIR, Letters(), 3)])
    assert batch["input_ids"].shape == (2, 6)
    assert batch["input_ids"][1].tolist()[3:] == [9] * 3
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 0, 0, 0]
    assert batch["labels"][1].tolist()[3:] == [NOT_LEARNED] * 3


def test_packing_loses_no_token_and_pads_none() -> None:
    row = tokenize(PAIR, Letters(), 100)
    packed = list(islice(pack(cycle([row]), 4), 3))
    assert torch.equal(torch.cat([one["input_ids"] for one in packed]), row["input_ids"].repeat(2))
    assert all(int(one["attention_mask"].sum()) == 4 for one in packed)


def work_of(path: Path, *examples: dict[str, str], **changes: Any) -> Job:
    recipe = tiny_job.recipe(**({"sequence_length": 8} | changes))
    return Job(recipe=recipe, config=tiny_job.CONFIG, steps=5, data=tiny_checkpoint.file_of(path, examples))


@pytest.mark.parametrize("packing", [False, True])
def test_a_short_file_is_used_again(tmp_path: Path, packing: bool) -> None:
    rows = make_rows(work_of(tmp_path / "rows", PAIR, packing=packing), 256, Letters())
    assert len(rows) == 2 * 5 * 2


def test_every_example_is_used_before_any_is_used_again(tmp_path: Path) -> None:
    examples = [{"prompt": letter, "completion": "x"} for letter in "abcde"]
    work = work_of(tmp_path / "rows", *examples)

    def order(seed: int) -> str:
        rows = make_rows(replace(work, seed=seed), 256, Letters())
        return "".join(chr(rows[index]["input_ids"][1]) for index in range(20))

    assert order(1) == order(1) != order(2)
    assert {"".join(sorted(order(1)[start : start + 5])) for start in range(0, 20, 5)} == {"abcde"}
    assert len({order(1)[start : start + 5] for start in range(0, 20, 5)}) > 1


def test_an_example_with_nothing_left_to_learn_is_dropped_and_counted(tmp_path: Path) -> None:
    long, edge = {"prompt": "a" * 9, "completion": "b"}, {"prompt": "a" * 7, "completion": "b"}
    rows = make_rows(work_of(tmp_path / "rows", long, PAIR, edge), 256, Letters())
    assert rows.dropped == 2
    assert all(learned(rows[index]) for index in range(len(rows)))


def test_where_all_are_dropped_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no example has anything to learn within 8 tokens"):
        make_rows(work_of(tmp_path / "rows", {"prompt": "a" * 9, "completion": "b"}), 256, Letters())


def test_data_need_a_tokenizer() -> None:
    work = Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG, data="/rows.jsonl")
    with pytest.raises(BadInput, match="tokenizer"):
        load_tokenizer(work)
