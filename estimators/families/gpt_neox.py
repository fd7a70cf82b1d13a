"""GPT-NeoX and Pythia: attention and MLP in parallel, q, k and v in one product, a quarter of each head rotates."""

from estimators.families.common import Geometry, activation, geometry, layer_norm, outline, plain_mlp
from estimators.families.fields import Fields
from estimators.model import Attention, Block, Linear, ModelSpec


def gpt_neox(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields)
    norm = layer_norm(shape.hidden)
    dropout = fields.fraction("hidden_dropout", 0.0)
    act = activation(fields, default="gelu")
    block = Block(
        attention=_attention(fields, shape),
        feed_forward=plain_mlp(shape.hidden, shape.intermediate, act, names=("dense_h_to_4h", "dense_4h_to_h")),
        norms=(norm, norm),
        parallel=fields.flag("use_parallel_residual", True),
        dropout=dropout,
    )
    return ModelSpec(
        **outline(fields, name, shape),
        layers=(block,) * shape.layers,
        final_norm=norm,
        embedding_dropout=dropout,
    )


def _attention(fields: Fields, shape: Geometry) -> Attention:
    if shape.key_value_heads != shape.heads:
        fields.refuse("num_key_value_heads", "is not a field of gpt_neox, which has no grouped queries")
    if shape.head_size * shape.heads != shape.hidden:
        fields.refuse("head_dim", "is not a field of gpt_neox, whose heads are hidden_size / num_attention_heads")
    bias = fields.flag("attention_bias", True)
    return Attention(
        heads=shape.heads,
        key_value_heads=shape.heads,
        head_size=shape.head_size,
        value_size=shape.head_size,
        linears=(
            Linear(name="query_key_value", inputs=shape.hidden, outputs=3 * shape.hidden, bias=bias),
            Linear(name="dense", inputs=shape.hidden, outputs=shape.hidden, bias=bias),
        ),
        rotary_fraction=fields.rotary_fraction("rotary_pct", 0.25),
        dropout=fields.fraction("attention_dropout", 0.0),
        fused_projection=True,
    )
