"""What a dry run found out about a recipe on one GPU: every figure of memory, without the events behind them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from estimators.work import Work

EVALUATION = "evaluation"
"""The phase after the last step; the peaks are those of training."""
SAVE = "save"
"""The last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Memory of a job on one GPU, from the replay of every allocation that it makes."""

    loaded_bytes: int
    peak_allocated_bytes: int
    """From after loading to the end of the last step, as torch.cuda.max_memory_allocated counts it."""
    peak_reserved_bytes: int
    peak_moment: str
    """The phase, and the module and operator that were running."""
    terms: Mapping[str, int] = field(hash=False)
    """Bytes alive at the allocated peak by what they are for; they sum to it exactly."""
    phases: Mapping[str, int] = field(hash=False)
    """Reserved bytes at the peak of each phase that the job goes through; it loads a checkpoint."""
    worst_allocated_bytes: int
    """In the worst phase, whether the job loads a checkpoint or is given random weights on the GPU."""
    worst_reserved_bytes: int
    work: Work
    """What a step computes."""
    layers_traced: int
    """Blocks that were run; the others were repeated from them."""
    seconds: float
