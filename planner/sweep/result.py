"""What a sweep says: while it goes on, one event after the other; at its end, every trial and what they add up to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from estimators.outcome import Outcome
from estimators.recipe import Recipe
from planner.sweep.space import Configuration, Terms
from runners.executors import Progress

Objective = Literal["loss", "memory", "speed", "pareto"]
Passed = Literal["estimate", "dominated", "budget", "illegal"]
"""Why a configuration was never launched: it cannot fit by estimate, it asks for no less than what ran out of memory,
the time was up, or it cannot be run at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A configuration that is to be run, and what the estimator expects of it. None: it cannot say (on a CPU)."""

    configuration: Configuration
    recipe: Recipe
    seed: int
    seconds: float | None
    vram_bytes: int | None
    """What the driver will show for the process, of the worst GPU."""
    evidence: str
    """ "formula", "dry run", or "none"."""
    step_seconds: float | None = None
    """As the estimator has it, before the trials of this sweep correct it."""

    @property
    def key(self) -> str:
        return key_of(self.configuration, self.recipe, self.seed)


def key_of(configuration: Configuration, recipe: Recipe, seed: int) -> str:
    """Of the one result that it is to have: a configuration with its seed, at mechanics that may prove too big."""
    mechanics = f"{recipe.micro_batch}{'c' if recipe.gradient_checkpointing else ''}"
    return f"{configuration.digest}-{seed}-{mechanics}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """A configuration that was not launched, and why."""

    configuration: Configuration
    kind: Passed
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A configuration that was run to an end."""

    number: int
    """Of the study."""
    configuration: Configuration
    recipe: Recipe
    seed: int
    place: str
    outcome: Outcome
    evidence: str = ""
    """Of a bad end: the line that shows it."""
    seconds: float = 0.0
    loss: float | None = None
    """Of the held-out examples; None where none were held out, or it did not come so far."""
    untrained_loss: float | None = None
    score: float | None = None
    """The user's own metric."""
    vram_bytes: int | None = None
    """The measured peak as the driver shows it, or as torch reserved it, of the worst GPU."""
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    hopeless: str = ""
    """Why it was stopped early: its loss was no number, or far above the untrained model's."""
    repeat: bool = False
    """Whether it repeats the leader with another seed, to learn how much losses differ by chance."""
    expected_seconds: float | None = None
    expected_vram_bytes: int | None = None
    folder: str = ""
    job: str = ""
    """The job's token, by which the store of measurements knows it."""
    losses: tuple[float, ...] = ()
    """Of its steps, as far as they are numbers."""
    notes: tuple[str, ...] = ()
    """Why its figures are not its own alone: a co-tenant, a card that slowed down."""
    first: bool = False
    """Of its command at its place: it waited until a process had imported everything, and later ones do not."""

    @property
    def ok(self) -> bool:
        """Whether it ran to its end and learned something that can be compared."""
        return self.outcome is Outcome.OK and not self.hopeless

    @property
    def out_of_memory(self) -> bool:
        return self.outcome in (Outcome.OUT_OF_MEMORY, Outcome.HOST_OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How much one configuration differs by chance: the leader, over several seeds."""

    number: int
    """The trial that led."""
    losses: tuple[float, ...]
    speeds: tuple[float, ...] = ()
    """In tokens a second."""

    @property
    def spread(self) -> float:
        """Of the losses."""
        return max(self.losses, default=0.0) - min(self.losses, default=0.0)

    @property
    def speed_ratio(self) -> float:
        """Of the fastest run to the slowest."""
        return max(self.speeds) / min(self.speeds) if len(self.speeds) > 1 and min(self.speeds) > 0 else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The trial whose recipe to use."""

    number: int
    why: str
    """In one sentence, with its figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep that is over, or was interrupted."""

    terms: Terms
    objective: Objective
    objectives: tuple[str, ...]
    """What was measured of every trial: "loss", "vram_bytes", "tokens_per_second"."""
    places: tuple[str, ...]
    vram_budget_bytes: int | None
    """Of one GPU; None on a CPU."""
    trials: tuple[Trial, ...]
    screened: tuple[Screened, ...]
    front: tuple[int, ...]
    """The numbers of the trials that no other one beats in every objective."""
    recommendation: Recommendation | None
    noise: Noise | None
    seconds: float
    """Of this command."""
    expected_seconds: float | None
    """As it was said before the start."""
    own_seconds: float = 0.0
    """While a place was free and a trial waited: what the supervisor itself cost."""
    folder: str
    storage: str
    """The study's address, without its password."""
    study: str
    resumed: int = 0
    """How many trials an earlier command had finished."""
    unfinished: int = 0
    """How many were left, when it was interrupted or its time was up."""
    interrupted: bool = False
    notes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Of the user's, with which `plan --emit` writes what was measured, beside what the recipe says."""

    @property
    def out_of_memory(self) -> int:
        return sum(trial.out_of_memory for trial in self.trials)

    @property
    def exit_code(self) -> int:
        """0; 3: nothing fits by estimate; 5: every trial out of memory; 130: interrupted; 1: every trial failed."""
        if self.interrupted:
            return 130
        if any(trial.ok for trial in self.trials):
            return 0
        if self.trials and all(trial.out_of_memory for trial in self.trials):
            return 5
        return 3 if not self.trials and any(one.kind == "estimate" for one in self.screened) else 1

    def trial(self, number: int) -> Trial:
        return next(trial for trial in self.trials if trial.number == number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Before the first trial starts: what is to be run, in order, and what is not."""

    terms: Terms
    places: tuple[str, ...]
    queue: tuple[Expected, ...]
    screened: tuple[Screened, ...]
    finished: tuple[Trial, ...]
    """By an earlier command."""
    expected_seconds: float | None
    """Of the queue and the repeated seeds, over all places."""
    budget_seconds: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A trial begins at a place."""

    number: int
    place: str
    expected: Expected
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A trial has gone on."""

    number: int
    steps: int
    """Of the whole trial."""
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A trial was lost, and is run once more."""

    number: int
    place: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A trial is over and recorded."""

    trial: Trial
    best: Trial | None
    """Of the loss so far, or of the goal where no loss is measured."""
    finished: int
    waiting: int
    out_of_memory: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """A configuration will not be launched, which was found out on the way."""

    screened: Screened


Event = Planned | Started | Moved | Retried | Finished | PassedOver
Listener = Callable[[Event], None]
