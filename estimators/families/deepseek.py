"""DeepSeek V2 and V3: latent attention, and behind a few dense layers a mixture with shared experts."""

from estimators.families import fields as limits
from estimators.families.common import (
    activation,
    check_divides,
    check_even,
    fused_experts,
    gated_mlp,
    key_value_heads,
    rms,
)
from estimators.families.fields import Fields
from estimators.model import Attention, Block, FeedForward, Linear, ModelSpec, Norm


def deepseek(fields: Fields, name: str) -> ModelSpec:
    """deepseek_v2 and deepseek_v3 build the same modules; they route differently."""
    hidden = fields.count("hidden_size", limits.LARGEST_HIDDEN)
    layers = fields.count("num_hidden_layers", limits.LARGEST_LAYERS)
    dense_layers = fields.count("first_k_dense_replace", layers, smallest=0)
    fields.must_be("mlp_bias", False, "no released DeepSeek has biases in its MLP")
    attention = _latent_attention(fields, hidden)
    norms = (rms(hidden), rms(hidden))
    act = activation(fields, default="silu")
    inner = fields.count("intermediate_size", limits.LARGEST_WIDTH)
    dense = Block(attention=attention, feed_forward=gated_mlp(hidden, inner, act), norms=norms)
    routed = Block(attention=attention, feed_forward=_experts(fields, hidden, act), norms=norms)
    return ModelSpec(
        name=name,
        model_type=str(fields.values["model_type"]),
        hidden_size=hidden,
        vocabulary=fields.count("vocab_size", limits.LARGEST_VOCABULARY),
        tied=fields.flag("tie_word_embeddings", False),
        max_positions=fields.count("max_position_embeddings", limits.LARGEST_POSITIONS),
        layers=(dense,) * dense_layers + (routed,) * (layers - dense_layers),
        final_norm=rms(hidden),
    )


def _experts(fields: Fields, hidden: int, act: str) -> FeedForward:
    count = "n_routed_experts" if "n_routed_experts" in fields.values else "num_local_experts"
    width = fields.count("moe_intermediate_size", limits.LARGEST_WIDTH)
    shared = fields.count("n_shared_experts", limits.LARGEST_EXPERTS) * width
    width_field = "moe_intermediate_size"
    return fused_experts(fields, hidden, act, count=count, intermediate=width_field, shared=shared, wide_scores=True)


def _latent_attention(fields: Fields, hidden: int) -> Attention:
    heads = fields.count("num_attention_heads", limits.LARGEST_HEADS)
    check_divides(fields, "num_attention_heads", heads, "hidden_size", hidden)
    if key_value_heads(fields, heads) != heads:
        fields.refuse("num_key_value_heads", "must equal num_attention_heads: the latent expands to all heads")
    rotating = fields.count("qk_rope_head_dim", limits.LARGEST_HEAD_SIZE)
    check_even(fields, rotating)
    still = fields.count("qk_nope_head_dim", limits.LARGEST_HEAD_SIZE)
    value = fields.count("v_head_dim", limits.LARGEST_HEAD_SIZE)
    latent = fields.count("kv_lora_rank", limits.LARGEST_WIDTH)
    bias = fields.flag("attention_bias", False)
    queries, query_norms = _queries(fields, hidden, heads * (still + rotating), bias)
    return Attention(
        heads=heads,
        key_value_heads=heads,
        head_size=still + rotating,
        value_size=value,
        linears=(
            *queries,
            Linear(name="kv_a_proj_with_mqa", inputs=hidden, outputs=latent + rotating, bias=bias),
            Linear(name="kv_b_proj", inputs=latent, outputs=heads * (still + value)),
            Linear(name="o_proj", inputs=heads * value, outputs=hidden, bias=bias),
        ),
        query_key_norms=(*query_norms, rms(latent)),
        rotary_fraction=rotating / (still + rotating),
        dropout=fields.fraction("attention_dropout", 0.0),
        latent=True,
    )


def _queries(fields: Fields, hidden: int, outputs: int, bias: bool) -> tuple[tuple[Linear, ...], tuple[Norm, ...]]:
    """Queries go through a latent of their own, unless q_lora_rank is null as in V2-Lite."""
    if "q_lora_rank" not in fields.values:
        fields.refuse("q_lora_rank", "is missing (null where queries have no latent)")
    if not fields.given("q_lora_rank"):
        return (Linear(name="q_proj", inputs=hidden, outputs=outputs),), ()
    rank = fields.count("q_lora_rank", limits.LARGEST_WIDTH)
    layers = (
        Linear(name="q_a_proj", inputs=hidden, outputs=rank, bias=bias),
        Linear(name="q_b_proj", inputs=rank, outputs=outputs),
    )
    return layers, (rms(rank),)
