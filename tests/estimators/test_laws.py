"""What must hold for every recipe, whatever its figures: monotony, sums, legality, and a document that survives."""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from estimators.catalogue import all_devices, find_device
from estimators.document import from_document, to_document
from estimators.errors import BadInput, PlanError
from estimators.hardware import Cluster, Gpu, Host
from estimators.legality import objections
from estimators.memory import estimate_memory
from estimators.models import load_model
from estimators.price import Price
from estimators.pricing import price
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from estimators.walk import walk
from tests.estimators.recipes import KINDS, legal_recipes, recipes

H200 = find_device("h200")
HOST = Host(memory_bytes=4 << 40, disk_bytes=8 << 40, nvme=True)
EIGHT = Cluster(gpus=(Gpu(device=H200, total_bytes=H200.total_bytes),) * 8, host=HOST)
quick = settings(max_examples=120, deadline=None)


def peak(recipe: Recipe) -> int:
    """What the allocator holds at the peak, and the paged states that it does not hold."""
    memory = estimate_memory(load_model(recipe.model), recipe, H200)
    return memory.allocated_bytes + memory.managed_bytes


def legal(recipe: Recipe) -> Recipe:
    assume(not objections(load_model(recipe.model), recipe, EIGHT))
    return recipe


def cost(recipe: Recipe, budget_bytes: int | None = None) -> Price:
    return price(load_model(recipe.model), recipe, EIGHT, vram_budget_bytes=budget_bytes)


@quick
@given(legal_recipes(), st.integers(1, 8))
def test_memory_never_falls_with_the_micro_batch(recipe: Recipe, more: int) -> None:
    legal(recipe)
    assert peak(replace(recipe, micro_batch=recipe.micro_batch + more)) >= peak(recipe)


@quick
@given(legal_recipes(), st.integers(1, 512))
def test_memory_never_falls_with_the_sequence(recipe: Recipe, more: int) -> None:
    legal(recipe)
    longer = replace(recipe, sequence_length=recipe.sequence_length + more)
    assert peak(legal(longer)) >= peak(recipe)


@quick
# ZeRO-3 keeps tensors below its persistence threshold whole: one that outgrows it is sharded, and takes less.
@given(legal_recipes(with_adapter=True, kinds=tuple(kind for kind in KINDS if kind != "zero3")), st.integers(1, 64))
def test_memory_never_falls_with_the_rank(recipe: Recipe, more: int) -> None:
    legal(recipe)
    higher = replace(recipe.adapter, rank=recipe.adapter.rank + more)
    assert peak(replace(recipe, adapter=higher)) >= peak(recipe)


@quick
@given(legal_recipes())
def test_terms_sum_to_the_peak_and_nothing_is_negative(recipe: Recipe) -> None:
    legal(recipe)
    memory = estimate_memory(load_model(recipe.model), recipe, H200)
    for moment in memory.moments:
        assert min(moment.terms.values()) >= 0, moment
        assert sum(moment.terms.values()) == moment.total_bytes <= memory.allocated_bytes
    priced = cost(recipe)
    assert sum(priced.terms.values()) == priced.process.value
    assert sum(priced.seconds.values()) == pytest.approx(priced.step_seconds.value)
    for interval in (priced.peak_allocated, priced.peak_reserved, priced.process, priced.step_seconds):
        assert 0 < interval.low <= interval.value <= interval.high
    assert priced.peak_allocated.value <= priced.peak_reserved.value <= priced.process.value


@quick
@given(legal_recipes(), st.integers(1 << 30, 200 << 30), st.integers(0, 100 << 30))
def test_fits_is_monotone_in_the_budget(recipe: Recipe, budget: int, more: int) -> None:
    legal(recipe)
    order = ("does not fit", "tight", "fits")
    assert order.index(cost(recipe, budget + more).verdict) >= order.index(cost(recipe, budget).verdict)


@quick
@given(legal_recipes())
def test_checkpointing_never_keeps_more_activations(recipe: Recipe) -> None:
    """At the loss, where all of them are alive: a block's input alone against whatever it saves."""
    legal(recipe)
    model = load_model(recipe.model)
    kept = {
        on: estimate_memory(model, replace(recipe, gradient_checkpointing=on), H200).moments[1].terms["activations"]
        for on in (True, False)
    }
    pinned = recipe.quantization == "int8"  # its inputs are kept either way
    assert kept[True] <= kept[False] or pinned


@quick
@given(recipes)
def test_a_recipe_survives_its_document(recipe: Recipe) -> None:
    document = json.loads(json.dumps(to_document(recipe)))
    assert from_document(document) == replace(
        recipe, parallelism=replace(recipe.parallelism, offload=tuple(sorted(recipe.parallelism.offload)))
    )


@quick
@given(recipes, st.sampled_from(all_devices()))
def test_what_is_illegal_is_refused_with_a_reason_and_the_rest_is_priced(recipe: Recipe, device: object) -> None:
    cluster = Cluster(gpus=(Gpu(device=device, total_bytes=device.total_bytes),) * 2, host=HOST)  # type: ignore[attr-defined,arg-type]
    model = load_model(recipe.model)
    reasons = objections(model, recipe, cluster)
    if reasons:
        with pytest.raises(BadInput) as refusal:
            price(model, recipe, cluster)
        assert all(reason in str(refusal.value) for reason in reasons)
    else:
        assert price(model, recipe, cluster).process.value > 0


@settings(max_examples=400, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=6),
        max_leaves=20,
    ),
    st.sampled_from(list(to_document(Recipe(model="gpt2", adapter=Adapter(method="full"))))),
)
def test_a_hostile_document_is_refused_in_one_line(junk: object, key: str) -> None:
    good = to_document(Recipe(model="gpt2", adapter=Adapter(method="full")))
    for document in (junk, {**good, key: junk}, {**good, "adapter": {"method": "lora", "rank": junk}}):
        try:
            from_document(document)
        except PlanError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 400


def test_the_first_block_is_handed_a_narrower_stream_where_a_branch_widens_it() -> None:
    """As the dry run has it: LayerNorm under autocast is float32, and so is the stream behind the first block."""
    adapter = Adapter(method="lora", rank=64, alpha=256, dropout=0.1, targets=ALL_LINEAR)
    recipe = Recipe(model="starcoder2-3b", adapter=adapter, trainer="trl", quantization="nf4", weights="float16",
                    compute="float16", micro_batch=2, sequence_length=640)  # fmt: skip
    walked = walk(load_model("starcoder2-3b"), recipe)
    first, second = walked.handed_to(1), walked.handed_to(2) - walked.handed_to(1)
    assert walked.handed_to(0) == 0
    assert (first, second) == (2 * 640 * 3072 * 2, pytest.approx(2 * 640 * 3072 * 4, rel=0.1))
