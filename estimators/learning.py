"""How a job learns, beside what it costs: the schedule it was given, and the losses that came of it."""

import math
import re
from dataclasses import dataclass
from pathlib import PurePath

from estimators.errors import BadInput, UnknownName
from estimators.strict import AnyFloat

SCHEDULES = ("linear", "cosine", "constant")
_METRIC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def transformers_schedule(name: str, *, warms_up: bool) -> str:
    """Its name in transformers' SchedulerType, where a constant rate that warms up has one of its own."""
    return "constant_with_warmup" if name == "constant" and warms_up else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What changes what is learned, and not what a step costs."""

    schedule: str = "linear"
    """Of the learning rate, by its name in transformers: linear, cosine, constant (the last after warming up too)."""
    warm_up_steps: int = 0
    clip_norm: float = 1.0
    """Gradients are scaled to at most this norm; 0: not at all."""
    weight_decay: float = 0.0
    held_out: str | None = None
    """The absolute path of a JSONL file of examples that are only evaluated; None: none are."""
    evaluate_every: int | None = None
    """Steps between evaluations; None: once before the first step and once after the last, where any are held out."""
    patience: int | None = None
    """Evaluations without a lower loss after which the job ends early; None: it goes to its last step."""
    completion_only: bool = True
    """Whether prompts and the turns of others are read but not learned."""
    metric: str | None = None
    """module:function, called with the model's generations; given on the command line only."""
    metric_folder: str | None = None
    """The absolute path of the folder that the metric's module is imported from."""
    metric_tokens: int = 64
    """Of each generation, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The held-out examples after so many steps."""

    step: int
    loss: AnyFloat
    """Mean over the tokens that are learned; nan and infinity are what they are."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What one job learned."""

    losses: tuple[AnyFloat, ...] = ()
    """Of each optimizer step, before it."""
    evaluated: tuple[Evaluated, ...] = ()
    """In order; the one at step 0 is the untrained model's."""
    tokens: int = 0
    """Trained on, padding not counted, of this rank."""
    dropped: int = 0
    """Examples of the training file that were read and have nothing to learn once they are cut."""
    stopped_at: int | None = None
    """The step after which patience ended the job."""
    score: AnyFloat | None = None
    """The user's own metric, higher being better."""

    @property
    def loss(self) -> float | None:
        """Of the held-out examples, the lowest after training began; None where none were held out.

        Where every one is nan or infinite, so is this.
        """
        losses = [one.loss for one in self.evaluated if one.step]
        return min((loss for loss in losses if not math.isnan(loss)), default=losses[0] if losses else None)

    @property
    def untrained_loss(self) -> float | None:
        return next((one.loss for one in self.evaluated if not one.step), None)

    @property
    def hopeless(self) -> bool:
        """Whether the last loss is no number any more: what was trained is lost."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])


def check(training: Training) -> Training:
    """The same, once every value is one that a job can run.

    Raises:
        UnknownName: nobody here has this schedule.
        BadInput: a value that no job can have; the message names it.
    """
    if training.schedule not in SCHEDULES:
        raise UnknownName("learning-rate schedule", training.schedule, SCHEDULES)
    for name in ("held_out", "metric_folder"):
        path = getattr(training, name)
        if path is not None and ("\0" in path or not PurePath(path).is_absolute()):
            raise BadInput(f"{name} must be an absolute path, not {path[:60]!a}")
    for name, least in LEAST.items():
        value = getattr(training, name)
        if value is not None and not value >= least:
            raise BadInput(f"{name} must be at least {least}, not {value}")
    if training.metric is not None and not _METRIC.fullmatch(training.metric):
        raise BadInput(f"metric must be module:function, not {training.metric[:60]!a}")
    if (training.patience or training.evaluate_every or training.metric) and training.held_out is None:
        raise BadInput("patience, evaluate_every and metric need examples that are held out")
    if training.metric is not None and training.metric_folder is None:
        raise BadInput("a metric needs the folder that its module is imported from")
    return training


LEAST = {
    "warm_up_steps": 0, "clip_norm": 0.0, "weight_decay": 0.0, "evaluate_every": 1, "patience": 1, "metric_tokens": 1,
}  # fmt: skip
