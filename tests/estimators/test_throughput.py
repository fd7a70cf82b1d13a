"""Step time: what limits it, and that it moves the way it must."""

from dataclasses import replace

import pytest

from estimators.calibration import Rates
from estimators.catalogue import find_device
from estimators.hardware import Cluster, Gpu
from estimators.models import load_model
from estimators.recipe import Adapter, Recipe
from estimators.throughput import step_seconds

RATES = Rates()
LORA = Recipe(model="llama-7b", adapter=Adapter(method="lora", rank=16, alpha=64, targets=("q_proj", "v_proj")))
FULL = Recipe(model="llama-7b", adapter=Adapter(method="full"), weights="float32")


def seconds(recipe: Recipe, card: str = "h200", rates: Rates = RATES) -> dict[str, float]:
    device = find_device(card)
    cluster = Cluster(gpus=(Gpu(device=device, total_bytes=device.total_bytes),))
    return step_seconds(load_model(recipe.model), recipe, cluster, rates)


def total(recipe: Recipe, card: str = "h200") -> float:
    return sum(seconds(recipe, card).values())


def test_a_small_batch_waits_for_the_cpu_and_a_large_one_does_not() -> None:
    small = seconds(replace(LORA, sequence_length=128, gradient_checkpointing=False))
    large = seconds(replace(LORA, micro_batch=8))
    assert small["waiting for the CPU"] > 0.5 * sum(small.values())
    assert large["waiting for the CPU"] < 0.05 * sum(large.values())


def test_a_slower_host_slows_only_what_waits_for_it() -> None:
    slow = replace(RATES, forward_dispatch_seconds=2 * RATES.forward_dispatch_seconds,
                   backward_dispatch_seconds=2 * RATES.backward_dispatch_seconds)  # fmt: skip
    tiny, big = replace(LORA, sequence_length=128, gradient_checkpointing=False), replace(LORA, micro_batch=8)
    assert sum(seconds(tiny, rates=slow).values()) > 1.5 * total(tiny)
    assert sum(seconds(big, rates=slow).values()) == pytest.approx(total(big), rel=0.05)


def test_recomputation_costs_a_forward_pass_and_no_more() -> None:
    on, off = total(replace(FULL, micro_batch=4)), total(replace(FULL, micro_batch=4, gradient_checkpointing=False))
    assert 1.15 < on / off < 1.45


def test_training_adapters_spares_the_weight_gradients() -> None:
    """4 N against 6 N flops a token, without recomputation."""
    lora = seconds(replace(LORA, micro_batch=4, gradient_checkpointing=False))
    full = seconds(replace(FULL, micro_batch=4, gradient_checkpointing=False))
    assert lora["matrix products"] / full["matrix products"] == pytest.approx(2 / 3, rel=0.08)


def test_dequantisation_is_seen_and_only_where_there_is_some() -> None:
    assert seconds(replace(LORA, quantization="nf4"))["dequantisation"] > 0
    assert seconds(LORA)["dequantisation"] == 0


def test_attention_grows_faster_than_the_sequence() -> None:
    short, long = seconds(replace(LORA, sequence_length=2048)), seconds(replace(LORA, sequence_length=8192))
    assert long["attention"] > 10 * short["attention"]
    assert long["matrix products"] == pytest.approx(4 * short["matrix products"], rel=0.1)


@pytest.mark.parametrize(("faster", "slower"), [("h200", "a100-80gb"), ("a100-80gb", "l4"), ("rtx-4090", "t4")])
def test_a_faster_card_is_faster(faster: str, slower: str) -> None:
    half = replace(LORA, weights="float16", compute="float16", micro_batch=4)
    assert total(half, faster) < total(half, slower)
