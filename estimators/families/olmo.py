"""OLMo: norms without weights (1), norms after each branch and over all of q and k (2, 3), and a mixture (OLMoE)."""

from collections.abc import Callable

from estimators.families.common import (
    FULL,
    SLIDING,
    Geometry,
    activation,
    fused_experts,
    gated_mlp,
    geometry,
    layer_kinds,
    outline,
    rms,
    split_attention,
    window,
)
from estimators.families.fields import Fields
from estimators.model import Attention, Block, FeedForward, ModelSpec, Norm


def olmo(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False)
    norm = Norm(kind="layernorm", size=shape.hidden, weight=False, restores=True)
    block = Block(
        attention=split_attention(fields, shape, bias=fields.flag("attention_bias", False)),
        feed_forward=_dense(fields, shape),
        norms=(norm, norm),
    )
    return ModelSpec(**outline(fields, name, shape), layers=(block,) * shape.layers, final_norm=norm)


def olmo2(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False)
    block = Block(
        attention=_normed_attention(fields, shape, _wide),
        feed_forward=_dense(fields, shape),
        norms=(_wide(shape.hidden), _wide(shape.hidden)),
        norms_after=True,
    )
    return ModelSpec(**outline(fields, name, shape), layers=(block,) * shape.layers, final_norm=_wide(shape.hidden))


def olmo3(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False)
    mlp = _dense(fields, shape)
    norms = (_wide(shape.hidden), _wide(shape.hidden))
    # Absent, transformers takes 4096, with every fourth layer attending to everything.
    width = window(fields, default=4096)
    blocks = {
        kind: Block(
            attention=_normed_attention(fields, shape, _wide, width if kind == SLIDING else None),
            feed_forward=mlp,
            norms=norms,
            norms_after=True,
        )
        for kind in (FULL, SLIDING)
    }
    rule = [SLIDING if (layer + 1) % 4 else FULL for layer in range(shape.layers)]
    layers = tuple(blocks[kind] for kind in layer_kinds(fields, shape.layers, rule))
    return ModelSpec(**outline(fields, name, shape), layers=layers, final_norm=_wide(shape.hidden))


def olmoe(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields)
    act = activation(fields, default="silu")
    block = Block(
        attention=_normed_attention(fields, shape, rms),
        feed_forward=fused_experts(fields, shape.hidden, act, count="num_experts", intermediate="intermediate_size"),
        norms=(rms(shape.hidden), rms(shape.hidden)),
    )
    return ModelSpec(**outline(fields, name, shape), layers=(block,) * shape.layers, final_norm=rms(shape.hidden))


def _dense(fields: Fields, shape: Geometry) -> FeedForward:
    return gated_mlp(shape.hidden, shape.intermediate, activation(fields, default="silu"))


def _wide(size: int) -> Norm:
    """OLMo 2 and 3 apply the weight before the cast back to the input's type."""
    return rms(size, offset=True)


def _normed_attention(
    fields: Fields, shape: Geometry, norm: Callable[[int], Norm], width: int | None = None
) -> Attention:
    norms = (norm(shape.heads * shape.head_size), norm(shape.key_value_heads * shape.head_size))
    bias = fields.flag("attention_bias", False)
    return split_attention(fields, shape, bias=bias, norms=norms, window=width)
