"""Llama and Mistral: RMSNorm, rotary positions, grouped queries, a gated MLP."""

from estimators.families.common import activation, gated_mlp, geometry, outline, rms, split_attention, window
from estimators.families.fields import Fields
from estimators.model import Block, ModelSpec


def llama(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields)
    block = Block(
        # Absent biases are transformers' own default: configs from before 2023 name neither.
        attention=split_attention(fields, shape, bias=fields.flag("attention_bias", False)),
        feed_forward=gated_mlp(
            shape.hidden,
            shape.intermediate,
            activation(fields, default="silu"),
            bias=fields.flag("mlp_bias", False),
        ),
        norms=(rms(shape.hidden), rms(shape.hidden)),
    )
    return ModelSpec(
        **outline(fields, name, shape),
        layers=(block,) * shape.layers,
        final_norm=rms(shape.hidden),
    )


def mistral(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False, grouped=True)
    block = Block(
        # Absent, transformers takes a window of 4096; null switches it off, as in v0.2 and later.
        attention=split_attention(fields, shape, window=window(fields, default=4096)),
        feed_forward=gated_mlp(shape.hidden, shape.intermediate, activation(fields, default="silu")),
        norms=(rms(shape.hidden), rms(shape.hidden)),
    )
    return ModelSpec(
        **outline(fields, name, shape),
        layers=(block,) * shape.layers,
        final_norm=rms(shape.hidden),
    )
