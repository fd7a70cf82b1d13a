"""StarCoder2: grouped queries and rotary positions with LayerNorm, biases, dropout and a plain MLP."""

from estimators.families.common import (
    activation,
    geometry,
    layer_norm,
    outline,
    plain_mlp,
    split_attention,
    window,
)
from estimators.families.fields import Fields
from estimators.model import Block, ModelSpec


def starcoder2(fields: Fields, name: str) -> ModelSpec:
    shape = geometry(fields, square=False, grouped=True)
    bias = fields.flag("use_bias", True)
    act = activation(fields, default="gelu_pytorch_tanh")
    block = Block(
        attention=split_attention(fields, shape, bias=bias, window=window(fields)),
        feed_forward=plain_mlp(shape.hidden, shape.intermediate, act, names=("c_fc", "c_proj"), bias=bias),
        norms=(layer_norm(shape.hidden), layer_norm(shape.hidden)),
        dropout=fields.fraction("residual_dropout", 0.0),
    )
    return ModelSpec(
        **outline(fields, name, shape, tied=True),
        layers=(block,) * shape.layers,
        final_norm=layer_norm(shape.hidden),
        embedding_dropout=fields.fraction("embedding_dropout", 0.0),
    )
