"""GPT-2: learned positions, LayerNorm with biases, dropout, and Conv1D layers with q, k and v in one."""

from estimators.families import fields as limits
from estimators.families.common import activation, check_divides, check_even, layer_norm, plain_mlp
from estimators.families.fields import Fields
from estimators.model import Attention, Block, Linear, ModelSpec

_COMMON_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
"""transformers takes either name."""


def gpt2(fields: Fields, name: str) -> ModelSpec:
    fields.must_be("add_cross_attention", False, "cross-attention makes it a decoder of another model")
    hidden = _count(fields, "n_embd", limits.LARGEST_HIDDEN)
    positions = _count(fields, "n_positions", limits.LARGEST_POSITIONS)
    # transformers: null or absent is four times the hidden size, as in every GPT-2 checkpoint.
    inner = fields.count("n_inner", limits.LARGEST_WIDTH, default=4 * hidden)
    act = activation(fields, "activation_function", default="gelu_new")
    norm = layer_norm(hidden)
    block = Block(
        attention=_attention(fields, hidden),
        feed_forward=plain_mlp(hidden, inner, act, names=("c_fc", "c_proj")),
        norms=(norm, norm),
        # GPT2Config's dropouts are 0.1 where a file names none.
        dropout=fields.fraction("resid_pdrop", 0.1),
    )
    return ModelSpec(
        name=name,
        model_type="gpt2",
        hidden_size=hidden,
        vocabulary=fields.count("vocab_size", limits.LARGEST_VOCABULARY),
        tied=fields.flag("tie_word_embeddings", True),
        max_positions=positions,
        layers=(block,) * _count(fields, "n_layer", limits.LARGEST_LAYERS),
        final_norm=norm,
        learned_positions=positions,
        embedding_dropout=fields.fraction("embd_pdrop", 0.1),
    )


def _count(fields: Fields, field: str, largest: int) -> int:
    other = _COMMON_NAMES[field]
    return fields.count(other if field not in fields.values and other in fields.values else field, largest)


def _attention(fields: Fields, hidden: int) -> Attention:
    heads = _count(fields, "n_head", limits.LARGEST_HEADS)
    check_divides(fields, "n_head", heads, "n_embd", hidden)
    check_even(fields, hidden // heads)
    return Attention(
        heads=heads,
        key_value_heads=heads,
        head_size=hidden // heads,
        value_size=hidden // heads,
        linears=(
            Linear(name="c_attn", inputs=hidden, outputs=3 * hidden, bias=True),
            Linear(name="c_proj", inputs=hidden, outputs=hidden, bias=True),
        ),
        rotary_fraction=0.0,
        dropout=fields.fraction("attn_pdrop", 0.1),
        fused_projection=True,
    )
