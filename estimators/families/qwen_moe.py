"""Qwen 1.5, 2 and 3 as mixtures of experts: some layers route, the others keep the dense MLP."""

from dataclasses import replace

from estimators.families import fields as limits
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
from estimators.families.qwen import normed_attention
from estimators.model import Attention, Block, FeedForward, Linear, ModelSpec


def qwen2_moe(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False, grouped=True)
    width = _window(fields)
    # With a window, transformers alternates up to max_window_layers; the released mixtures have none.
    first = fields.count("max_window_layers", limits.LARGEST_LAYERS, default=28, smallest=0)
    rule = [SLIDING if width and layer % 2 == 0 and layer < first else FULL for layer in range(shape.layers)]
    bias = fields.flag("qkv_bias", True)
    attention = {
        kind: split_attention(fields, shape, bias=bias, output_bias=False, window=width if kind == SLIDING else None)
        for kind in (FULL, SLIDING)
    }
    shared = fields.count("shared_expert_intermediate_size", limits.LARGEST_WIDTH)
    routed = _experts(fields, shape, shared)
    # A single product decides how much of the shared expert is added.
    gate = Linear(name="shared_expert_gate", inputs=shape.hidden, outputs=1)
    routed = replace(routed, linears=(*routed.linears, gate))
    kinds = layer_kinds(fields, shape.layers, rule)
    return _model(fields, name, shape, routed, [attention[kind] for kind in kinds])


def qwen3_moe(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False, grouped=True)
    # Here a window holds for every layer.
    attention = normed_attention(fields, shape, _window(fields))
    return _model(fields, name, shape, _experts(fields, shape, 0), [attention] * shape.layers)


def _window(fields: Fields) -> int | None:
    return window(fields, default=4096) if fields.flag("use_sliding_window", False) else None


def _experts(fields: Fields, shape: Geometry, shared: int) -> FeedForward:
    # transformers 5 saves num_experts under the other name.
    count = "num_experts" if "num_experts" in fields.values else "num_local_experts"
    act = activation(fields, default="silu")
    return fused_experts(fields, shape.hidden, act, count=count, intermediate="moe_intermediate_size", shared=shared)


def _routed_layers(fields: Fields, layers: int) -> list[bool]:
    """Every decoder_sparse_step-th layer routes (transformers' default: all), but for those in mlp_only_layers."""
    step = fields.count("decoder_sparse_step", limits.LARGEST_LAYERS, default=1)
    dense = fields.indices("mlp_only_layers", layers)
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]


def _model(fields: Fields, name: str, shape: Geometry, routed: FeedForward, attentions: list[Attention]) -> ModelSpec:
    dense = gated_mlp(shape.hidden, shape.intermediate, activation(fields, default="silu"))
    norms = (rms(shape.hidden), rms(shape.hidden))
    blocks: dict[tuple[bool, int | None], Block] = {}
    layers = []
    for is_routed, attention in zip(_routed_layers(fields, shape.layers), attentions, strict=True):
        kind = (is_routed, attention.window)
        if kind not in blocks:
            blocks[kind] = Block(attention=attention, feed_forward=routed if is_routed else dense, norms=norms)
        layers.append(blocks[kind])
    return ModelSpec(**outline(fields, name, shape), layers=tuple(layers), final_norm=rms(shape.hidden))
