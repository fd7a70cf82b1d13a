"""What most families share: the geometry of a decoder, and the attention and MLP that Llama made common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from estimators.families import fields as limits
from estimators.families.fields import Fields, show
from estimators.model import Attention, Experts, FeedForward, Linear, Norm

ACTIVATIONS = frozenset(
    {"gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "mish"}
    | {"quick_gelu", "relu", "relu2", "sigmoid", "silu", "swish", "tanh"}
)
"""Of transformers' ACT2FN, those that decoders use."""
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes that nearly every config.json gives, under transformers' common names."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    positions: int


class Outline(TypedDict):
    """The arguments of a ModelSpec that every family gives alike."""

    name: str
    model_type: str
    hidden_size: int
    vocabulary: int
    max_positions: int
    tied: bool


def outline(fields: Fields, name: str, shape: Geometry, *, tied: bool = False) -> Outline:
    """`tied` is the family's own default of tie_word_embeddings, which many files leave out."""
    return {
        "name": name,
        "model_type": str(fields.values["model_type"]),
        "hidden_size": shape.hidden,
        "vocabulary": shape.vocabulary,
        "max_positions": shape.positions,
        "tied": fields.flag("tie_word_embeddings", tied),
    }


def geometry(fields: Fields, *, head_size: int | None = None, square: bool = True, grouped: bool = False) -> Geometry:
    """The common sizes. `head_size` is the family's own default of head_dim; without one it is hidden / heads.

    `square`: transformers itself refuses heads that do not divide the hidden size, even where head_dim is given.
    `grouped`: num_key_value_heads must be there, as in every checkpoint of the family; transformers would put in
    those of one of them.
    """
    hidden = fields.count("hidden_size", limits.LARGEST_HIDDEN)
    heads = fields.count("num_attention_heads", limits.LARGEST_HEADS)
    if square or (head_size is None and not fields.given("head_dim")):
        check_divides(fields, "num_attention_heads", heads, "hidden_size", hidden)
    size = fields.count("head_dim", limits.LARGEST_HEAD_SIZE, default=head_size or max(hidden // heads, 1))
    check_even(fields, size)
    return Geometry(
        hidden=hidden,
        layers=fields.count("num_hidden_layers", limits.LARGEST_LAYERS),
        heads=heads,
        key_value_heads=key_value_heads(fields, heads, grouped=grouped),
        head_size=size,
        intermediate=fields.count("intermediate_size", limits.LARGEST_WIDTH),
        vocabulary=fields.count("vocab_size", limits.LARGEST_VOCABULARY),
        positions=fields.count("max_position_embeddings", limits.LARGEST_POSITIONS),
    )


def key_value_heads(fields: Fields, heads: int, *, grouped: bool = False) -> int:
    """num_key_value_heads; configs from before grouped queries omit it and mean one per head, as does null."""
    if grouped and "num_key_value_heads" not in fields.values:
        fields.refuse("num_key_value_heads", "is missing")
    count = fields.count("num_key_value_heads", limits.LARGEST_HEADS, default=heads)
    check_divides(fields, "num_key_value_heads", count, "num_attention_heads", heads)
    return count


def check_divides(fields: Fields, field: str, divisor: int, of: str, total: int) -> None:
    if total % divisor:
        fields.refuse(field, f"of {show(divisor)} does not divide {of} of {show(total)}")


def check_even(fields: Fields, head_size: int) -> None:
    if head_size % 2:
        field = "head_dim" if fields.given("head_dim") else "hidden_size / num_attention_heads"
        fields.refuse(field, f"gives heads of odd size {head_size}")


def activation(fields: Fields, field: str = "hidden_act", *, default: str) -> str:
    return fields.choice(field, ACTIVATIONS, default=default)


def rms(size: int, *, offset: bool = False) -> Norm:
    return Norm(kind="rmsnorm", size=size, offset=offset)


def layer_norm(size: int, *, weight: bool = True, bias: bool = True) -> Norm:
    return Norm(kind="layernorm", size=size, weight=weight, bias=bias)


def split_attention(
    fields: Fields,
    shape: Geometry,
    *,
    bias: bool = False,
    output_bias: bool | None = None,
    norms: Sequence[Norm] = (),
    window: int | None = None,
    rotary_fraction: float = 1.0,
    softcap: bool = False,
) -> Attention:
    """q_proj, k_proj, v_proj and o_proj, each its own layer. `output_bias` None: as the others."""
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    return Attention(
        heads=shape.heads,
        key_value_heads=shape.key_value_heads,
        head_size=shape.head_size,
        value_size=shape.head_size,
        linears=(
            Linear(name="q_proj", inputs=shape.hidden, outputs=queries, bias=bias),
            Linear(name="k_proj", inputs=shape.hidden, outputs=keys, bias=bias),
            Linear(name="v_proj", inputs=shape.hidden, outputs=keys, bias=bias),
            Linear(
                name="o_proj",
                inputs=queries,
                outputs=shape.hidden,
                bias=bias if output_bias is None else output_bias,
            ),
        ),
        query_key_norms=tuple(norms),
        rotary_fraction=rotary_fraction,
        window=window,
        softcap=softcap,
        dropout=fields.fraction("attention_dropout", 0.0),
    )


def gated_linears(hidden: int, intermediate: int, *, bias: bool = False) -> tuple[Linear, ...]:
    return (
        Linear(name="gate_proj", inputs=hidden, outputs=intermediate, bias=bias),
        Linear(name="up_proj", inputs=hidden, outputs=intermediate, bias=bias),
        Linear(name="down_proj", inputs=intermediate, outputs=hidden, bias=bias),
    )


def gated_mlp(hidden: int, intermediate: int, act: str, *, bias: bool = False) -> FeedForward:
    """gate_proj, up_proj and down_proj."""
    return FeedForward(
        intermediate=intermediate, gated=True, activation=act, linears=gated_linears(hidden, intermediate, bias=bias)
    )


def plain_mlp(hidden: int, intermediate: int, act: str, *, names: tuple[str, str], bias: bool = True) -> FeedForward:
    """Two layers with an activation in between."""
    up = Linear(name=names[0], inputs=hidden, outputs=intermediate, bias=bias)
    down = Linear(name=names[1], inputs=intermediate, outputs=hidden, bias=bias)
    return FeedForward(intermediate=intermediate, gated=False, activation=act, linears=(up, down))


def fused_experts(
    fields: Fields,
    hidden: int,
    act: str,
    *,
    count: str,
    intermediate: str,
    shared: int = 0,
    wide_scores: bool = False,
) -> FeedForward:
    """A mixture whose experts are two 3-D weights, as transformers 5 stores them; its router is no nn.Linear there.

    `count` and `intermediate` are the config's names; `shared` is the width of the experts that every token takes.
    """
    experts = fields.count(count, limits.LARGEST_EXPERTS)
    per_token = fields.count("num_experts_per_tok", limits.LARGEST_EXPERTS)
    if per_token > experts:
        fields.refuse("num_experts_per_tok", f"of {per_token} is more than {count} of {experts}")
    width = fields.count(intermediate, limits.LARGEST_WIDTH)
    gate = Linear(name="gate", inputs=hidden, outputs=experts, quantizable=False)
    return FeedForward(
        intermediate=shared,
        gated=True,
        activation=act,
        linears=gated_linears(hidden, shared) if shared else (),
        experts=Experts(
            count=experts,
            per_token=per_token,
            intermediate=width,
            router=gate,
            fused=True,
            wide_scores=wide_scores,
        ),
        expert_linears=(
            Linear(name="gate_up_proj", inputs=hidden, outputs=2 * width, copies=experts, quantizable=False),
            Linear(name="down_proj", inputs=width, outputs=hidden, copies=experts, quantizable=False),
        ),
    )


def window(fields: Fields, *, default: int | None = None) -> int | None:
    """sliding_window: null is full attention, absent it is the family's own default."""
    if "sliding_window" not in fields.values:
        return default
    return fields.count("sliding_window", limits.LARGEST_POSITIONS) if fields.given("sliding_window") else None


def layer_kinds(fields: Fields, layers: int, default: Sequence[str]) -> Sequence[str]:
    """layer_types, one text a layer; older configs leave it to the family's rule, `default`."""
    kinds = fields.items("layer_types")
    if kinds is None:
        return default
    if len(kinds) != layers:
        fields.refuse("layer_types", f"lists {len(kinds)} layers, num_hidden_layers says {layers}")
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            fields.refuse("layer_types", f"must hold {FULL} or {SLIDING}, not {show(kind)}")
    return [str(kind) for kind in kinds]


def late_windows(fields: Fields, layers: int) -> list[int | None]:
    """Qwen's rule: with use_sliding_window the layers from max_window_layers on attend in a window."""
    # transformers' defaults: off, 4096 and 28; every config that switches it on gives both.
    width = window(fields, default=4096) if fields.flag("use_sliding_window", False) else None
    first = fields.count("max_window_layers", limits.LARGEST_LAYERS, default=28, smallest=0)
    rule = [SLIDING if width is not None and layer >= first else FULL for layer in range(layers)]
    return [width if kind == SLIDING else None for kind in layer_kinds(fields, layers, rule)]
