"""Phi: 1, 1.5 and 2 with LayerNorm, biases and parallel branches; 3 and 4 as Llama with fused products."""

from estimators.families.common import (
    Geometry,
    activation,
    geometry,
    layer_norm,
    outline,
    plain_mlp,
    rms,
    window,
)
from estimators.families.fields import Fields
from estimators.model import Attention, Block, FeedForward, Linear, ModelSpec


def phi(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False)
    act = activation(fields, default="gelu_new")
    block = Block(
        attention=_split_attention(fields, shape),
        feed_forward=plain_mlp(shape.hidden, shape.intermediate, act, names=("fc1", "fc2")),
        norms=(layer_norm(shape.hidden),),
        parallel=True,
        dropout=fields.fraction("resid_pdrop", 0.0),
    )
    return ModelSpec(
        **outline(fields, name, shape),
        layers=(block,) * shape.layers,
        final_norm=layer_norm(shape.hidden),
        head_bias=True,
        embedding_dropout=fields.fraction("embd_pdrop", 0.0),
    )


def phi3(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False)
    norm = rms(shape.hidden)
    block = Block(
        attention=_fused_attention(fields, shape),
        feed_forward=_fused_mlp(fields, shape),
        norms=(norm, norm),
        dropout=fields.fraction("resid_pdrop", 0.0),
    )
    return ModelSpec(**outline(fields, name, shape), layers=(block,) * shape.layers, final_norm=norm)


def _split_attention(fields: Fields, shape: Geometry) -> Attention:
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    norms = (layer_norm(shape.head_size),) * 2 if fields.flag("qk_layernorm", False) else ()
    return Attention(
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_size=shape.head_size,
        value_size=shape.head_size,
        linears=(
            Linear(name="q_proj", inputs=shape.hidden, outputs=queries, bias=True),
            Linear(name="k_proj", inputs=shape.hidden, outputs=keys, bias=True),
            Linear(name="v_proj", inputs=shape.hidden, outputs=keys, bias=True),
            Linear(name="dense", inputs=queries, outputs=shape.hidden, bias=True),
        ),
        query_key_norms=norms,
        rotary_fraction=fields.rotary_fraction("partial_rotary_factor", 0.5),
        dropout=fields.fraction("attention_dropout", 0.0),
    )


def _fused_attention(fields: Fields, shape: Geometry) -> Attention:
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    return Attention(
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_size=shape.head_size,
        value_size=shape.head_size,
        linears=(
            Linear(name="qkv_proj", inputs=shape.hidden, outputs=queries + 2 * keys),
            Linear(name="o_proj", inputs=queries, outputs=shape.hidden),
        ),
        rotary_fraction=fields.rotary_fraction("partial_rotary_factor", 1.0),
        window=window(fields),
        dropout=fields.fraction("attention_dropout", 0.0),
        fused_projection=True,
    )


def _fused_mlp(fields: Fields, shape: Geometry) -> FeedForward:
    return FeedForward(
        intermediate=shape.intermediate,
        gated=True,
        activation=activation(fields, default="silu"),
        linears=(
            Linear(name="gate_up_proj", inputs=shape.hidden, outputs=2 * shape.intermediate),
            Linear(name="down_proj", inputs=shape.intermediate, outputs=shape.hidden),
        ),
        fused_gate=True,
    )
