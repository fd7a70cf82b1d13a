"""What the planner promises: the best rung that fits, its fastest recipe, offload last, and reasons in numbers."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from estimators.catalogue import find_device
from estimators.hardware import Cluster, Gpu, Host
from estimators.models import load_model
from estimators.price import Interval
from estimators.units import GIB
from planner.choose import choose, make_matrix, make_plan, price_all
from planner.cluster import hypothetical_cluster
from planner.goal import Goal
from planner.plan import Plan
from planner.rules import load_rules

BIG_HOST = Host(memory_bytes=512 * GIB)


def machine(names: Sequence[str], host: Host | None = None) -> Cluster:
    return hypothetical_cluster([find_device(name) for name in names], 1, host or Host(), None)


def plan(model: str, names: Sequence[str], host: Host | None = None, **goal: object) -> Plan:
    return make_plan(Goal(model=model, **goal), load_model(model), machine(names, host))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "card", "method"),
    [
        ("llama-7b", "t4", "qlora"),
        ("llama-7b", "rtx-4090", "lora"),
        ("llama-7b", "h200", "full"),
        ("llama-3.2-1b", "rtx-4090", "full"),
        ("llama-2-70b", "h100", "qlora"),
    ],
)
def test_the_best_rung_that_fits_is_chosen(model: str, card: str, method: str) -> None:
    made = plan(model, [card])
    assert made.chosen is not None
    assert made.chosen.method == method
    assert made.exit_code == 0


@pytest.mark.parametrize("objective", ["quality", "throughput", "memory", "cost"])
@pytest.mark.parametrize("card", ["rtx-3060", "rtx-4090", "l40s", "a100-80gb"])
def test_nothing_is_recommended_that_its_own_error_bar_says_does_not_fit(card: str, objective: str) -> None:
    made = plan("qwen2.5-7b", [card], BIG_HOST, objective=objective)
    if made.chosen is not None:
        share = made.chosen.price.tightest
        assert made.chosen.price.fits
        assert share.process.high <= share.budget_bytes - share.headroom_bytes


def test_among_recipes_of_a_rung_the_fastest_that_fits_wins() -> None:
    goal, model, cluster = Goal(model="llama-7b", methods=("lora",)), load_model("llama-7b"), machine(["a100-80gb"])
    candidates, _ = price_all(goal, model, cluster, load_rules())
    chosen = choose(goal, candidates)
    assert chosen is not None
    fastest = max(one.price.tokens_per_second.value for one in candidates if one.price.fits)
    assert chosen.price.tokens_per_second.value >= 0.99 * fastest


def test_whole_optimizer_states_are_kept_unless_8_bits_save_notable_time() -> None:
    goal, model = Goal(model="llama-3.2-3b", methods=("full",)), load_model("llama-3.2-3b")
    candidates, _ = price_all(goal, model, machine(["h200"]), load_rules())
    fitting = [one for one in candidates if one.price.fits]
    whole = [one for one in fitting if "8bit" not in one.recipe.optimizer]
    rounded = [one for one in fitting if "8bit" in one.recipe.optimizer]

    def chosen(seconds_saved: float) -> str:
        """The optimizer taken where all with 8-bit states save so much time."""
        top = max(one.price.tokens_per_second.value for one in whole)
        speed = Interval(value=top / (1 - seconds_saved), low=top, high=2 * top)
        faster = [replace(one, price=replace(one.price, tokens_per_second=speed)) for one in rounded]
        best = choose(goal, [*whole, *faster])
        assert best is not None
        return best.recipe.optimizer

    assert chosen(0.05) == "adamw_torch_fused"
    assert chosen(0.20) == "adamw_8bit"


def test_each_objective_is_best_at_its_own_figure() -> None:
    chosen = {
        name: plan("llama-3.2-3b", ["a100-80gb", "a100-80gb"], objective=name).chosen
        for name in ("throughput", "memory", "cost")
    }
    assert all(chosen.values())
    fast, small, cheap = chosen["throughput"], chosen["memory"], chosen["cost"]
    assert fast and small and cheap
    for one in (small, cheap):
        assert fast.price.tokens_per_second.value >= 0.99 * one.price.tokens_per_second.value
        assert small.price.process.value * small.gpus <= one.price.process.value * one.gpus
    # One GPU more must save 5 % of the cost of a token.
    assert cheap.gpus / cheap.price.tokens_per_second.value <= 1.05 * fast.gpus / fast.price.tokens_per_second.value


def test_offload_is_taken_only_where_nothing_fits_on_the_gpu() -> None:
    roomy = plan("llama-7b", ["rtx-4090"], BIG_HOST)
    assert roomy.chosen and not roomy.chosen.recipe.parallelism.offload
    offloaded = [one for one in roomy.alternatives if one.candidate.recipe.parallelism.offload]
    assert offloaded
    assert all("slower" in one.why or "needs" in one.why for one in offloaded)
    last = plan("llama-7b", ["rtx-4090"], BIG_HOST, methods=("full",))
    assert last.chosen and last.chosen.recipe.parallelism.offload
    assert plan("llama-7b", ["rtx-4090"], BIG_HOST, methods=("full",), offload="never").exit_code == 3


def test_a_hypothetical_machine_without_host_memory_gets_no_offload() -> None:
    made = plan("llama-7b", ["rtx-4090"])
    assert not any(one.candidate.recipe.parallelism.offload for one in made.alternatives)


def test_offload_that_the_host_cannot_hold_says_so_in_bytes() -> None:
    made = plan("llama-7b", ["rtx-4090"], Host(memory_bytes=16 * GIB), methods=("full",))
    assert made.exit_code == 3
    assert any("host RAM" in one.why for one in made.alternatives)


def test_when_nothing_fits_the_nearest_miss_and_what_it_lacks_are_named() -> None:
    made = plan("llama-2-70b", ["rtx-3060"])
    assert (made.exit_code, made.chosen) == (3, None)
    assert "qlora" in made.verdict.lower()
    assert "GiB more" in made.verdict
    assert made.cheapest_change and "smallest card" in made.cheapest_change


def test_the_rule_by_card_is_confirmed_or_overruled_with_the_reason() -> None:
    confirmed = plan("llama-7b", ["rtx-4090"]).rule
    assert confirmed and confirmed.confirmed and confirmed.method == "lora"
    overruled = plan("llama-3.2-1b", ["rtx-4090"]).rule
    assert overruled and not overruled.confirmed
    assert overruled.comment.startswith("full fits")


def test_every_alternative_says_in_numbers_why_it_lost() -> None:
    made = plan("llama-7b", ["a100-80gb", "a100-80gb"], BIG_HOST)
    assert len(made.alternatives) >= 5
    for one in made.alternatives:
        assert any(character.isdigit() for character in one.why) or one.why.startswith("equally fast"), one.why


def test_fewer_gpus_can_be_the_answer() -> None:
    """Two cards that only PCIe joins: sharding a job that one of them holds costs more than it brings."""
    made = plan("llama-3.2-1b", ["rtx-4090", "rtx-4090"], global_batch=1, methods=("lora",))
    assert made.chosen and made.chosen.gpus == 1


def test_the_smallest_card_decides() -> None:
    mixed = plan("llama-7b", ["rtx-3090", "a100-80gb"], methods=("lora",), global_batch=16)
    both = [one for one in (mixed.chosen, *(a.candidate for a in mixed.alternatives)) if one and one.gpus == 2]
    assert both
    assert all(one.price.tightest.name == "rtx-3090" for one in both if one.price.fits)


def test_what_others_hold_is_not_ours() -> None:
    device = find_device("a100-80gb")
    busy = Gpu(device=device, total_bytes=device.total_bytes, free_bytes=20 * GIB)
    cluster = Cluster(gpus=(busy,))
    goal, model = Goal(model="llama-7b"), load_model("llama-7b")
    made = make_plan(goal, model, cluster)
    assert made.chosen and made.chosen.price.tightest.budget_bytes == 20 * GIB
    idle = make_plan(Goal(model="llama-7b", assume_idle=True), model, cluster)
    assert idle.chosen and idle.chosen.price.tightest.budget_bytes == device.usable_bytes
    capped = make_plan(Goal(model="llama-7b", vram_budget_bytes=12 * GIB), model, cluster)
    assert capped.chosen and capped.chosen.price.tightest.budget_bytes == 12 * GIB


def test_a_card_without_bfloat16_computes_in_float16() -> None:
    made = plan("llama-7b", ["v100-32gb"])
    assert made.chosen and made.chosen.recipe.compute == "float16"


def test_the_global_batch_is_what_was_asked_for_whatever_the_mechanics() -> None:
    goal, model, cluster = (
        Goal(model="llama-3.2-1b", global_batch=24),
        load_model("llama-3.2-1b"),
        machine(["h100"] * 4),
    )
    candidates, _ = price_all(goal, model, cluster, load_rules())
    assert len({one.recipe.micro_batch for one in candidates}) > 2
    assert {one.recipe.global_batch for one in candidates} == {24}


@pytest.mark.parametrize(
    ("model", "card", "goal"),
    [
        ("llama-3.2-3b", "l40s", {"global_batch": 2, "methods": ("full",)}),
        ("llama-7b", "h100", {"global_batch": 2, "sequence_length": 1024}),
    ],
)
def test_a_micro_batch_that_ends_accumulation_is_tried_though_a_smaller_one_did_not_fit(
    model: str, card: str, goal: dict[str, object]
) -> None:
    """Accumulated gradients are held through every pass: without them more sequences can take less."""
    made = plan(model, [card], **goal)
    assert made.chosen is not None
    assert (made.chosen.method, made.chosen.recipe.micro_batch) == ("full", 2)


def test_of_equally_fast_recipes_the_one_with_fewer_gpus_is_taken() -> None:
    goal, model = Goal(model="llama-3.2-1b", methods=("lora",)), load_model("llama-3.2-1b")
    candidates, _ = price_all(goal, model, machine(["h100"]), load_rules())
    one = choose(goal, candidates)
    assert one is not None
    twin = replace(one, gpus=2, recipe=replace(one.recipe, gradient_accumulation=1))
    for order in ([one, twin], [twin, one]):
        assert choose(goal, order) is one


def test_the_rule_is_not_said_to_fail_where_only_the_goal_is_another() -> None:
    rule = plan("llama-7b", ["h200"], objective="throughput").rule
    assert rule and not rule.confirmed
    assert "does not fit" not in rule.comment


def test_the_matrix_has_every_card_and_agrees_with_the_plan() -> None:
    devices = [find_device(name) for name in ("t4", "rtx-4090", "h200")]
    goal, model = Goal(model="llama-7b"), load_model("llama-7b")
    matrix = make_matrix(goal, model, devices)
    assert [row.device for row in matrix.rows] == ["t4", "rtx-4090", "h200-sxm"]
    for row in matrix.rows:
        made = make_plan(goal, model, machine([row.device]))
        assert row.best and made.chosen
        assert row.best.recipe == made.chosen.recipe
