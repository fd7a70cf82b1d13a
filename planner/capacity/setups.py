"""Every set-up that a question allows: a method on so many GPUs of a kind at a sequence length, with time and money."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from estimators.model import ModelSpec
from estimators.price import Interval, Price
from planner.best import choose
from planner.capacity.cost import Bill, Kind, bill, cheapest, rate_of
from planner.capacity.lengths import Lengths
from planner.capacity.question import Machine, Question, Work
from planner.choose import price_all
from planner.cluster import hypothetical_cluster
from planner.goal import Goal
from planner.plan import Candidate, Refusal
from planner.rules import Rules
from planner.search import default_length

KINDS: tuple[Kind, ...] = ("on demand", "spot", "owned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The best recipe of one method on so many GPUs of one kind."""

    model: ModelSpec
    machine: Machine
    gpus: int
    method: str
    """Of the ladder: "full", "lora", "qlora" …; how it is spread over GPUs is the candidate's."""
    sequence_length: int
    candidate: Candidate
    tokens: float | None
    """Processed by the whole job, padding included."""
    seconds: Interval | None
    bills: tuple[Bill, ...]

    @property
    def price(self) -> Price:
        return self.candidate.price

    @property
    def fits(self) -> bool:
        return self.price.fits

    @property
    def gpu_hours(self) -> Interval | None:
        return self.seconds.scaled(self.gpus / 3600) if self.seconds else None

    @property
    def name(self) -> str:
        """ "8 × h100-sxm"."""
        return f"{self.gpus} × {self.machine.device.name}"

    def bill(self, kind: Kind | None) -> Bill | None:
        return next((one for one in self.bills if one.kind == kind), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Methods that no recipe offers on a kind of GPU."""

    model: str
    device: str
    refusal: Refusal


def setups_of(question: Question, rules: Rules) -> tuple[tuple[Setup, ...], tuple[Refused, ...]]:
    """Every set-up of the question, model by model and card by card, and what is refused with its reason.

    Raises:
        BadInput: a goal names what does not exist, or contradicts itself.
    """
    setups: list[Setup] = []
    refused: list[Refused] = []
    for work in question.works:
        for machine in question.machines:
            for length in lengths_of(question, work, rules):
                found, reasons = _on(question, work, machine, length, rules)
                setups += found
                refused += [
                    Refused(model=work.model.name, device=machine.device.name, refusal=Refusal(method=name, reason=why))
                    for name, why in reasons.items()
                ]
    return tuple(setups), tuple({(one.model, one.device, one.refusal): one for one in refused}.values())


def lengths_of(question: Question, work: Work, rules: Rules) -> tuple[int, ...]:
    """The question's sequence lengths, the main one first, or the model's default."""
    return question.sequence_lengths or (default_length(work.model, rules),)


def _on(
    question: Question, work: Work, machine: Machine, length: int, rules: Rules
) -> tuple[list[Setup], dict[str, str]]:
    """The set-ups of one model on one kind of card: priced once for the largest number of cards, which has the smaller
    numbers among its recipes."""
    goal = replace(work.goal, sequence_length=length)
    cluster = hypothetical_cluster([machine.device] * max(machine.counts), 1, question.host, None)
    candidates, refusals = price_all(goal, work.model, cluster, rules)
    rungs = rules.rungs(goal.methods)
    found = []
    for position, rung in enumerate(rungs):
        for count in machine.counts:
            group = [one for one in candidates if one.rung == position and one.gpus == count]
            if best := _best(replace(goal, objective="throughput"), group):
                found.append(_setup(question, work, machine, rung.method, length, best))
    offered = {setup.method for setup in found}
    return found, {name: why for name, why in refusals.items() if name.partition(" + ")[0] not in offered}


def _best(goal: Goal, group: Sequence[Candidate]) -> Candidate | None:
    """The fastest that fits, or else the nearest miss."""
    return choose(goal, group) or max(group, key=lambda one: one.price.tightest.spare_bytes, default=None)


def _setup(question: Question, work: Work, machine: Machine, method: str, length: int, candidate: Candidate) -> Setup:
    bare = Setup(model=work.model, machine=machine, gpus=candidate.gpus, method=method, sequence_length=length,
                 candidate=candidate, tokens=None, seconds=None, bills=())  # fmt: skip
    return billed(question, work.lengths, bare)


def billed(question: Question, lengths: Lengths | None, setup: Setup) -> Setup:
    """The set-up with the time and the money that its price comes to."""
    recipe, price = setup.candidate.recipe, setup.price
    per_token = price.step_seconds.scaled(1 / recipe.tokens_per_step)
    wanted, processed = job_tokens(question, lengths, setup.sequence_length, recipe.micro_batch, recipe.packing)
    seconds = per_token.scaled(processed) if processed else None
    share = processed / wanted if processed and wanted else 1.0
    bills = tuple(_bills(question, setup, per_token, seconds, share))
    return replace(setup, tokens=processed, seconds=seconds, bills=bills)


def job_tokens(
    question: Question, lengths: Lengths | None, length: int, micro_batch: int, packing: bool
) -> tuple[float | None, float | None]:
    """The tokens of the job, and those that are processed for them: data in batches come with padding."""
    if lengths is None:
        return question.tokens, question.tokens
    wanted = lengths.kept(length)
    processed = wanted if packing else lengths.padded(length, micro_batch)
    return wanted * question.epochs, processed * question.epochs


def _bills(
    question: Question, setup: Setup, per_token: Interval, seconds: Interval | None, share: float
) -> Iterator[Bill]:
    device, host_bytes = setup.machine.device, setup.price.host.high
    for kind in ("on demand", "spot"):
        offer = cheapest(question.offers, device.name, setup.gpus, host_bytes, kind)
        if offer is not None and (rate := rate_of(offer, kind)) is not None:
            yield bill(kind, rate, offer, per_token, seconds, share)
    if question.ownership is not None:
        rate = question.ownership.per_hour(device.power_watts, setup.gpus)
        yield bill("owned", rate, None, per_token, seconds, share)
