"""Examples are read strictly, and what is held out is never trained on."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as draw

from estimators.errors import BadInput
from runners.examples import question_of, read_examples, split

PAIR = {"prompt": "ab", "completion": "cd"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


def file_of(folder: Path, *lines: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"question {number}", "completion": "answer"} for number in range(count)]


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


@given(
    numbers=draw.lists(draw.integers(0, 9), min_size=2, max_size=30).filter(lambda found: len(set(found)) > 1),
    share=draw.floats(0.01, 0.99),
    seed=draw.integers(0, 3),
)
def test_no_example_is_on_both_sides_however_often_it_is_repeated(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], share: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    rows = [{"prompt": f"q {number}" + "  " * (place % 2), "completion": "c"} for place, number in enumerate(numbers)]
    found = split(file_of(folder, *rows), share, seed, folder)
    train, held_out = ([row["prompt"].strip() for row in read_examples(path)] for path in (found.train, found.held_out))
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == {f"q {number}" for number in numbers}
    assert len(held_out) == len(set(held_out)) == found.evaluated
    assert sorted(train) == sorted(f"q {number}" for number in numbers if f"q {number}" not in held_out)


def test_the_share_is_the_same_whatever_the_order_and_another_for_another_seed(tmp_path: Path) -> None:
    rows = pairs(100)
    one = split(file_of(tmp_path, *rows), 0.1, 1, tmp_path / "one")
    again = split(file_of(tmp_path, *reversed(rows)), 0.1, 1, tmp_path / "again")
    other = split(file_of(tmp_path, *rows), 0.1, 2, tmp_path / "other")
    assert (one.trained, one.evaluated) == (90, 10)
    assert one.held_out.read_bytes() == again.held_out.read_bytes() != other.held_out.read_bytes()
    assert one.train.read_bytes() == again.train.read_bytes()


def test_the_first_lines_to_train_on_are_a_sample_of_all(tmp_path: Path) -> None:
    """A job reads no more than it needs, and a file may be sorted."""
    found = split(file_of(tmp_path, *pairs(200)), 0.1, 1, tmp_path)
    first = [int(row["prompt"].split()[1]) for row in read_examples(found.train, 40)]
    assert sum(number >= 100 for number in first) > 10


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(BadInput, match="share"):
        split(file_of(tmp_path, *pairs(4)), share, 1, tmp_path)


def test_one_example_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="one example alone"):
        split(file_of(tmp_path, PAIR, PAIR), 0.5, 1, tmp_path)


def test_a_question_ends_before_the_answer() -> None:
    assert question_of(PAIR) == "ab"
    assert question_of(CHAT) == CHAT["messages"][:1]
