"""The confirmation: the dry run decides, best rung first, and nothing is recommended that it refuted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest

from estimators.catalogue import find_device
from estimators.errors import BadInput
from estimators.hardware import Host
from estimators.models import load_model
from estimators.price import GpuShare, Interval, Price
from estimators.units import GIB
from planner.best import choose, could_fit
from planner.choose import make_plan, price_all
from planner.cluster import hypothetical_cluster
from planner.confirm import Confirmation, Reprice, confirm
from planner.goal import Goal
from planner.plan import Candidate, Plan
from planner.rules import load_rules

GOAL = Goal(model="llama-7b")
Factor = Callable[[Candidate], float]


@cache
def candidates(goal: Goal = GOAL, card: str = "rtx-4090") -> tuple[Candidate, ...]:
    cluster = hypothetical_cluster([find_device(card)], 1, Host(), None)
    return tuple(price_all(goal, load_model(goal.model), cluster, load_rules())[0])


class DryRun:
    """A dry run that finds so many times what the formula does, to 1 %; it remembers what it was asked."""

    def __init__(
        self, factor: float | Factor = 1.0, untraceable: Callable[[Candidate], bool] = lambda _: False
    ) -> None:
        self.factor: Factor = factor if callable(factor) else lambda _: factor
        self.untraceable = untraceable
        self.asked: list[Candidate] = []

    def __call__(self, candidate: Candidate) -> Candidate:
        self.asked.append(candidate)
        if self.untraceable(candidate):
            raise BadInput("llama-7b cannot run aten.strange on the meta device")
        return replace(candidate, price=found(candidate.price, self.factor(candidate)))


def found(price: Price, factor: float) -> Price:
    value = price.process.value * factor
    size = Interval(value=value, low=0.99 * value, high=1.01 * value)
    shares = tuple(_share(share, size) for share in price.gpus)
    return replace(price, evidence="dry run", process=size, gpus=shares)


def _share(share: GpuShare, size: Interval) -> GpuShare:
    fits = share.budget_bytes - share.headroom_bytes >= size.high
    return replace(share, process=size, worst_phase=size, verdict="fits" if fits else "does not fit")


def confirmed(reprice: Reprice, goal: Goal = GOAL, among: Sequence[Candidate] | None = None) -> Confirmation:
    return confirm(goal, among or candidates(goal), reprice)


def text(confirmation: Confirmation) -> str:
    return "; ".join(confirmation.notes)


def recipes(some: Iterable[Candidate]) -> set[object]:
    return {one.recipe for one in some}


def test_what_the_formula_chose_is_confirmed_where_the_dry_run_agrees() -> None:
    formula = choose(GOAL, candidates())
    answer = confirmed(DryRun())
    assert formula and answer.chosen
    assert answer.chosen.recipe == formula.recipe
    assert (answer.chosen.price.evidence, answer.doubt, answer.notes) == ("dry run", None, ())


def test_a_recipe_that_only_the_error_bar_kept_out_wins_where_the_dry_run_finds_room() -> None:
    formula = choose(GOAL, candidates())
    answer = confirmed(DryRun(0.96))
    assert formula and answer.chosen
    assert formula.recipe.gradient_checkpointing and not answer.chosen.recipe.gradient_checkpointing
    assert answer.chosen.price.fits and answer.chosen.price.evidence == "dry run"
    assert "something better fits" in text(answer)


def test_where_a_rung_is_refuted_the_next_one_is_asked() -> None:
    run = DryRun(lambda one: 1.7 if one.method == "lora" else 1.0)
    answer = confirmed(run)
    assert answer.chosen and answer.chosen.method == "qlora"
    assert answer.chosen.price.evidence == "dry run"
    assert [one.method for one in run.asked] == sorted(one.method for one in run.asked)
    assert "by formula it would be LoRA" in text(answer)
    assert "GiB more" in text(answer)


def test_within_a_rung_the_next_best_is_asked() -> None:
    goal, first = Goal(model="llama-7b", methods=("qlora",)), DryRun()
    confirmed(first, goal)
    best = first.asked[0].recipe
    answer = confirmed(DryRun(lambda one: 1.7 if one.recipe == best else 1.0), goal)
    assert answer.chosen and answer.chosen.method == "qlora"
    assert answer.chosen.recipe != best


def test_where_the_best_three_miss_the_roomiest_of_the_rung_is_still_asked() -> None:
    roomiest = max(
        (one for one in candidates() if one.method == "lora"), key=lambda one: one.price.tightest.spare_bytes
    )
    answer = confirmed(DryRun(lambda one: 1.0 if one.recipe == roomiest.recipe else 1.7))
    assert answer.chosen and answer.chosen.recipe == roomiest.recipe


def test_among_those_nearly_as_fast_by_formula_the_dry_run_decides() -> None:
    goal, asked = Goal(model="llama-7b", methods=("lora",)), DryRun()
    among = candidates(goal, "a100-80gb")
    first = confirmed(asked, goal, among).chosen
    assert first is not None
    near = [one for one in asked.asked if one.recipe != asked.asked[0].recipe]
    assert near
    paces = [one.price.tokens_per_second.value for one in asked.asked]
    assert min(paces) >= 0.95 * max(paces)

    def slower(candidate: Candidate) -> Candidate:
        price = DryRun()(candidate).price
        share = 0.5 if candidate.recipe == first.recipe else 1.0
        speed = Interval(value=share * price.tokens_per_second.value, low=0, high=1e9)
        return replace(candidate, price=replace(price, tokens_per_second=speed))

    answer = confirmed(slower, goal, among)
    second = answer.chosen
    assert second is not None
    assert "by dry run it is slower than batches of" in text(answer)
    assert second.recipe in recipes(near)


def test_nothing_is_asked_that_cannot_fit_or_cannot_win() -> None:
    run = DryRun()
    answer = confirmed(run)
    assert answer.chosen
    assert run.asked
    assert all(could_fit(one.price) for one in run.asked)
    assert all(one.rung <= answer.chosen.rung for one in run.asked)
    assert len(recipes(run.asked)) == len(run.asked)


def test_a_larger_micro_batch_is_not_asked_after_a_smaller_one_missed() -> None:
    run = DryRun(10.0)
    confirmed(run)
    shapes = [(one.method, one.recipe.gradient_checkpointing, one.recipe.micro_batch) for one in run.asked]
    for place, (method, kept, size) in enumerate(shapes[:3]):
        later = [other for other in shapes[place + 1 : 3] if other[:2] == (method, kept)]
        assert all(other[2] <= size for other in later)
    per_rung = [sum(one.rung == rung for one in run.asked) for rung in range(4)]
    assert max(per_rung) <= 5


def test_nothing_fits_is_an_answer_too() -> None:
    answer = confirmed(DryRun(10.0))
    assert answer.chosen is None
    assert "no dry run confirms it" in text(answer)
    assert not any(one.price.fits for one in answer.candidates if one.price.evidence == "dry run")


def test_where_nothing_could_fit_nothing_is_asked() -> None:
    run, goal = DryRun(), Goal(model="llama-2-70b")
    answer = confirmed(run, goal, candidates(goal, "t4"))
    assert (run.asked, answer.chosen, answer.notes) == ([], None, ())


def test_what_cannot_be_traced_is_judged_by_formula_and_says_so() -> None:
    formula = choose(GOAL, candidates())
    answer = confirmed(DryRun(untraceable=lambda _: True))
    assert formula and answer.chosen and answer.chosen.recipe == formula.recipe
    assert answer.chosen.price.evidence == "formula"
    assert answer.doubt == "llama-7b cannot run aten.strange on the meta device"


def test_one_that_cannot_be_traced_does_not_cost_the_others_their_confirmation() -> None:
    answer = confirmed(DryRun(untraceable=lambda one: not one.recipe.gradient_checkpointing))
    assert answer.chosen and answer.chosen.price.evidence == "dry run"
    assert answer.doubt is None
    assert "judged by formula alone: llama-7b cannot run aten.strange" in text(answer)


@pytest.mark.parametrize(("factor", "said"), [(0.8, "25 % above"), (1.25, "20 % below"), (1.05, None)])
def test_a_difference_of_a_tenth_is_noted(factor: float, said: str | None) -> None:
    answer = confirmed(DryRun(factor))
    assert bool(answer.disagreements) == (said is not None)
    assert (said or "") in text(answer)
    assert ("the formula's figure for" in text(answer)) == (said is not None)
    for formula, dry in answer.disagreements:
        assert (formula.price.evidence, dry.price.evidence) == ("formula", "dry run")
        assert formula.recipe == dry.recipe


@pytest.mark.parametrize("objective", ["quality", "throughput", "memory", "cost"])
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.3])
def test_whatever_is_asked_for_only_what_was_dry_run_and_fits_is_recommended(objective: str, factor: float) -> None:
    goal = Goal(model="llama-7b", objective=objective)  # type: ignore[arg-type]
    answer = confirmed(DryRun(factor), goal)
    assert answer.chosen and answer.chosen.price.fits
    assert answer.chosen.price.evidence == "dry run"


def test_of_the_smallest_the_dry_run_decides_which_is_smallest() -> None:
    goal = Goal(model="llama-7b", objective="memory")
    first = DryRun()
    confirmed(first, goal)
    assert len(first.asked) == 3
    smallest = first.asked[-1].recipe
    answer = confirmed(DryRun(lambda one: 0.1 if one.recipe == smallest else 1.0), goal)
    assert answer.chosen and answer.chosen.recipe == smallest


def planned(run: DryRun, card: str = "rtx-4090") -> Plan:
    cluster = hypothetical_cluster([find_device(card)], 1, Host(), None)
    return make_plan(GOAL, load_model("llama-7b"), cluster, None, lambda some, _: confirm(GOAL, some, run))


def test_a_plan_is_remade_from_what_was_found() -> None:
    plan = planned(DryRun(lambda one: 1.7 if one.method == "lora" else 1.0))
    assert (plan.evidence, plan.confirmed, plan.exit_code) == ("dry run", True, 0)
    assert "QLoRA" in plan.verdict
    assert plan.rule and plan.rule.comment == "lora does not fit"
    lora = next(one for one in plan.alternatives if one.candidate.method == "lora")
    assert lora.candidate.price.evidence == "dry run"
    assert lora.why.startswith("needs ")
    assert plan.cheapest_change and plan.cheapest_change.startswith("lora")


def test_a_plan_that_no_dry_run_confirms_ends_as_one_where_nothing_fits() -> None:
    plan = planned(DryRun(10.0))
    assert (plan.exit_code, plan.chosen, plan.confirmed) == (3, None, False)
    assert plan.verdict.startswith("Nothing fits")
    assert plan.evidence == "dry run"


def test_alternatives_that_were_not_dry_run_keep_the_formulas_evidence() -> None:
    plan = planned(DryRun())
    assert {one.candidate.price.evidence for one in plan.alternatives} == {"formula"}
    assert plan.chosen and plan.chosen.price.evidence == "dry run"


def test_the_figures_of_the_chosen_recipe_are_the_dry_runs() -> None:
    plan = planned(DryRun(1.05))
    assert plan.chosen is not None
    formula = next(one for one in candidates() if one.recipe == plan.chosen.recipe)
    assert plan.chosen.price.process.value == pytest.approx(1.05 * formula.price.process.value)
    assert f"{plan.chosen.price.process.value / GIB:.2f} GiB" in plan.verdict
