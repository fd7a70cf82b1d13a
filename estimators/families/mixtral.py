"""Mixtral: Mistral's block with a mixture of experts in every layer."""

from estimators.families.common import activation, fused_experts, geometry, outline, rms, split_attention, window
from estimators.families.fields import Fields
from estimators.model import Block, ModelSpec


def mixtral(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False, grouped=True)
    act = activation(fields, default="silu")
    block = Block(
        attention=split_attention(fields, shape, window=window(fields)),
        feed_forward=fused_experts(
            fields,
            shape.hidden,
            act,
            count="num_local_experts",
            intermediate="intermediate_size",
            wide_scores=True,
        ),
        norms=(rms(shape.hidden), rms(shape.hidden)),
    )
    return ModelSpec(**outline(fields, name, shape), layers=(block,) * shape.layers, final_norm=rms(shape.hidden))
