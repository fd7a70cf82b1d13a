"""Rows for a job: random ones repeat, a file's are read strictly, and nothing but the completion is learned."""

import json
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from estimators.errors import BadInput
from runners.data import NOT_LEARNED, Padding, RandomTokens, load_tokenizer, make_rows, pack, read_examples, tokenize
from runners.job import Job
from tests.runners import tiny_job


class Letters:
    """A tokenizer: each letter is a token, 1 begins a text and 2 ends it."""

    eos_token_id, pad_token_id, chat_template = 2, 0, "{{ messages }}"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool) -> str:
        return "".join(f"<{one['role']}>{one['content']}" for one in messages)


def file_of(folder: Path, *lines: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


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


def test_messages_go_through_the_checkpoints_own_template() -> None:
    example = {"messages": [{"role": "user", "content": "hi"}]}
    assert bytes(tokenize(example, Letters(), 100)["input_ids"].tolist()) == b"<user>hi"
    plain = Letters()
    plain.chat_template = ""
    with pytest.raises(BadInput, match="chat template"):
        tokenize(example, plain, 100)


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


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "2: not JSON"),
        ("[" * 100_000, "2: not JSON"),
        ({"prompt": "a"}, '2: must have "prompt"'),
        ({"prompt": "a", "completion": 3}, "2: must have"),
        ({"messages": []}, "2: must have"),
        ({"messages": [{"role": "user"}]}, "2: must have"),
        (["a"], "2: must have"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        read_examples(file_of(tmp_path, PAIR, line), 10)


def test_no_more_is_read_than_a_job_needs(tmp_path: Path) -> None:
    assert read_examples(file_of(tmp_path, PAIR, "", PAIR, "not JSON"), 2) == [PAIR, PAIR]


@pytest.mark.parametrize(("content", "named"), [(b"", "no example"), (b"\xff\xfe\x00", "not UTF-8"), (None, "No such")])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None, named: str) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=named):
        read_examples(path, 1)


def test_a_short_file_is_used_again(tmp_path: Path) -> None:
    work = Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG, steps=5, data=str(file_of(tmp_path, PAIR)))
    rows: Any = make_rows(work, 256, Letters())
    assert len(rows) == 2 * 5 * 2
    assert torch.equal(rows[0]["input_ids"], rows[19]["input_ids"])


def test_data_need_a_tokenizer() -> None:
    work = Job(recipe=tiny_job.recipe(), config=tiny_job.CONFIG, data="/rows.jsonl")
    with pytest.raises(BadInput, match="tokenizer"):
        load_tokenizer(work)
