"""What the user asked for: the model, what may be learned how, and the machine that it may use."""

from dataclasses import dataclass
from typing import Literal

from estimators.calibration import DEFAULT, Calibration

Objective = Literal["quality", "throughput", "memory", "cost"]
OffloadPolicy = Literal["never", "allowed", "required"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Meaning is fixed here (what is learned); None leaves a choice to the search or to profiles/rules.

    The micro-batch, checkpointing, kernels, sharding and offload are mechanics: the search is free in them unless a
    field restricts it.
    """

    model: str
    methods: tuple[str, ...] | None = None
    """Restricts the methods: any of "full", "lora", "dora", "qlora" and names in profiles/rules; None: the ladder's."""
    rank: int | None = None
    alpha: int | None = None
    targets: tuple[str, ...] | str | None = None
    """Layer names or "all-linear"; None: queries and values."""
    dropout: float | None = None
    sequence_length: int | None = None
    global_batch: int | None = None
    micro_batch: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    """None: the recipe's own default."""
    precision: str | None = None
    """ "amp" (float32 weights under autocast), "bf16", "fp16" or "fp32", for what full fine-tuning trains."""
    attention: str | None = None
    loss: str | None = None
    gradient_checkpointing: bool | None = None
    expandable_segments: bool | None = None
    """torch's allocator; None: where rows vary."""
    trainer: Literal["transformers", "trl"] = "transformers"
    padded: bool = False
    packing: bool = False
    varying: bool = False
    """Rows of data differ in length, so that batches do in width, and several rows of one hold padding. Not the user's
    to say: packing ends it."""
    objective: Objective = "quality"
    offload: OffloadPolicy = "allowed"
    vram_budget_bytes: int | None = None
    """Per GPU."""
    headroom_bytes: int | None = None
    """Per GPU; None: the rule of profiles/rules."""
    assume_idle: bool = False
    tokens: int | None = None
    """Length of the whole job, to be priced in hours."""
    samples: int | None = None
    rules_path: str | None = None
    """A rules file of the user's own, to be named again in the next command."""
    top: int = 8
    """How many alternatives to show."""
    calibration: Calibration = DEFAULT
    """What the machine's own measured runs taught: not the user's to say."""
