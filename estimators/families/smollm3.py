"""SmolLM3: Llama's block, but one layer in four has no rotary positions."""

from estimators.families import fields as limits
from estimators.families.common import (
    FULL,
    SLIDING,
    activation,
    gated_mlp,
    geometry,
    layer_kinds,
    outline,
    rms,
    split_attention,
    window,
)
from estimators.families.fields import Fields
from estimators.model import Block, ModelSpec


def smollm3(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False, grouped=True)
    width = window(fields) if fields.flag("use_sliding_window", False) else None
    mlp_bias = fields.flag("mlp_bias", False)
    mlp = gated_mlp(shape.hidden, shape.intermediate, activation(fields, default="silu"), bias=mlp_bias)

    def block(rotates: bool, slides: bool) -> Block:
        attention = split_attention(
            fields,
            shape,
            bias=fields.flag("attention_bias", False),
            rotary_fraction=float(rotates),
            window=width if slides else None,
        )
        return Block(attention=attention, feed_forward=mlp, norms=(rms(shape.hidden), rms(shape.hidden)))

    rotating = _rotating_layers(fields, shape.layers)
    rule = [SLIDING if width and not rotates else FULL for rotates in rotating]
    slides = [kind == SLIDING for kind in layer_kinds(fields, shape.layers, rule)]
    kinds = list(zip(rotating, slides, strict=True))
    blocks = {kind: block(*kind) for kind in set(kinds)}
    return ModelSpec(
        **outline(fields, name, shape, tied=True),
        layers=tuple(blocks[kind] for kind in kinds),
        final_norm=rms(shape.hidden),
    )


def _rotating_layers(fields: Fields, layers: int) -> list[bool]:
    """no_rope_layers holds 1 where a layer rotates; absent, every no_rope_layer_interval-th does not."""
    listed = fields.items("no_rope_layers")
    if listed is None:
        interval = fields.count("no_rope_layer_interval", limits.LARGEST_LAYERS, default=4)
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if len(listed) != layers or any(type(entry) is not int or entry not in (0, 1) for entry in listed):
        fields.refuse("no_rope_layers", f"must hold 0 or 1 for each of the {layers} layers")
    return [entry == 1 for entry in listed]
