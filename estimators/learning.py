"""How a job learns, beside what it costs: the schedule it was given, and the losses that came of it."""

import math
from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The held-out examples after so many steps."""

    step: int
    loss: float
    """Mean over the tokens that are learned; nan and infinity are what they are."""

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What one job learned."""

    losses: tuple[float, ...] = ()
    """Of each optimizer step, before it."""
    evaluated: tuple[Evaluated, ...] = ()
    """In order; the one at step 0 is the untrained model's."""
    tokens: int = 0
    """Trained on, padding not counted, of this rank."""
    stopped_at: int | None = None
    """The step after which patience ended the job."""
    score: float | None = None
    """The user's own metric, higher being better."""

    @property
    def loss(self) -> float | None:
        """Of the held-out examples, the lowest after training began; None where none were held out."""
        return min((one.loss for one in self.evaluated if one.step), default=None)

    @property
    def untrained_loss(self) -> float | None:
        return next((one.loss for one in self.evaluated if not one.step), None)
