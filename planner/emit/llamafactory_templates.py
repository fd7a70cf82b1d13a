"""Which of its own chat templates LLaMA-Factory is told: left to itself it takes the tokenizer's apart.

Seen with 0.9.5: it repeats the system's header of Llama 3.1 and 3.2 before every turn, learns an empty thought in every
turn of Qwen 3, and stops at those of Gemma and Mistral. Those of ChatML it takes apart right.
"""

import re

from planner.emit.tokenizer_files import template_in

SIGNS = (
    (("<start_of_turn>",), "gemma"),
    (("<|start_header_id|>",), "llama3"),
    (("[INST] ", "<<SYS>>"), "llama2"),
    (("[INST] ",), "mistral"),
    (("<|im_start|>", "enable_thinking", "<think>\\n\\n</think>"), "qwen3_nothink"),
    (("<|user|>", "<|end|>"), "phi"),
)
"""What stands in a chat template, and the name of the one that learns the same of it."""
NAMES = (
    (r"(meta-llama|unsloth)/(meta-)?llama-3[.\d]*-\d+b-instruct", "llama3"),
    (r"(google|unsloth)/gemma-(1\.1-|[23]-)?\d+[bm]-it", "gemma"),
    (r"(qwen|unsloth)/qwen3-[\d.]+b(-a\d+b)?(-instruct-2507)?", "qwen3_nothink"),
    (r"microsoft/phi-3(\.5)?-mini-.*instruct", "phi"),
    (r"mistralai/mistral-7b-instruct-v0\.3", "mistral"),
)
"""Of a whole Hub id in small letters, where the files are not at hand: other makers' may have other templates."""
TAKEN_APART_RIGHT = "<|im_start|>"
DOUBT = (
    "LLaMA-Factory takes the tokenizer's chat template apart by trial, not always right: look at the first example "
    "that it prints, or name one of its own (template: NAME)"
)


def template_name(weights: str) -> str | None:
    """Of the template to name; None: the tokenizer's own is taken apart."""
    text = template_in(weights)
    if text is not None:
        return next((name for signs, name in SIGNS if all(sign in text for sign in signs)), None)
    return next((name for sign, name in NAMES if re.fullmatch(sign, weights.lower())), None)


def template_doubt(weights: str) -> str | None:
    """What to say where none is named; None: it is known to be taken apart right, or one is named."""
    text = template_in(weights)
    right = text is not None and TAKEN_APART_RIGHT in text and "<think>" not in text
    if right or template_name(weights) is not None:
        return None
    return DOUBT
