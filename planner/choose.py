"""The choice: prices every recipe that the goal leaves open, takes the best, and says what it beat and why."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from estimators.hardware import Cluster, Device, Host
from estimators.legality import objections
from estimators.model import ModelSpec
from estimators.price import Evidence
from planner.best import choose, could_fit, fastest
from planner.change import cheapest_change
from planner.cluster import hypothetical_cluster
from planner.goal import Goal
from planner.plan import Alternative, Candidate, Matrix, MatrixRow, Plan, Refusal, RulePick
from planner.quote import quote
from planner.rules import Rules, load_rules
from planner.search import Choice, choices
from planner.words import assumptions_of, next_command_of, verdict_of, why_lost

if TYPE_CHECKING:
    from planner.confirm import Confirmation


Confirming = Callable[[Sequence[Candidate], Candidate | None], "Confirmation"]
"""Dry-runs what is worth it among all candidates; told what the formula would choose, to say it meanwhile."""


def make_plan(
    goal: Goal,
    model: ModelSpec,
    cluster: Cluster,
    rules: Rules | None = None,
    confirming: Confirming | None = None,
) -> Plan:
    """The best recipe for the goal on the cluster, with what it was chosen over; unconfirmed without `confirming`.

    Raises:
        BadInput: the goal names what does not exist, or contradicts itself.
    """
    rules = rules or load_rules()
    priced, refusals = price_all(goal, model, cluster, rules)
    candidates: Sequence[Candidate] = priced
    chosen = choose(goal, candidates)
    confirmation = confirming(candidates, chosen) if confirming else None
    if confirmation is not None:
        candidates, chosen = confirmation.candidates, confirmation.chosen
    best = _best_of_each(goal, candidates)
    others = [one for one in best if chosen is None or one.method != chosen.method]
    alternatives = tuple(Alternative(candidate=one, why=why_lost(one, chosen, goal)) for one in others[: goal.top])
    change = cheapest_change(goal, model, cluster, rules, chosen, best)
    plan = Plan(
        goal=goal,
        model=model,
        cluster=cluster,
        chosen=chosen,
        evidence=_evidence(chosen, candidates),
        confirmed=chosen is not None and chosen.price.evidence != "formula",
        verdict=verdict_of(goal, model, cluster, chosen, best),
        rule=_rule_pick(rules, cluster, chosen, candidates) if goal.methods is None else None,
        alternatives=alternatives,
        refusals=tuple(Refusal(method=method, reason=reason) for method, reason in refusals.items()),
        cheapest_change=change.words if change else None,
        assumptions=assumptions_of(goal, model, cluster, rules, chosen),
        next_command=next_command_of(goal, cluster, chosen, change),
        recipes_priced=len(priced),
    )
    return _with_doubt(plan, confirmation) if confirmation else plan


def _evidence(chosen: Candidate | None, candidates: Sequence[Candidate]) -> Evidence:
    """What stands behind the choice, or behind the answer that nothing fits."""
    if chosen is not None:
        return chosen.price.evidence
    return "dry run" if any(one.price.evidence == "dry run" for one in candidates) else "formula"


def _with_doubt(plan: Plan, confirmation: "Confirmation") -> Plan:
    return replace(plan, notes=confirmation.notes, doubt=confirmation.doubt or plan.doubt)


def make_matrix(goal: Goal, model: ModelSpec, devices: Sequence[Device], rules: Rules | None = None) -> Matrix:
    """Which method fits on one card of each kind, idle, without offload."""
    rules = rules or load_rules()
    rungs = rules.rungs(goal.methods)
    rows = []
    for device in devices:
        cluster = hypothetical_cluster([device], 1, Host(), None)
        candidates, _ = price_all(goal, model, cluster, rules)
        fitting = [one for one in candidates if one.price.fits]
        methods = {rung.method: fastest([one for one in fitting if one.method == rung.method]) for rung in rungs}
        rows.append(
            MatrixRow(
                device=device.name,
                total_bytes=device.total_bytes,
                methods=methods,
                best=choose(goal, candidates),
            )
        )
    return Matrix(
        goal=goal,
        model=model,
        methods=tuple(rung.method for rung in rungs),
        rows=tuple(rows),
        assumptions=assumptions_of(goal, model, None, rules, None),
    )


def price_all(goal: Goal, model: ModelSpec, cluster: Cluster, rules: Rules) -> tuple[list[Candidate], dict[str, str]]:
    """A candidate for every recipe, and the methods that no recipe offers, with the reason.

    Memory only grows with the micro-batch while gradients are accumulated: past one that does not fit, nothing larger
    does but the last, which accumulates nothing.
    """
    candidates: list[Candidate] = []
    refusals: dict[str, str] = {}
    for choice in choices(goal, model, cluster, rules):
        label = method_label(choice)
        reasons = objections(model, choice.recipe, cluster)
        if reasons:
            refusals.setdefault(label, reasons[0])
            continue
        missed = False
        for recipe in choice.recipes():
            if missed and recipe.gradient_accumulation > 1:
                continue
            cost = quote(goal, model, recipe, cluster)
            candidates.append(Candidate(recipe=recipe, price=cost, method=label, rung=choice.position,
                                        gpus=recipe.parallelism.devices))  # fmt: skip
            missed = missed or not could_fit(cost)
    offered = {candidate.method for candidate in candidates}
    return candidates, {label: reason for label, reason in refusals.items() if label not in offered}


def method_label(choice: Choice) -> str:
    """The method as people say it: "full", "lora + ddp", "full + zero3 + offload (optimizer, parameters)"."""
    place = choice.recipe.parallelism
    label = choice.rung.method if place.kind == "none" else f"{choice.rung.method} + {place.kind}"
    if not place.offload:
        return label
    target = " to nvme" if place.offload_to == "nvme" else ""
    return f"{label} + offload of {' and '.join(place.offload)}{target}"


def _best_of_each(goal: Goal, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best candidate of each method: those that fit first, by rung and speed, then the nearest misses."""
    groups: dict[str, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(one.method, []).append(one)
    best = [choose(goal, group) or _nearest(group) for group in groups.values()]

    def rank(one: Candidate) -> tuple[bool, bool, int, float]:
        offloaded = bool(one.recipe.parallelism.offload)
        return (not one.price.fits, offloaded, one.rung, -one.price.tokens_per_second.value)

    return sorted(best, key=rank)


def _nearest(group: Sequence[Candidate]) -> Candidate:
    """The nearest miss; what a dry run says of one counts for more than what the formula says of others."""
    tried = [one for one in group if one.price.evidence != "formula"]
    return max(tried or group, key=lambda one: one.price.tightest.spare_bytes)


def _rule_pick(
    rules: Rules, cluster: Cluster, chosen: Candidate | None, candidates: Sequence[Candidate]
) -> RulePick | None:
    """What the rule by card would start from, and what the estimate made of it."""
    smallest = min((gpu.device for gpu in cluster.gpus), key=lambda device: device.total_bytes)
    rule = next((rule for rule in rules.vram_rules if rule.matches(smallest)), None)
    if rule is None:
        return None
    taken = rules.ladder[chosen.rung].method if chosen else None
    possible = any(one.price.fits for one in candidates if rules.ladder[one.rung].method == rule.method)
    comment = "confirmed"
    if chosen is None or not possible:
        comment = f"{rule.method} does not fit"
    elif taken != rule.method:
        states = " with 8-bit AdamW" if "8bit" in chosen.recipe.optimizer else ""
        order = [rung.method for rung in rules.ladder]
        better = rule.method not in order or chosen.rung < order.index(rule.method)
        comment = f"{taken} fits{states}" if better else f"{taken} is better at what was asked for"
    return RulePick(method=rule.method, rule=rule.words, confirmed=taken == rule.method, comment=comment)
