"""StableLM: Llama's MLP and split attention with LayerNorm; a quarter of each head rotates."""

from estimators.families.common import (
    activation,
    gated_mlp,
    geometry,
    layer_norm,
    outline,
    split_attention,
)
from estimators.families.fields import Fields
from estimators.model import Block, ModelSpec, Norm


def stablelm(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, grouped=True)
    if shape.head_size * shape.heads != shape.hidden:
        fields.refuse("head_dim", "is not a field of stablelm, whose heads are hidden_size / num_attention_heads")
    norms: tuple[Norm, ...] = ()
    if fields.flag("qk_layernorm", False):
        # Each head has weights of its own.
        norms = tuple(layer_norm(heads * shape.head_size, bias=False) for heads in (shape.heads, shape.key_value_heads))
    parallel = fields.flag("use_parallel_residual", False)
    block = Block(
        attention=split_attention(
            fields,
            shape,
            bias=fields.flag("use_qkv_bias", False),
            output_bias=False,
            norms=norms,
            rotary_fraction=fields.rotary_fraction("partial_rotary_factor", 0.25),
        ),
        feed_forward=gated_mlp(shape.hidden, shape.intermediate, activation(fields, default="silu")),
        norms=(layer_norm(shape.hidden),) * (1 if parallel else 2),
        parallel=parallel,
        # Of the MLP's branch alone; the attention's has none.
        dropout=fields.fraction("hidden_dropout", 0.0),
    )
    return ModelSpec(
        **outline(fields, name, shape), layers=(block,) * shape.layers, final_norm=layer_norm(shape.hidden)
    )
