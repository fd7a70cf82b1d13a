"""Which recipes are tried: how many GPUs, which of them, and what is said where there is nothing to try."""

from dataclasses import replace
from typing import Any

import pytest

from estimators.catalogue import find_device
from estimators.errors import BadInput
from estimators.hardware import Cluster, Gpu, Host
from estimators.legality import objections
from estimators.models import load_model
from estimators.pricing import price
from estimators.recipe import Adapter, Parallelism, Recipe
from estimators.units import GIB
from planner.choose import make_plan
from planner.cluster import hypothetical_cluster
from planner.goal import Goal
from planner.rules import load_rules
from planner.search import choices, idle_reason

LLAMA = load_model("llama-3.2-1b")
LORA = Recipe(model="llama-3.2-1b", adapter=Adapter(method="lora", rank=16, alpha=64, targets=("q_proj", "v_proj")))


def described(*names: str, nodes: int = 1, host: Host | None = None) -> Cluster:
    return hypothetical_cluster([find_device(name) for name in names], nodes, host or Host(), None)


def divided(instances: int, *whole: str) -> Cluster:
    """MIG instances of a seventh of an A100, and whole GPUs beside them."""
    small = replace(find_device("a100-40gb"), name="a100-mig-1g.5gb", total_bytes=5 * GIB, usable_bytes=5 * GIB)
    parts = [Gpu(device=small, total_bytes=5 * GIB, mig_parent_uuid="parent")] * instances
    others = [Gpu(device=find_device(name), total_bytes=find_device(name).total_bytes) for name in whole]
    return Cluster(gpus=(*parts, *others), hypothetical=True)


def tried(cluster: Cluster, **fields: Any) -> list[Recipe]:
    goal = Goal(model="llama-3.2-1b", **fields)
    return [choice.recipe for choice in choices(goal, LLAMA, cluster, load_rules())]


def counts(cluster: Cluster, **fields: Any) -> set[int]:
    return {recipe.parallelism.devices for recipe in tried(cluster, **fields)}


def test_two_nodes_may_choose_one_gpu_or_one_node() -> None:
    assert counts(described("h200", "h200", nodes=2)) == {1, 2, 4}
    assert counts(described(*["h200"] * 4, nodes=3), global_batch=12) == {1, 2, 3, 4, 12}
    made = make_plan(Goal(model="llama-3.1-8b"), load_model("llama-3.1-8b"), described("h200", "h200", nodes=2))
    assert made.chosen and made.chosen.gpus == 2


def test_a_recipe_on_one_of_two_cards_has_the_speed_and_the_types_of_that_card() -> None:
    mixed, alone = described("a100-80gb", "t4"), described("a100-80gb")
    assert objections(LLAMA, LORA, mixed) == ()
    assert price(LLAMA, LORA, mixed).seconds == price(LLAMA, LORA, alone).seconds
    both = replace(LORA, parallelism=Parallelism(kind="ddp", devices=2))
    assert any("bfloat16" in reason for reason in objections(LLAMA, both, mixed))
    computed = {(recipe.parallelism.devices, recipe.compute) for recipe in tried(mixed)}
    assert computed == {(1, "bfloat16"), (2, "float16")}


def test_a_process_uses_one_mig_instance_or_several_whole_gpus() -> None:
    assert counts(divided(7)) == {1}
    assert counts(divided(2, "a100-40gb", "a100-40gb")) == {1, 2}
    pair = replace(LORA, parallelism=Parallelism(kind="ddp", devices=2))
    assert any("one MIG instance" in reason for reason in objections(LLAMA, pair, divided(7)))
    used = price(LLAMA, pair, divided(2, "a100-40gb", "a100-40gb")).gpus
    assert {share.name for share in used} == {"a100-sxm4-40gb"}


def test_gpus_of_several_nodes_are_used_in_whole_nodes() -> None:
    three = replace(LORA, parallelism=Parallelism(kind="ddp", devices=3))
    assert any("no whole nodes of 2" in one for one in objections(LLAMA, three, described("h200", "h200", nodes=2)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offload": "required"}, "--offload required needs --host-memory"),
        ({"micro_batch": 5}, "micro-batch 5 does not divide the global batch of 16"),
    ],
)
def test_each_cause_of_nothing_to_try_has_its_own_message(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        tried(described("h200"), **fields)


def test_gpus_that_the_batch_does_not_divide_over_are_named_with_a_batch_that_does() -> None:
    six = described(*["a100-80gb"] * 3, nodes=2)
    goal = Goal(model="llama-3.2-1b")
    said = idle_reason(goal, six, load_rules())
    assert said and "16 cannot be divided over 6 GPUs" in said and "--global-batch 18" in said
    assert idle_reason(replace(goal, global_batch=18), six, load_rules()) is None
    assert 6 in counts(six, global_batch=18)
    split = idle_reason(replace(goal, global_batch=18, micro_batch=9), six, load_rules())
    assert split and "--global-batch 54" in split
    assert any("6 GPUs" in one for one in make_plan(goal, LLAMA, six).assumptions)


@pytest.mark.parametrize("name", ["gpt2", "pythia-1.4b", "opt-1.3b"])
def test_liger_is_refused_for_models_that_it_does_not_patch(name: str) -> None:
    recipe = Recipe(model=name, adapter=Adapter(method="full"), weights="float32", loss="liger", sequence_length=512)
    model = load_model(name)
    assert any(f"liger has nothing for the model type {model.model_type}" in one
               for one in objections(model, recipe, described("h200")))  # fmt: skip
    assert objections(LLAMA, replace(recipe, model="llama-3.2-1b"), described("h200")) == ()
    goal = Goal(model=name, methods=("full",), sequence_length=1024)
    assert "liger" not in (make_plan(goal, model, described("p100")).cheapest_change or "")
