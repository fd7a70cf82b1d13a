"""One file a model family: its config.json, field by field, becomes a ModelSpec."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

from estimators.families.fields import Fields
from estimators.model import ModelSpec

Family = Callable[[Fields, str], ModelSpec]
"""Takes the fields and the name that the model goes by."""

FAMILIES: dict[str, str] = {
    "deepseek_v2": "deepseek.deepseek",
    "deepseek_v3": "deepseek.deepseek",
    "falcon": "falcon.falcon",
    "gemma": "gemma.gemma",
    "gemma2": "gemma.gemma2",
    "gemma3_text": "gemma.gemma3",
    "gpt2": "gpt2.gpt2",
    "gpt_neox": "gpt_neox.gpt_neox",
    "granite": "granite.granite",
    "llama": "llama.llama",
    "mistral": "llama.mistral",
    "mixtral": "mixtral.mixtral",
    "olmo": "olmo.olmo",
    "olmo2": "olmo.olmo2",
    "olmo3": "olmo.olmo3",
    "olmoe": "olmo.olmoe",
    "opt": "opt.opt",
    "phi": "phi.phi",
    "phi3": "phi.phi3",
    "qwen2": "qwen.qwen2",
    "qwen2_moe": "qwen_moe.qwen2_moe",
    "qwen3": "qwen.qwen3",
    "qwen3_moe": "qwen_moe.qwen3_moe",
    "smollm3": "smollm3.smollm3",
    "stablelm": "stablelm.stablelm",
    "starcoder2": "starcoder2.starcoder2",
}
"""By the config's model_type: the file here and its function. A plan reads one model, so one file is imported."""


def family(model_type: str) -> Family:
    """The function that reads configs of a model_type in FAMILIES."""
    module, function = FAMILIES[model_type].split(".")
    return cast(Family, getattr(import_module(f"{__name__}.{module}"), function))
