"""One file a model family: its config.json, field by field, becomes a ModelSpec."""

from collections.abc import Callable

from estimators.families.deepseek import deepseek
from estimators.families.falcon import falcon
from estimators.families.fields import Fields
from estimators.families.gemma import gemma, gemma2, gemma3
from estimators.families.gpt2 import gpt2
from estimators.families.gpt_neox import gpt_neox
from estimators.families.granite import granite
from estimators.families.llama import llama, mistral
from estimators.families.mixtral import mixtral
from estimators.families.olmo import olmo, olmo2, olmo3, olmoe
from estimators.families.opt import opt
from estimators.families.phi import phi, phi3
from estimators.families.qwen import qwen2, qwen3
from estimators.families.qwen_moe import qwen2_moe, qwen3_moe
from estimators.families.smollm3 import smollm3
from estimators.families.stablelm import stablelm
from estimators.families.starcoder2 import starcoder2
from estimators.model import ModelSpec

Family = Callable[[Fields, str], ModelSpec]
"""Takes the fields and the name that the model goes by."""

FAMILIES: dict[str, Family] = {
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "granite": granite,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "olmoe": olmoe,
    "opt": opt,
    "phi": phi,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}
"""By the config's model_type."""
