"""Granite: Llama's block with constants that scale embeddings, branches and logits."""

from estimators.families.common import activation, gated_mlp, geometry, outline, rms, split_attention
from estimators.families.fields import Fields
from estimators.model import Block, ModelSpec


def granite(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False)
    bias = fields.flag("mlp_bias", False)
    block = Block(
        attention=split_attention(fields, shape, bias=fields.flag("attention_bias", False)),
        feed_forward=gated_mlp(shape.hidden, shape.intermediate, activation(fields, default="silu"), bias=bias),
        norms=(rms(shape.hidden), rms(shape.hidden)),
        # The code multiplies even where a constant is 1.
        scaled_residual=True,
    )
    return ModelSpec(
        **outline(fields, name, shape),
        layers=(block,) * shape.layers,
        final_norm=rms(shape.hidden),
        scaled_embedding=True,
        scaled_logits=True,
    )
