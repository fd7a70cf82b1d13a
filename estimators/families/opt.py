"""OPT: learned positions, LayerNorm with biases, dropout, and in the 350M a narrower embedding."""

from estimators.families import fields as limits
from estimators.families.common import activation, check_divides, check_even, layer_norm, plain_mlp
from estimators.families.fields import Fields
from estimators.model import Attention, Block, Linear, ModelSpec, Norm

_RESERVED_POSITIONS = 2
"""OPTLearnedPositionalEmbedding starts counting at 2."""


def opt(fields: Fields, name: str) -> ModelSpec:
    hidden = fields.count("hidden_size", limits.LARGEST_HIDDEN)
    positions = fields.count("max_position_embeddings", limits.LARGEST_POSITIONS)
    width = fields.count("word_embed_proj_dim", limits.LARGEST_HIDDEN, default=hidden)
    norm = _norm(fields, hidden)
    return ModelSpec(
        name=name,
        model_type="opt",
        hidden_size=hidden,
        vocabulary=fields.count("vocab_size", limits.LARGEST_VOCABULARY),
        tied=fields.flag("tie_word_embeddings", True),
        max_positions=positions,
        layers=(_block(fields, hidden, norm),) * fields.count("num_hidden_layers", limits.LARGEST_LAYERS),
        final_norm=norm if _ends_with_norm(fields) else None,
        learned_positions=positions + _RESERVED_POSITIONS,
        embedding_size=width if width != hidden else None,
        extra_linears=_projections(hidden, width),
    )


def _block(fields: Fields, hidden: int, norm: Norm) -> Block:
    act = activation(fields, "activation_function", default="relu")
    inner = fields.count("ffn_dim", limits.LARGEST_WIDTH)
    bias = fields.flag("enable_bias", True)
    return Block(
        attention=_attention(fields, hidden, bias),
        feed_forward=plain_mlp(hidden, inner, act, names=("fc1", "fc2"), bias=bias),
        norms=(norm, norm),
        norms_sums=not fields.flag("do_layer_norm_before", True),
        # OPTConfig's dropout is 0.1 where a file names none.
        dropout=fields.fraction("dropout", 0.1),
    )


def _attention(fields: Fields, hidden: int, bias: bool) -> Attention:
    heads = fields.count("num_attention_heads", limits.LARGEST_HEADS)
    check_divides(fields, "num_attention_heads", heads, "hidden_size", hidden)
    check_even(fields, hidden // heads)
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    return Attention(
        heads=heads,
        key_value_heads=heads,
        head_size=hidden // heads,
        value_size=hidden // heads,
        linears=tuple(Linear(name=name, inputs=hidden, outputs=hidden, bias=bias) for name in names),
        rotary_fraction=0.0,
        dropout=fields.fraction("attention_dropout", 0.0),
    )


def _norm(fields: Fields, hidden: int) -> Norm:
    affine = fields.flag("layer_norm_elementwise_affine", True)
    return layer_norm(hidden, weight=affine, bias=affine)


def _ends_with_norm(fields: Fields) -> bool:
    """The 350M normalises after each branch and so needs no norm at the end."""
    return fields.flag("do_layer_norm_before", True) and not fields.flag("_remove_final_layer_norm", False)


def _projections(hidden: int, width: int) -> tuple[Linear, ...]:
    if width == hidden:
        return ()
    return (
        Linear(name="project_in", inputs=width, outputs=hidden),
        Linear(name="project_out", inputs=hidden, outputs=width),
    )
