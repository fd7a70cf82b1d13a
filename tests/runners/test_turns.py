"""Whose words they are, by chat templates as their makers wrote them: TRL carries a folder of them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="trl is not installed")

from estimators.errors import BadInput
from runners.chat import NOT_LEARNED, conversation
from tests.runners import tiny_checkpoint

THOUGHT = "<think>\nhm\n</think>\n\n"
SPECIAL = re.compile(r"<[|｜][^<>\s]+[|｜]>|</?think>")


def said(*answers: str) -> list[dict[str, str]]:
    """A conversation in which the assistant says this."""
    pairs = zip(("two and two?", "and three?", "sure?"), answers, strict=False)
    turns = ((("user", question), ("assistant", answer)) for question, answer in pairs)
    return [{"role": role, "content": text} for turn in turns for role, text in turn]


def tokenizer_of(name: str) -> Any:
    """Bytes, and the special tokens that the template names."""
    import tokenizers
    import transformers
    import trl

    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    made = tiny_checkpoint.bytes_tokenizer(template)
    special = sorted({*SPECIAL.findall(template), made.eos_token})
    made.add_tokens([tokenizers.AddedToken(one, special=True, normalized=False) for one in special])
    assert isinstance(made, transformers.PreTrainedTokenizerBase)
    return made


def learned(messages: Sequence[dict[str, str]], tokenizer: Any) -> Iterator[str]:
    """Each stretch of tokens that are learned."""
    tokens, labels = conversation({"messages": messages}, tokenizer)
    assert all(label in (token, NOT_LEARNED) for token, label in zip(tokens, labels, strict=True))
    stretch: list[int] = []
    for label in [*labels, NOT_LEARNED]:
        if label != NOT_LEARNED:
            stretch.append(label)
        elif stretch:
            yield tokenizer.decode(stretch)
            stretch = []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("qwen3_6", ("four<|im_end|>", "five<|im_end|>", "\n</think>\n\nyes<|im_end|>")),
        ("qwen3_5_nothink", ("four<|im_end|>", "five<|im_end|>", "yes<|im_end|>")),
        ("phi3", ("four<|end|>", "five<|end|>", "yes<|end|>\n<eos>")),
        ("deepseek_r1_distill", ("four<｜end▁of▁sentence｜>", "five<｜end▁of▁sentence｜>", "yes<｜end▁of▁sentence｜>")),
        ("nemotron_3_nano", ("</think>four<|im_end|>", "</think>five<|im_end|>", "</think>yes<|im_end|>")),
        (
            "gptoss",
            tuple(f"<|channel|>final<|message|>{answer}" for answer in ("four<|end|>", "five<|end|>", "yes<|return|>")),
        ),
    ],
)
def test_of_every_turn_the_answer_and_its_end_are_learned(name: str, found: tuple[str, ...]) -> None:
    """Qwen and DeepSeek write no thoughts before earlier turns, gpt-oss ends the last turn with a token of its own."""
    assert tuple(learned(said("four", "five", "yes"), tokenizer_of(name))) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("qwen3", ("four<|im_end|>", f"{THOUGHT}five<|im_end|>")),
        ("qwen3_6", ("four<|im_end|>", "hm\n</think>\n\nfive<|im_end|>")),
        ("deepseek_r1_distill", ("\n\nfour<｜end▁of▁sentence｜>", "\n\nfive<｜end▁of▁sentence｜>")),
        ("nemotron_3_nano", ("</think>\n\nfour<|im_end|>", "hm\n</think>\n\nfive<|im_end|>")),
    ],
)
def test_thoughts_are_learned_where_the_template_leaves_them(name: str, found: tuple[str, ...]) -> None:
    assert tuple(learned(said(f"{THOUGHT}four", f"{THOUGHT}five"), tokenizer_of(name))) == found


def test_all_of_trls_templates_for_texts_can_be_taken_apart() -> None:
    """But for those that read no plain texts."""
    import trl

    refused = set()
    templates = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    for path in (one for one in templates if "generation %}" not in one.read_text(encoding="utf-8")):
        try:
            stretches = list(learned(said("four", " five ", "yes"), tokenizer_of(path.stem)))
        except Exception:
            refused.add(path.stem)
            continue
        assert len(stretches) == 3, path.stem
        assert not any(question in one for one in stretches for question in ("two", "three", "sure")), path.stem
        for answer, one in zip(("four", "five", "yes"), stretches, strict=True):
            assert answer in one, path.stem
    assert refused == {"idefics3", "llava_next", "smolvlm"}


def test_what_looks_like_a_mark_is_only_an_answer() -> None:
    """Marks stand in for answers while a template is taken apart."""
    found = tuple(learned(said("zq1z", "zqq1z", "yes"), tokenizer_of("qwen3_6")))
    assert found[:2] == ("zq1z<|im_end|>", "zqq1z<|im_end|>")


def test_the_words_before_a_first_turn_are_not_the_assistants() -> None:
    tokenizer = tokenizer_of("qwen2_5")
    first = [{"role": "assistant", "content": "hello"}, *said("four")]
    assert tuple(learned(first, tokenizer)) == ("hello<|im_end|>", "four<|im_end|>")


def test_a_template_that_changes_the_words_is_refused() -> None:
    tokenizer = tokenizer_of("qwen2_5")
    tokenizer.chat_template = tokenizer.chat_template.replace("message.content", "message.content | upper")
    with pytest.raises(BadInput, match="rewrites earlier turns"):
        list(learned(said("<think>a</think>"), tokenizer))
