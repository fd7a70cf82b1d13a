"""The decision: of all set-ups that fit, the one to take for each model, and what it was chosen over."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from estimators.price import Interval
from planner.capacity.question import Question, Work
from planner.capacity.setups import Setup, lengths_of
from planner.rules import Rules

InTime = Literal["in time", "perhaps in time", "too late", "no deadline"]
_LATENESS: dict[InTime, int] = {"in time": 0, "no deadline": 0, "perhaps in time": 1, "too late": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do for one model."""

    work: Work
    sequence_length: int
    chosen: Setup | None
    """None where nothing fits: `options` are then the nearest misses."""
    options: tuple[Setup, ...]
    """The best set-up of each method, best method first."""
    unfit: tuple[str, ...]
    """Methods that fit nowhere."""
    alike: int
    """How many other set-ups cannot be told from the chosen one: their ranges of cost overlap with its own."""


def decide(question: Question, setups: Sequence[Setup], rules: Rules) -> tuple[Decision, ...]:
    """A decision for each model, at its main sequence length."""
    return tuple(_decide(question, work, setups, rules) for work in question.works)


def in_time(question: Question, setup: Setup) -> InTime:
    """Whether the job ends before the deadline: certain, at the upper end of its error bar, or only likely."""
    if question.deadline_seconds is None or setup.seconds is None:
        return "no deadline"
    if setup.seconds.high <= question.deadline_seconds:
        return "in time"
    return "perhaps in time" if setup.seconds.value <= question.deadline_seconds else "too late"


def cost_of(question: Question, setup: Setup) -> Interval | None:
    """What decides: the price of the run, or of a million tokens, in the way of paying that decides."""
    paid = setup.bill(question.basis)
    if paid is None:
        return None
    return paid.per_run or paid.per_million_tokens


def _decide(question: Question, work: Work, setups: Sequence[Setup], rules: Rules) -> Decision:
    length = lengths_of(question, work, rules)[0]
    mine = [one for one in setups if one.model is work.model and one.sequence_length == length]
    fitting = [one for one in mine if one.fits]
    methods = [rung.method for rung in rules.rungs(work.goal.methods)]
    chosen = min(fitting, key=lambda one: _rank(question, methods, one), default=None)
    return Decision(
        work=work,
        sequence_length=length,
        chosen=chosen,
        options=tuple(_options(question, methods, mine)),
        unfit=tuple(name for name in methods if not any(one.method == name for one in fitting)),
        alike=_alike(question, chosen, fitting) if chosen else 0,
    )


def _options(question: Question, methods: Sequence[str], mine: Sequence[Setup]) -> list[Setup]:
    """The best set-up of each method; where none fits, the one that misses by least."""
    found = []
    for method in methods:
        those = [one for one in mine if one.method == method]
        fitting = [one for one in those if one.fits]
        if fitting:
            found.append(min(fitting, key=lambda one: _rank(question, methods, one)))
        elif those:
            found.append(max(those, key=lambda one: one.price.tightest.spare_bytes))
    return found


def _rank(question: Question, methods: Sequence[str], setup: Setup) -> tuple[float, ...]:
    """Less is better: in time first, then by the objective; what has no price comes after what has one."""
    late = float(_LATENESS[in_time(question, setup)])
    seconds = setup.price.step_seconds.value / setup.candidate.recipe.tokens_per_step
    cost, gpu_seconds = cost_of(question, setup), seconds * setup.gpus
    money = cost.value if cost else (math.inf if question.basis else gpu_seconds)
    if question.objective == "time":
        return late, seconds, money, setup.gpus
    if question.objective == "quality":
        return late, methods.index(setup.method), money, gpu_seconds
    return late, money, gpu_seconds, methods.index(setup.method)


def _alike(question: Question, chosen: Setup, fitting: Sequence[Setup]) -> int:
    """Speeds of one model on one kind of card are wrong together, so only other kinds count."""
    own = cost_of(question, chosen)
    if own is None:
        return 0
    others = [cost_of(question, one) for one in fitting if one.machine.device.name != chosen.machine.device.name]
    return sum(other is not None and other.low <= own.high and own.low <= other.high for other in others)
