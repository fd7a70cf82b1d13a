"""The recipe: everything that decides what a fine-tuning job does, and nothing about the machine it runs on."""

from dataclasses import dataclass, field
from typing import Literal

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What is trained: the whole model ("full"), or low-rank matrices beside some of its layers."""

    method: str
    """A name in techniques.ADAPTERS: "full", "lora", "dora"."""
    rank: int = 0
    alpha: int = 0
    dropout: float = 0.0
    targets: tuple[str, ...] | str = ()
    """Module names, or "all-linear"."""

    @property
    def trains_everything(self) -> bool:
        return self.method == "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """How a job spreads over GPUs and what it keeps off them."""

    kind: str = "none"
    """A name in techniques.PARALLELISMS: "none", "ddp", "zero1", "zero2", "zero3", "fsdp2"."""
    devices: int = 1
    offload: tuple[str, ...] = ()
    """Any of "optimizer", "parameters"."""
    offload_to: Literal["cpu", "nvme"] = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Communication buffers, in the libraries' own units and with their own defaults.

    Sources: torch.nn.parallel.DistributedDataParallel (bucket_cap_mb); deepspeed.runtime.zero.config 0.19.8.
    """

    ddp_mib: int = 25
    reduce_elements: int = 500_000_000
    allgather_elements: int = 500_000_000
    prefetch_elements: int = 50_000_000
    persistence_elements: int = 100_000
    live_elements: int = 1_000_000_000
    sub_group_elements: int = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One fine-tuning job. Field names and values are those of the recipe document."""

    model: str
    adapter: Adapter
    trainer: Literal["transformers", "trl"] = "transformers"
    quantization: str = "none"
    """A name in techniques.QUANTIZATIONS: "none", "nf4" (double), "nf4-single", "int8"."""
    weights: str = "bfloat16"
    compute: str = "bfloat16"
    """Other than float32 it means autocast, which DeepSpeed replaces by casting the model."""
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = True
    attention: str = "sdpa"
    loss: str = "plain"
    micro_batch: int = 1
    gradient_accumulation: int = 1
    sequence_length: int = 2048
    padded: bool = False
    parallelism: Parallelism = field(default_factory=Parallelism)
    kbit_upcast: bool | None = None
    """Norms, embeddings and head in float32 under a quantised base; None: as the trainer does it."""
    buckets: Buckets = field(default_factory=Buckets)
    expandable_segments: bool = False
    evaluation_batch: int | None = None
    packing: bool = False
    learning_rate: float = 1e-5
    seed: int = 42

    @property
    def quantized(self) -> bool:
        return self.quantization != "none"

    @property
    def upcasts_kbit(self) -> bool:
        """Whether `peft.prepare_model_for_kbit_training` ran: the stock Trainer's way, TRL upcasts nothing."""
        return self.quantized and (self.trainer == "transformers" if self.kbit_upcast is None else self.kbit_upcast)

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.gradient_accumulation * self.parallelism.devices

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.sequence_length
