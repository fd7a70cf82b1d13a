"""Gemma 1 to 3: norms that multiply by (1 + weight), scaled and tied embeddings, from Gemma 2 on sliding windows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from estimators.families import fields as limits
from estimators.families.common import (
    FULL,
    SLIDING,
    Geometry,
    activation,
    gated_mlp,
    geometry,
    layer_kinds,
    outline,
    rms,
    split_attention,
    window,
)
from estimators.families.fields import Fields, show
from estimators.model import Block, ModelSpec, Norm

_HEAD_SIZE = 256
"""Every Gemma config's default of head_dim."""

GEMMA3_OMITTED: Mapping[str, object] = MappingProxyType(
    {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": _HEAD_SIZE,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    }
)
"""What the text_config of the released Gemma 3 files leaves to Gemma3TextConfig's defaults (4B: all of these)."""


def gemma(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, head_size=_HEAD_SIZE, square=False, grouped=True)
    act = activation(fields, default="gelu_pytorch_tanh")
    # transformers reads the first files' "gelu" as the approximation that the model was trained with.
    act = "gelu_pytorch_tanh" if act == "gelu" else act
    norm = rms(shape.hidden, offset=True)
    block = Block(
        attention=split_attention(fields, shape, bias=fields.flag("attention_bias", False)),
        feed_forward=gated_mlp(shape.hidden, shape.intermediate, act),
        norms=(norm, norm),
    )
    return _model(fields, name, shape, (block,) * shape.layers, softcap=False)


def gemma2(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, head_size=_HEAD_SIZE, grouped=True)
    # Absent, transformers caps scores at 50 and logits at 30; null switches a cap off.
    softcap = _capped(fields, "attn_logit_softcapping", default=True)
    rule = [FULL if layer % 2 else SLIDING for layer in range(shape.layers)]
    layers = _alternating(fields, shape, rule, norms=(), softcap=softcap)
    return _model(fields, name, shape, layers, softcap=_capped(fields, "final_logit_softcapping", default=True))


def gemma3(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, head_size=_HEAD_SIZE, grouped=True)
    # One layer in six sees everything, unless a file says otherwise.
    period = fields.count("sliding_window_pattern", limits.LARGEST_LAYERS, default=6)
    rule = [SLIDING if (layer + 1) % period else FULL for layer in range(shape.layers)]
    norm = rms(shape.head_size, offset=True)
    softcap = _capped(fields, "attn_logit_softcapping", default=False)
    layers = _alternating(fields, shape, rule, norms=(norm, norm), softcap=softcap)
    return _model(fields, name, shape, layers, softcap=_capped(fields, "final_logit_softcapping", default=False))


def _alternating(
    fields: Fields, shape: Geometry, rule: Sequence[str], *, norms: tuple[Norm, ...], softcap: bool
) -> tuple[Block, ...]:
    """Layers that attend in a window, transformers' default being 4096, and layers that attend to everything."""
    act = activation(fields, "hidden_activation", default="gelu_pytorch_tanh")
    bias = fields.flag("attention_bias", False)
    width = window(fields, default=4096)
    blocks = {
        kind: Block(
            attention=split_attention(
                fields, shape, bias=bias, norms=norms, window=width if kind == SLIDING else None, softcap=softcap
            ),
            feed_forward=gated_mlp(shape.hidden, shape.intermediate, act),
            norms=(rms(shape.hidden, offset=True),) * 4,
        )
        for kind in (FULL, SLIDING)
    }
    return tuple(blocks[kind] for kind in layer_kinds(fields, shape.layers, rule))


def _model(fields: Fields, name: str, shape: Geometry, layers: tuple[Block, ...], *, softcap: bool) -> ModelSpec:
    fields.must_be("use_bidirectional_attention", False, "only causal models are planned for")
    return ModelSpec(
        **outline(fields, name, shape, tied=True),
        layers=layers,
        final_norm=rms(shape.hidden, offset=True),
        scaled_embedding=True,
        logit_softcap=softcap,
    )


def _capped(fields: Fields, field: str, *, default: bool) -> bool:
    if field not in fields.values:
        return default
    value = fields.values[field]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6):
        fields.refuse(field, f"must be null or a number above 0, not {show(value)}")
    return value is not None
