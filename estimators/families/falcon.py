"""Falcon: attention and MLP in parallel, q, k and v in one product, one or few heads for keys and values."""

from estimators.families import fields as limits
from estimators.families.common import activation, check_divides, check_even, layer_norm, plain_mlp
from estimators.families.fields import Fields
from estimators.model import Attention, Block, Linear, ModelSpec


def falcon(fields: Fields, name: str) -> ModelSpec:
    fields.must_be("alibi", False, "position biases on the scores are not planned for")
    hidden = fields.count("hidden_size", limits.LARGEST_HIDDEN)
    # transformers: absent or null is four times the hidden size, as in every released Falcon but the newest.
    inner = fields.count("ffn_hidden_size", limits.LARGEST_WIDTH, default=4 * hidden)
    act = activation(fields, "activation", default="gelu")
    bias = fields.flag("bias", False)
    parallel = fields.flag("parallel_attn", True)
    block = Block(
        attention=_attention(fields, hidden, bias),
        feed_forward=plain_mlp(hidden, inner, act, names=("dense_h_to_4h", "dense_4h_to_h"), bias=bias),
        norms=(layer_norm(hidden),) * _norms(fields, parallel),
        parallel=parallel,
        dropout=fields.fraction("hidden_dropout", 0.0),
    )
    return ModelSpec(
        name=name,
        model_type="falcon",
        hidden_size=hidden,
        vocabulary=fields.count("vocab_size", limits.LARGEST_VOCABULARY),
        tied=fields.flag("tie_word_embeddings", True),
        # FalconConfig's default; the released files of 2023 leave it out.
        max_positions=fields.count("max_position_embeddings", limits.LARGEST_POSITIONS, default=2048),
        layers=(block,) * fields.count("num_hidden_layers", limits.LARGEST_LAYERS),
        final_norm=layer_norm(hidden),
    )


def _norms(fields: Fields, parallel: bool) -> int:
    """One norm feeds both branches in Falcon 7B; each has its own in the new architecture, and one after the other."""
    if not parallel:
        return 2
    default = 2 if fields.flag("new_decoder_architecture", False) else 1
    return 2 if fields.count("num_ln_in_parallel_attn", 2, default=default) == 2 else 1


def _attention(fields: Fields, hidden: int, bias: bool) -> Attention:
    heads = fields.count("num_attention_heads", limits.LARGEST_HEADS)
    check_divides(fields, "num_attention_heads", heads, "hidden_size", hidden)
    size = hidden // heads
    check_even(fields, size)
    key_value = _key_value_heads(fields, heads)
    return Attention(
        heads=heads,
        key_value_heads=key_value,
        head_size=size,
        value_size=size,
        linears=(
            Linear(name="query_key_value", inputs=hidden, outputs=(heads + 2 * key_value) * size, bias=bias),
            Linear(name="dense", inputs=hidden, outputs=hidden, bias=bias),
        ),
        # Without alibi the scaled-dot-product path applies no dropout, whatever attention_dropout says.
        fused_projection=True,
        needs_math=key_value == 1 < heads,
    )


def _key_value_heads(fields: Fields, heads: int) -> int:
    if fields.flag("new_decoder_architecture", False):
        count = fields.count("num_kv_heads", limits.LARGEST_HEADS, default=heads)
        check_divides(fields, "num_kv_heads", count, "num_attention_heads", heads)
        return count
    return 1 if fields.flag("multi_query", True) else heads
