"""The price of one recipe: budgets, verdicts, reasons, and the worst GPU."""

from dataclasses import replace

import pytest

from estimators.catalogue import find_device
from estimators.errors import BadInput
from estimators.hardware import Cluster, Gpu, Host
from estimators.legality import objections
from estimators.models import load_model
from estimators.pricing import headroom_of, price
from estimators.recipe import ALL_LINEAR, Adapter, Parallelism, Recipe
from estimators.units import GIB, MIB

LORA = Recipe(model="llama-7b", adapter=Adapter(method="lora", rank=16, alpha=64, targets=("q_proj", "v_proj")))
FULL = Recipe(model="llama-7b", adapter=Adapter(method="full"), weights="float32")
LLAMA = load_model("llama-7b")


def cluster(*names: str, host: Host | None = None, free_gib: float | None = None) -> Cluster:
    free = None if free_gib is None else int(free_gib * GIB)
    devices = [find_device(name) for name in names]
    gpus = tuple(Gpu(device=device, total_bytes=device.total_bytes, free_bytes=free) for device in devices)
    return Cluster(gpus=gpus, host=host or Host())


def test_headroom_is_2_percent_and_at_least_256_mib() -> None:
    assert headroom_of(100 * GIB, None) == 2 * GIB
    assert headroom_of(8 * GIB, None) == 256 * MIB
    assert headroom_of(8 * GIB, 0) == 0


def test_fits_tight_and_not_are_told_apart_by_the_error_bar() -> None:
    cost = price(LLAMA, LORA, cluster("h200"))
    assert cost.verdict == "fits"
    above = round(cost.process.high) + 1
    allocated = round(cost.peak_allocated.high) + cost.terms["context"] + 1
    assert price(LLAMA, LORA, cluster("h200"), vram_budget_bytes=above, headroom_bytes=0).verdict == "fits"
    assert price(LLAMA, LORA, cluster("h200"), vram_budget_bytes=above - 2, headroom_bytes=0).verdict == "tight"
    assert price(LLAMA, LORA, cluster("h200"), vram_budget_bytes=allocated, headroom_bytes=0).verdict == "tight"
    short = price(LLAMA, LORA, cluster("h200"), vram_budget_bytes=allocated - 2, headroom_bytes=0)
    assert short.verdict == "does not fit"
    assert short.tightest.spare_bytes < 0


def test_the_budget_is_what_is_free_now_or_the_users_limit() -> None:
    busy = cluster("h200", free_gib=30)
    assert price(LLAMA, LORA, busy).tightest.budget_bytes == 30 * GIB
    assert price(LLAMA, LORA, busy, vram_budget_bytes=10 * GIB).tightest.budget_bytes == 10 * GIB
    idle = price(LLAMA, LORA, busy, assume_idle=True).tightest
    assert idle.budget_bytes == find_device("h200").usable_bytes


def test_offload_needs_host_memory_and_says_how_much() -> None:
    offloaded = replace(FULL, weights="bfloat16", optimizer="adamw_torch",
                        parallelism=Parallelism(kind="zero2", devices=1, offload=("optimizer",)))  # fmt: skip
    small = price(LLAMA, offloaded, cluster("h200", host=Host(memory_bytes=64 * GIB)))
    large = price(LLAMA, offloaded, cluster("h200", host=Host(memory_bytes=1024 * GIB)))
    assert (small.host_verdict, small.fits) == ("does not fit", False)
    assert large.host_verdict == "fits"
    assert large.host.value > 12 * LLAMA.parameters
    assert large.process.value < price(LLAMA, FULL, cluster("h200")).process.value / 2


@pytest.mark.parametrize(
    ("recipe", "cards", "reason"),
    [
        (LORA, ("t4",), "bfloat16 needs compute capability 8.0"),
        (replace(FULL, weights="float16", compute="float16"), ("t4",), "float16 weights cannot be trained"),
        (replace(FULL, quantization="nf4", weights="bfloat16"), ("h200",), "adapter"),
        (replace(LORA, quantization="nf4", parallelism=Parallelism(kind="zero3", devices=2)), ("h200",) * 2, "zero3"),
        (replace(FULL, optimizer="adamw_8bit", weights="bfloat16", parallelism=Parallelism(kind="zero2", devices=2)),
         ("h200",) * 2, "zero2"),
        (replace(LORA, parallelism=Parallelism(kind="ddp", devices=4)), ("h200",) * 2, "4 GPUs are asked for, 2"),
        (replace(LORA, parallelism=Parallelism(kind="none", devices=2)), ("h200",) * 2, "need a parallelism"),
        (replace(LORA, parallelism=Parallelism(kind="ddp", devices=2, offload=("optimizer",))), ("h200",) * 2,
         "offload needs one of"),
        (replace(LORA, parallelism=Parallelism(kind="zero2", devices=2, offload=("parameters",))), ("h200",) * 2,
         "parameters needs zero3"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_its_reason(recipe: Recipe, cards: tuple[str, ...], reason: str) -> None:
    machine = cluster(*cards, host=Host(memory_bytes=1024 * GIB))
    assert any(reason in one for one in objections(LLAMA, recipe, machine))
    with pytest.raises(BadInput, match=reason):
        price(LLAMA, recipe, machine)


def test_gpt2_has_no_positions_beyond_its_table() -> None:
    recipe = Recipe(model="gpt2", adapter=Adapter(method="full"), weights="float32", sequence_length=2048)
    assert any("1024" in reason for reason in objections(load_model("gpt2"), recipe, cluster("h200")))


def test_an_unknown_layer_is_named_with_those_that_exist() -> None:
    adapter = Adapter(method="lora", rank=8, alpha=32, targets=("q_porj",))
    with pytest.raises(BadInput, match=r"q_porj.*q_proj"):
        price(LLAMA, replace(LORA, adapter=adapter), cluster("h200"))


def test_the_worst_gpu_decides_and_every_gpu_is_listed() -> None:
    mixed = cluster("rtx-3090", "a100-80gb")
    cost = price(LLAMA, replace(LORA, parallelism=Parallelism(kind="ddp", devices=2)), mixed)
    assert [share.name for share in cost.gpus] == ["rtx-3090", "a100-sxm4-80gb"]
    assert cost.tightest.name == "rtx-3090"


def test_one_rank_of_two_unequal_gpus_takes_the_roomier() -> None:
    cost = price(LLAMA, LORA, cluster("rtx-3090", "a100-80gb"))
    assert [share.name for share in cost.gpus] == ["a100-sxm4-80gb"]


def test_an_evaluation_of_many_sequences_can_be_the_worst_phase() -> None:
    """A run that trains for hours and dies at its first evaluation."""
    small = replace(LORA, model="gemma-2-2b", gradient_checkpointing=True)
    model = load_model("gemma-2-2b")
    training, evaluating = (
        price(model, small, cluster("h200")),
        price(model, replace(small, evaluation_batch=32), cluster("h200")),
    )
    assert evaluating.process == training.process
    assert evaluating.phases["evaluation"] > 5 * evaluating.phases["optimizer step"]
    assert evaluating.tightest.worst_phase.high > 3 * training.tightest.process.high
    assert evaluating.tightest.process == training.tightest.process
    limit = round(training.process.high) + 1
    assert price(model, small, cluster("h200"), vram_budget_bytes=limit, headroom_bytes=0).fits
    caught = price(
        model, replace(small, evaluation_batch=32), cluster("h200"), vram_budget_bytes=limit, headroom_bytes=0
    )
    assert not caught.fits


def test_liger_evaluates_with_whole_logits() -> None:
    """Its fused loss is for training alone: 8 rows of 2,048 of a vocabulary of 128,256 in 16 bits are 3.9 GiB."""
    for loss in ("plain", "liger"):
        recipe = replace(LORA, evaluation_batch=8, sequence_length=2048, micro_batch=1, loss=loss)
        evaluation = price(LLAMA, recipe, cluster("h200")).phases["evaluation"]
        assert evaluation > 2 * 8 * 2048 * LLAMA.vocabulary * 2, loss


def test_what_communication_takes_counts_before_a_job_is_called_tight() -> None:
    pair, recipe = cluster("h200", "h200"), replace(LORA, parallelism=Parallelism(kind="ddp", devices=2))
    cost = price(LLAMA, recipe, pair)
    inside = cost.peak_allocated.high + cost.terms["context"]
    assert price(LLAMA, recipe, pair, vram_budget_bytes=round(inside) + 1, headroom_bytes=0).verdict == "does not fit"
    outside = cost.gpus[0].process.value - cost.peak_reserved.value
    assert price(LLAMA, recipe, pair, vram_budget_bytes=round(cost.peak_allocated.high + outside) + 1,
                 headroom_bytes=0).verdict == "tight"  # fmt: skip


def test_a_disk_that_is_too_small_is_a_verdict_of_its_own() -> None:
    place = Parallelism(kind="zero3", devices=1, offload=("optimizer", "parameters"), offload_to="nvme")
    recipe = replace(FULL, weights="bfloat16", optimizer="adamw_torch", parallelism=place)
    for disk_gib, verdict in ((8, "does not fit"), (4096, "fits")):
        host = Host(memory_bytes=1024 * GIB, disk_bytes=disk_gib * GIB, nvme=True)
        cost = price(LLAMA, recipe, cluster("h200", host=host))
        assert cost.disk_verdict == verdict
        assert cost.fits == (verdict == "fits")


def test_paged_states_that_find_no_room_live_in_host_memory_and_cost_time() -> None:
    recipe = replace(FULL, weights="bfloat16", optimizer="paged_adamw_32bit", gradient_checkpointing=True)
    roomy = price(LLAMA, recipe, cluster("h200"))
    full = price(LLAMA, recipe, cluster("a100-40gb", host=Host(memory_bytes=256 * GIB)))
    assert roomy.seconds["host transfers"] == 0
    assert full.host.value > roomy.host.value + 20 * GIB
    assert full.seconds["host transfers"] > 1
    assert price(LLAMA, recipe, cluster("a100-40gb")).host_verdict == "does not fit"


def test_a_padded_batch_holds_a_mask_and_repeated_keys() -> None:
    model, full = load_model("llama-3.2-1b"), replace(LORA, model="llama-3.2-1b", gradient_checkpointing=False)
    padded = price(model, replace(full, padded=True), cluster("h200"))
    assert padded.peak_allocated.value > price(model, full, cluster("h200")).peak_allocated.value


def test_lion_keeps_one_moment_and_adamw_two() -> None:
    states = {
        name: price(LLAMA, replace(FULL, optimizer=name), cluster("h200")).terms["optimizer"]
        for name in ("adamw_8bit", "lion_8bit", "sgd")
    }
    assert states["adamw_8bit"] == 2 * states["lion_8bit"] > 0
    assert states["sgd"] == 0


def test_accumulated_gradients_are_there_before_the_backward_pass() -> None:
    once = price(LLAMA, replace(FULL, loss="liger", micro_batch=4), cluster("h200"))
    often = price(LLAMA, replace(FULL, loss="liger", micro_batch=4, gradient_accumulation=4), cluster("h200"))
    for moment in ("start of the backward pass", "backward pass of the last block"):
        assert often.phases[moment] - once.phases[moment] > 0.9 * 4 * LLAMA.parameters


def test_paged_states_are_noted_and_not_counted_twice() -> None:
    paged = price(LLAMA, replace(FULL, optimizer="paged_adamw_8bit"), cluster("h200"))
    resident = price(LLAMA, replace(FULL, optimizer="adamw_8bit"), cluster("h200"))
    assert any("paged" in note for note in paged.notes)
    assert paged.process.value < resident.process.value


def test_quantised_mixtures_say_that_their_experts_are_not() -> None:
    model = load_model("qwen3-30b-a3b")
    recipe = Recipe(model="qwen3-30b-a3b", quantization="nf4",
                    adapter=Adapter(method="lora", rank=16, alpha=64, targets=ALL_LINEAR))  # fmt: skip
    assert any("experts" in note for note in price(model, recipe, cluster("h200")).notes)
