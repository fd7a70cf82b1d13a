"""Qwen 1.5, 2, 2.5 and 3: Llama's block with biases on q, k and v (to 2.5) or norms on q and k (3)."""

from estimators.families.common import (
    Geometry,
    activation,
    gated_mlp,
    geometry,
    late_windows,
    outline,
    rms,
    split_attention,
)
from estimators.families.fields import Fields
from estimators.model import Attention, Block, ModelSpec


def qwen2(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False, grouped=True)
    widths = late_windows(fields, shape.layers)
    kinds = {
        width: _block(fields, shape, split_attention(fields, shape, bias=True, output_bias=False, window=width))
        for width in set(widths)
    }
    return _model(fields, name, shape, tuple(kinds[width] for width in widths))


def qwen3(fields: Fields, name: str) -> ModelSpec:
    # Qwen3Config's own head_dim is 128, not hidden / heads.
    shape = geometry(fields, head_size=128, square=False, grouped=True)
    widths = late_windows(fields, shape.layers)
    kinds = {width: _block(fields, shape, normed_attention(fields, shape, width)) for width in set(widths)}
    return _model(fields, name, shape, tuple(kinds[width] for width in widths))


def normed_attention(fields: Fields, shape: Geometry, width: int | None) -> Attention:
    """Qwen 3's: each head of q and k is normalised before it rotates."""
    norm = rms(shape.head_size)
    bias = fields.flag("attention_bias", False)
    return split_attention(fields, shape, bias=bias, norms=(norm, norm), window=width)


def _block(fields: Fields, shape: Geometry, attention: Attention) -> Block:
    return Block(
        attention=attention,
        feed_forward=gated_mlp(shape.hidden, shape.intermediate, activation(fields, default="silu")),
        norms=(rms(shape.hidden), rms(shape.hidden)),
    )


def _model(fields: Fields, name: str, shape: Geometry, layers: tuple[Block, ...]) -> ModelSpec:
    return ModelSpec(**outline(fields, name, shape), layers=layers, final_norm=rms(shape.hidden))
