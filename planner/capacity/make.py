"""From a question to its report: prices every set-up, decides, and has what it chose dry-run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date

from estimators.errors import BadInput
from estimators.price import Evidence
from estimators.size import Tracer
from planner.capacity.decision import Decision, decide
from planner.capacity.history import History
from planner.capacity.question import Question
from planner.capacity.report import Report
from planner.capacity.setups import Setup, billed, setups_of
from planner.capacity.swept import Swept
from planner.capacity.words import assumptions, warnings
from planner.cluster import hypothetical_cluster
from planner.quote import quote
from planner.rules import Rules
from planner.versions import versions

TRIES = 4
"""A set-up that a dry run finds slower or too large makes another one the choice, which is dry-run in turn."""
MOST_IN_FULL = 3
"""Of so few models the best set-up of every method is dry-run; of more, only what is recommended."""
Tracers = Callable[[str], Tracer | None]
"""The tracer of a model by its name; None where it cannot be dry-run."""


def make_report(
    question: Question,
    rules: Rules,
    *,
    today: date,
    command: str,
    tracers: Tracers | None = None,
    history: History | None = None,
    swept: Swept | None = None,
) -> Report:
    """The whole report.

    Raises:
        BadInput: a goal names what does not exist, or contradicts itself.
    """
    setups, refused = setups_of(question, rules)
    notes: list[str] = []
    decisions = decide(question, setups, rules)
    for _ in range(TRIES if tracers else 0):
        traced, failed = _traced(question, decisions, tracers)
        notes += failed
        if not traced:
            break
        setups = tuple(traced.get(id(setup), setup) for setup in setups)
        decisions = decide(question, setups, rules)
    evidence: Evidence = next((one.chosen.price.evidence for one in decisions if one.chosen), "formula")
    if any(one.chosen and one.chosen.price.evidence == "formula" for one in decisions):
        notes.append("What is recommended is by formula alone: confirm with a dry run or a short measured run.")
    return Report(
        question=question,
        setups=setups,
        decisions=decisions,
        refused=refused,
        assumptions=tuple(assumptions(question, setups, rules)),
        warnings=(*warnings(question, today), *dict.fromkeys(notes)),
        history=history,
        swept=swept,
        today=today,
        command=command,
        versions=versions(evidence),
    )


def _traced(
    question: Question, decisions: Sequence[Decision], tracers: Tracers | None
) -> tuple[Mapping[int, Setup], list[str]]:
    """The set-ups that matter as a dry run finds them, by the identity of what they replace; what could not be run."""
    found: dict[int, Setup] = {}
    failed: list[str] = []
    for decision in decisions:
        tracer = tracers(decision.work.model.name) if tracers else None
        for setup in _worth_it(decision, all_of_them=len(decisions) <= MOST_IN_FULL) if tracer else ():
            goal = replace(decision.work.goal, sequence_length=setup.sequence_length)
            cluster = hypothetical_cluster([setup.machine.device] * setup.gpus, 1, question.host, None)
            try:
                price = quote(goal, setup.model, setup.candidate.recipe, cluster, tracer)
            except BadInput as error:
                failed.append(f"{setup.model.name} with {setup.method} could not be dry-run: {error}")
                continue
            candidate = replace(setup.candidate, price=price)
            found[id(setup)] = billed(question, decision.work.lengths, replace(setup, candidate=candidate))
    return found, failed


def _worth_it(decision: Decision, *, all_of_them: bool) -> list[Setup]:
    """What is recommended, and where all are wanted its rivals that fit, as far as no dry run was made of them."""
    pool = decision.options if all_of_them else (decision.chosen,)
    return [one for one in pool if one is not None and one.fits and one.price.evidence == "formula"]
