"""The axes along which recipes vary, as protocols: what a law on each must be able to answer.

A law sees the model's shapes and the tape, never the whole recipe; what it excludes it names in `needs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from estimators.model import Attention, Linear, ModelSpec
from estimators.recipe import Buckets
from estimators.tape import Tape, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a technique asks of the rest: an illegal combination is a named reason, not an error."""

    compute_capability: tuple[int, int] = (0, 0)
    adapters: tuple[str, ...] | None = None
    """Adapter methods it works with; None: all."""
    quantizations: tuple[str, ...] | None = None
    optimizers: tuple[str, ...] | None = None
    parallelisms: tuple[str, ...] | None = None
    trainers: tuple[str, ...] | None = None
    data_types: tuple[str, ...] | None = None
    """Compute types it works with."""
    model_types: frozenset[str] | None = None
    """Values of the config's model_type that it has code for; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the code of a model runs: what the laws of layers need to know of a recipe, and nothing else."""

    sequences: int
    sequence_length: int
    autocast: bool
    compute_bytes: int
    """Item size of matrix products: 2 under autocast to a 16-bit type."""
    weight_bytes: int
    """Item size of the base weights that are not quantised."""
    stream_bytes: int
    """Item size of embeddings and norms, and so of the residual stream."""
    trains_base: bool
    padded: bool
    fused_kernels: bool
    """Liger's norm, rotary embedding and SwiGLU in place of the model's own."""
    quantization: "QuantizationLaw"
    adapter: "AdapterLaw"
    rank: int
    adapter_dropout: float
    targets: frozenset[str]
    """Names of the linear layers that have an adapter."""
    expert_targets: frozenset[str]
    """Names of the 3-D expert weights (and of the router) that have one."""
    adapter_bytes: int
    """Item size of the adapters' matrices."""
    attention: "AttentionLaw"

    @property
    def tokens(self) -> int:
        return self.sequences * self.sequence_length


class QuantizationLaw(Protocol):
    """How the frozen base's linear layers are stored and multiplied."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def stored_bytes(self, layer: Linear, weight_bytes: int) -> int:
        """Bytes of the layer's weight and bias as it rests on the GPU, quantisation constants included."""

    def product(self, tape: Tape, setting: Setting, source: Value, layer: Linear) -> Value:
        """Record source @ weight on the tape."""


class AdapterLaw(Protocol):
    """What is trained beside or instead of the base."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def shapes(self, layer: Linear, rank: int) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each trainable tensor that the adapter adds to one layer (1 column: a vector)."""

    def beside(self, tape: Tape, setting: Setting, source: Value, base: Value, layer: Linear) -> Value:
        """Record the adapter's branch on the tape; returns the layer's output."""


class AttentionLaw(Protocol):
    """The kernel between the query, key and value projections and the output projection."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def attend(
        self, tape: Tape, setting: Setting, shape: Attention, query: Value, key: Value, value: Value
    ) -> Value: ...


class OptimizerLaw(Protocol):
    """The optimizer step, for tensors of trainable parameters."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    @property
    def library(self) -> str:
        """Whose kernels update the weights: "torch" or "bitsandbytes"."""

    @property
    def changes_learning(self) -> bool:
        """True where it is offered only by name: it trains differently from AdamW."""

    def state_bytes(self, groups: Sequence["ParameterGroup"], weight_bytes: int) -> int:
        """Bytes of optimizer state that torch's allocator holds."""

    def managed_bytes(self, groups: Sequence["ParameterGroup"], weight_bytes: int) -> int:
        """Bytes of state in CUDA managed memory, which torch does not count."""

    def step_temporary_bytes(self, groups: Sequence["ParameterGroup"], weight_bytes: int) -> int:
        """Highest extra bytes while the step runs."""

    def traffic_bytes(self, groups: Sequence["ParameterGroup"], weight_bytes: int) -> float:
        """Bytes that a step reads and writes."""

    def launches(self, groups: Sequence["ParameterGroup"]) -> float:
        """Kernels that a step launches."""


class LossLaw(Protocol):
    """The output head and the loss."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def walk(self, tape: Tape, setting: Setting, model: ModelSpec, stream: Value) -> None:
        """Record final norm, head and loss on the tape."""


Phase = Literal["loaded", "loss", "backward", "step"]
"""Where a training step is: before it, at its loss (no gradients yet), deep in its backward pass, at the optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What a parallelism law needs to know: whole-model figures, for one rank as if it held everything."""

    devices: int
    weights_bytes: int
    """The base as stored, adapters apart."""
    trainable_parameters: int
    trainable_bytes_each: int
    """Item size of the trainable weights in the passes."""
    trainable_tensors: int
    adapter: bool
    """True where the trainable weights are adapters beside a frozen base."""
    state_bytes: int
    """Optimizer state in torch's allocator."""
    step_temporary_bytes: int
    largest_tensor: int
    """Elements of the largest trainable tensor."""
    block_parameters: int
    """Elements of the largest block, frozen and trainable."""
    embedding_parameters: int
    """Elements of embedding and head together, each counted once."""
    layers: int
    compute_bytes: int
    accumulates: bool
    """True where gradients survive from one micro-batch to the next."""
    offload: tuple[str, ...]
    offload_to: str
    buckets: Buckets
    trained: tuple["ParameterGroup", ...] = ()
    """The trainable tensors; sharding pads each of them."""
    frozen: tuple["ParameterGroup", ...] = ()
    head_parameters: int = 0
    """Elements of the output head's matrix, also where it is the embedding."""
    tied: bool = False
    trainable_bytes_loaded: int = 4
    """Item size of the trainable weights as they are loaded."""
    recomputes: bool = False
    """Activation checkpointing: each block runs forward again before its backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """What one rank holds of weights, gradients and states at one phase, in bytes."""

    weights: int = 0
    adapter: int = 0
    gradients: int = 0
    """Once all are made; they grow in the backward pass."""
    gradient_buffers: int = 0
    """Gradients of earlier micro-batches, or buffers for all of them: there from the start of the phase."""
    optimizer: int = 0
    workspace: int = 0
    communication: int = 0
    reducing: int = 0
    """Of `communication`, what lives only while a full bucket is reduced."""
    forward_only: int = 0
    """Gathered weights that are freed when the forward pass returns."""
    preparation: int | None = None
    """Beside the loaded model while it is being sharded on the GPU; None where it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What crosses links in one optimizer step of one rank, in bytes; `calls` are collectives."""

    micro_gathered: float = 0.0
    """All-gathered in every micro-batch (each rank receives so many bytes in all)."""
    micro_reduced: float = 0.0
    """Reduce-scattered in every micro-batch."""
    reduced: float = 0.0
    """All-reduced once a step."""
    scattered: float = 0.0
    """Reduce-scattered once a step."""
    gathered: float = 0.0
    """All-gathered once a step."""
    calls: int = 0
    """Collectives once a step."""
    micro_calls: int = 0
    """Collectives in every micro-batch."""
    to_host: float = 0.0
    from_host: float = 0.0
    micro_from_host: float = 0.0
    micro_to_host: float = 0.0
    host_optimizer_parameters: float = 0.0
    """Parameters that this rank's CPU steps through."""
    disk: float = 0.0
    """Bytes read and written on NVMe in a step."""
    micro_disk: float = 0.0
    """The same in every micro-batch."""
    copied: float = 0.0
    """Bytes that gathering, sharding and casting read and write in device memory once a step."""
    micro_copied: float = 0.0
    """The same in every micro-batch."""
    overlaps: bool = True
    """False where the passes wait for each collective."""


class ParallelismLaw(Protocol):
    """How a job spreads over GPUs, and what it keeps in host memory or on disk."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> Needs: ...

    def resident(self, job: Job, phase: Phase) -> Resident:
        """What one rank holds on its GPU at a phase; at "backward" with all gradients made."""

    def host_bytes(self, job: Job) -> int:
        """Host memory of all ranks of one node for offloaded state, pinned buffers included."""

    def disk_bytes(self, job: Job) -> int:
        """NVMe space of one node."""

    def exchange(self, job: Job) -> Exchange: ...


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Some equal trainable tensors: `count` of them, each `rows` × `columns` (columns 1 for a vector)."""

    count: int
    rows: int
    columns: int = 1
    embedding: bool = False

    @property
    def elements(self) -> int:
        """Of one tensor."""
        return self.rows * self.columns

    @property
    def parameters(self) -> int:
        return self.count * self.rows * self.columns
