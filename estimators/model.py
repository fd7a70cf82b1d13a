"""The model as its code builds it: blocks of named layers, so that parameters, targets and activations agree.

A family file (estimators/families/) turns a Hugging Face config.json into a ModelSpec. Everything that depends on a
model (parameter counts, which layers an adapter or a quantiser touches, activations, flops) is read from these nouns.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A matrix product with a stored weight. `name` is the module's own last name, which adapters target."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    """How many of this layer a block holds, such as one per expert where experts are separate modules."""
    quantizable: bool = True
    """bitsandbytes and PEFT's "all-linear" reach nn.Linear and GPT-2's Conv1D, not fused 3-D expert weights."""

    @property
    def parameters(self) -> int:
        return self.copies * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A normalisation over the last axis."""

    kind: Literal["rmsnorm", "layernorm"]
    size: int
    weight: bool = True
    bias: bool = False
    offset: bool = False
    """The weight is applied in float32, before the cast back: Gemma's 1 + weight, OLMo 2."""
    restores: bool = False
    """A layernorm whose code goes to float32 and back to the input's type, also where autocast would not: OLMo."""

    @property
    def parameters(self) -> int:
        return self.size * (self.weight + self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Self-attention of one block. With `latent` (DeepSeek's MLA) keys and values come from a low-rank projection."""

    heads: int
    key_value_heads: int
    head_size: int
    """Of queries and keys."""
    value_size: int
    """Of values, per head; differs from head_size in MLA only."""
    linears: tuple[Linear, ...]
    """In the order in which the forward pass runs them; the output projection last."""
    query_key_norms: tuple[Norm, ...] = ()
    """Norms inside attention: per head in Qwen 3 (size = head_size), over all heads in OLMo 2, on the latent in MLA."""
    rotary_fraction: float = 1.0
    """Part of a head that rotates; 0 where positions are learned."""
    window: int | None = None
    """Sliding window in tokens; None is full attention."""
    softcap: bool = False
    dropout: float = 0.0
    fused_projection: bool = False
    """One product makes q, k and v (GPT-2, GPT-NeoX, Phi-3, Falcon)."""
    latent: bool = False
    needs_math: bool = False
    """Its call of scaled_dot_product_attention broadcasts one key head over many query heads, which only the math
    kernel takes: the score matrix is stored (Falcon's multi-query attention)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The routed part of a mixture-of-experts layer."""

    count: int
    per_token: int
    intermediate: int
    """Width of one expert."""
    router: Linear
    fused: bool
    """True where all experts are one 3-D weight (transformers 5), which bitsandbytes does not quantise."""
    wide_scores: bool = False
    """The chosen experts' scores stay in float32 (Mixtral, DeepSeek), so what they weigh does too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """The MLP of one block: `linears` are the dense (or shared-expert) layers, `experts` the routed ones."""

    intermediate: int
    """Width of `linears`; 0 where a mixture has no shared expert."""
    gated: bool
    activation: str
    """The config's own name: "silu", "gelu_new", "gelu_pytorch_tanh", "relu"."""
    linears: tuple[Linear, ...]
    fused_gate: bool = False
    """gate and up are one product (Phi-3)."""
    experts: Experts | None = None
    expert_linears: tuple[Linear, ...] = ()
    """The experts' weights, with copies = count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer."""

    attention: Attention
    feed_forward: FeedForward
    norms: tuple[Norm, ...]
    parallel: bool = False
    """Attention and MLP read the same input and are added together (GPT-NeoX, Falcon, Phi)."""
    norms_after: bool = False
    """OLMo 2 norms what attention and the MLP return instead of what they read."""
    norms_sums: bool = False
    """OPT-350M norms what comes of adding a branch to the stream."""
    dropout: float = 0.0
    """Of the two residual branches in training."""
    scaled_residual: bool = False
    """Granite multiplies each branch by a constant before adding it."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        router = (self.feed_forward.experts.router,) if self.feed_forward.experts else ()
        return (*self.attention.linears, *self.feed_forward.linears, *router, *self.feed_forward.expert_linears)

    @property
    def parameters(self) -> int:
        norms = (*self.norms, *self.attention.query_key_norms)
        return sum(layer.parameters for layer in self.linears) + sum(norm.parameters for norm in norms)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelSpec:
    """A decoder-only language model. `layers` holds one Block per decoder layer, in order; equal ones are shared."""

    name: str
    model_type: str
    hidden_size: int
    vocabulary: int
    tied: bool
    """The output head is the embedding matrix."""
    max_positions: int
    layers: tuple[Block, ...]
    final_norm: Norm | None
    head_bias: bool = False
    learned_positions: int = 0
    """Rows of a learned position table, as GPT-2 and OPT have."""
    embedding_size: int | None = None
    """Where the embedding is narrower than the hidden state (OPT-350M), with a projection in and out."""
    embedding_dropout: float = 0.0
    scaled_embedding: bool = False
    """Gemma multiplies the embeddings by the root of the hidden size."""
    logit_softcap: bool = False
    scaled_logits: bool = False
    """Granite divides the logits by a constant."""
    head_name: str = "lm_head"
    embedding_norm: Norm | None = None
    extra_linears: tuple[Linear, ...] = ()
    """Layers outside the blocks and the head (OPT-350M's project_in and project_out)."""

    @cached_property
    def block_counts(self) -> tuple[tuple[Block, int], ...]:
        """The distinct blocks and how often each occurs, in order of first appearance."""
        counts: dict[Block, int] = {}
        for block in self.layers:
            counts[block] = counts.get(block, 0) + 1
        return tuple(counts.items())

    @cached_property
    def block_kinds(self) -> tuple[int, ...]:
        """For each layer, which of `block_counts` it is."""
        places = {block: place for place, (block, _) in enumerate(self.block_counts)}
        return tuple(places[block] for block in self.layers)

    @cached_property
    def embedding_parameters(self) -> int:
        width = self.embedding_size or self.hidden_size
        return self.vocabulary * width + self.learned_positions * self.hidden_size

    @cached_property
    def head_parameters(self) -> int:
        """Stored by the head alone: nothing but a bias where it is tied."""
        width = self.embedding_size or self.hidden_size
        return (0 if self.tied else self.vocabulary * width) + (self.vocabulary if self.head_bias else 0)

    @cached_property
    def parameters(self) -> int:
        blocks = sum(block.parameters * count for block, count in self.block_counts)
        norms = sum(norm.parameters for norm in (self.final_norm, self.embedding_norm) if norm)
        extra = sum(layer.parameters for layer in self.extra_linears)
        return blocks + norms + extra + self.embedding_parameters + self.head_parameters

    @cached_property
    def active_parameters(self) -> int:
        """Touched by one token: all of them but the experts that the router leaves out."""
        idle = 0
        for block, count in self.block_counts:
            if experts := block.feed_forward.experts:
                whole = sum(layer.parameters for layer in block.feed_forward.expert_linears)
                idle += count * whole * (experts.count - experts.per_token) // experts.count
        return self.parameters - idle
