"""Adapters on the weights of a mixture that are parameters of no linear layer: peft 0.21's lora.ParamWrapper.

Sources: peft 0.21 tuners/lora/layer.py (ParamWrapper merges the adapter into a copy of the weight, at every forward
pass) and utils/transformers_weight_conversion.py (which names reach such weights, and their ranks).
"""

from estimators.model import Linear, ModelSpec

GATE_UP, DOWN, ROUTER = "gate_up_proj", "down_proj", "gate.weight"
INTO_EXPERTS = {"gate_proj": GATE_UP, "up_proj": GATE_UP, DOWN: DOWN}
"""What the names of a mixture's linear layers are taken for: experts were such layers once, and are 3-D weights now.
Shared experts and dense layers of those names get no adapter then."""

REACHED = frozenset(["deepseek_v2", "deepseek_v3", "mixtral", "olmoe", "qwen3_moe"])
"""Values of model_type that peft does so for: what transformers' conversion_mapping.py gives a pattern to, and mixtral;
qwen2_moe has none of its own, so its shared experts are the layers of those names."""


def reaches_experts(model: ModelSpec) -> bool:
    """Whether names of the model's linear layers are taken for its experts' weights."""
    return model.model_type in REACHED


def expert_shapes(layer: Linear, rank: int, reached: frozenset[str]) -> tuple[tuple[int, int], ...]:
    """The two matrices of an adapter on an expert weight (peft's ParamWrapper): a rank for each expert.

    The rank of the fused gate and up is twice the others'.
    """
    name = layer.name if layer.copies > 1 else ROUTER
    if name not in reached:
        return ()
    ranks = layer.copies * rank * (2 if name == GATE_UP else 1)
    return (ranks, layer.inputs), (layer.outputs, ranks)
