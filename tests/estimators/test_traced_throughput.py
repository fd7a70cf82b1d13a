"""Step time from what a dry run counts: the slower of GPU and host shows, on counts made by hand and on measured runs.

What the dry run said of measured runs is read from benchmarks/dry_run_figures.json.
"""

import statistics
from dataclasses import replace

import pytest

from benchmarks.accuracy import rows_of
from benchmarks.figures import cluster_for
from estimators.calibration import Rates
from estimators.knobs import turned
from estimators.models import load_model
from estimators.recipe import Adapter, Parallelism, Recipe
from estimators.throughput import CAUSES
from estimators.traced_throughput import traced_step_seconds
from estimators.work import Class, Load, Work

RATES = Rates()
LORA = Recipe(
    model="llama-3.2-1b", adapter=Adapter(method="lora", rank=16, alpha=64, targets=("q_proj", "v_proj")),
    micro_batch=1, sequence_length=512, gradient_checkpointing=False, optimizer="adamw_torch_fused",
)  # fmt: skip


def work(**loads: Load) -> Work:
    """Loads named PHASE_CLASS."""
    return Work(loads={_key(name): load for name, load in loads.items()})


def _key(name: str) -> tuple[str, Class]:
    phase, kind = name.split("_", 1)
    return phase, kind  # type: ignore[return-value]


def seconds(loads: Work, recipe: Recipe = LORA, rates: Rates = RATES, gpu: str = "h200") -> dict[str, float]:
    cluster = cluster_for(gpu, recipe.parallelism.devices)
    return traced_step_seconds(loads, load_model(recipe.model), recipe, cluster, rates)


IDLE = sum(seconds(work()).values())
"""A step that computes nothing: the optimizer, and what the Trainer itself takes."""


def lasts(loads: Work, recipe: Recipe = LORA) -> float:
    """Beyond that."""
    return sum(seconds(loads, recipe).values()) - IDLE


def test_causes_are_the_formulas_and_none_is_negative() -> None:
    found = seconds(work(forward_matmul=Load(calls=10, flops=1e12), backward_view=Load(calls=1000)))
    assert set(found) == set(CAUSES)
    assert min(found.values()) >= 0


def test_large_products_cost_their_flops_and_many_small_ones_their_calls() -> None:
    peak = 989.5e12 * RATES.traced.hopper.matmul
    assert lasts(work(forward_matmul=Load(calls=10, flops=1e14))) == pytest.approx(1e14 / peak, rel=0.01)
    small = lasts(work(forward_matmul=Load(calls=1e4, flops=1e10)))
    assert small == pytest.approx(1e4 * RATES.traced.operator_seconds)
    assert seconds(work(forward_matmul=Load(calls=1e4, flops=1e10)))["waiting for the CPU"] > 0.8 * small


def test_the_host_issues_the_backward_pass_while_the_gpu_still_computes_the_forward_one() -> None:
    busy, many = Load(calls=1, flops=1e14), Load(calls=3000, flops=0.0)
    forward, backward = lasts(work(forward_matmul=busy)), lasts(work(backward_elementwise=many))
    assert lasts(work(forward_matmul=busy, backward_elementwise=many)) < 0.95 * (forward + backward)
    # The other way round the GPU can only begin when it has been given something.
    ahead, later = lasts(work(forward_elementwise=many)), lasts(work(backward_matmul=busy))
    assert lasts(work(forward_elementwise=many, backward_matmul=busy)) == pytest.approx(ahead + later)


def test_recomputation_costs_the_host_what_the_forward_pass_does_and_its_hooks() -> None:
    calls = Load(calls=1000)
    again = lasts(work(recomputation_elementwise=calls))
    assert again == pytest.approx(lasts(work(forward_elementwise=calls)))
    assert again > lasts(work(backward_elementwise=calls))
    hooked = lasts(work(recomputation_elementwise=calls, recomputation_saved=calls))
    assert hooked == pytest.approx(again + 1000 * RATES.traced.saved_seconds)


@pytest.mark.parametrize("kind", ["view", "module"])
def test_what_only_the_host_sees_takes_no_gpu(kind: Class) -> None:
    alone = Work(loads={("forward", kind): Load(calls=1000)})
    beside = alone.plus(work(forward_matmul=Load(calls=1, flops=1e14)))
    assert lasts(alone) > 0
    assert lasts(beside) == pytest.approx(lasts(work(forward_matmul=Load(calls=1, flops=1e14))))


def test_libraries_add_python_to_each_layer() -> None:
    modules = {"forward_module": Load(calls=100)}
    plain = lasts(work(**modules))
    adapted = lasts(work(**modules, forward_adapter=Load(calls=100)))
    quantized = work(**modules, forward_quantized=Load(calls=100))
    four = lasts(quantized, replace(LORA, quantization="nf4"))
    eight = lasts(quantized, replace(LORA, quantization="int8"))
    assert plain < adapted < four < eight


def test_eight_bit_products_wait_for_their_answers() -> None:
    loads = work(forward_quantized=Load(calls=1000), forward_matmul=Load(calls=1, flops=1e14))
    parts = [work(forward_quantized=Load(calls=1000)), work(forward_matmul=Load(calls=1, flops=1e14))]
    eight = replace(LORA, quantization="int8")
    assert lasts(loads, eight) == pytest.approx(sum(lasts(part, eight) for part in parts))
    assert lasts(loads) < 0.9 * sum(lasts(part) for part in parts)


def test_heads_that_the_fast_kernels_do_not_take_are_slow_and_float32_has_no_tensor_cores() -> None:
    load = Load(calls=1, flops=1e13)
    even, uneven = Work(loads={("forward", "attention"): load}), Work(loads={("forward", "uneven attention"): load})
    assert lasts(uneven) > 1.2 * lasts(even)
    assert lasts(work(forward_float32=load)) > 10 * lasts(work(forward_matmul=load))


def test_an_optimizer_of_many_operators_waits_for_the_host() -> None:
    factored = sum(seconds(work(optimizer_optimizer=Load(calls=5000))).values())
    assert factored - IDLE > 0.9 * 5000 * RATES.traced.backward_operator_seconds


def test_several_gpus_add_what_the_formula_says_of_their_links() -> None:
    full = Recipe(
        model="llama-3.2-1b", adapter=Adapter(method="full"), micro_batch=1, sequence_length=512,
        gradient_checkpointing=False, optimizer="adamw_torch",
    )  # fmt: skip
    loads = work(forward_matmul=Load(calls=100, flops=1e13), backward_matmul=Load(calls=200, flops=2e13))
    alone = seconds(loads, full)
    offloaded = Parallelism(kind="zero2", devices=2, offload=("optimizer",))
    assert alone["communication"] == alone["host transfers"] == 0
    assert seconds(loads, replace(full, parallelism=Parallelism(kind="ddp", devices=2)))["communication"] > 0
    assert seconds(loads, replace(full, parallelism=offloaded))["host transfers"] > 0


def test_a_machine_that_issues_slower_takes_longer_for_what_the_host_bounds_alone() -> None:
    device = cluster_for("h200", 1).gpus[0].device
    slower = turned(RATES, device, {"issuing kernels": 1.5})
    bound, free = work(forward_elementwise=Load(calls=5000)), work(forward_matmul=Load(calls=1, flops=1e14))
    idle = sum(seconds(work(), rates=slower).values())
    assert sum(seconds(bound, rates=slower).values()) - idle == pytest.approx(1.5 * lasts(bound))
    assert sum(seconds(free, rates=slower).values()) - idle == pytest.approx(lasts(free))
    weaker = turned(RATES, device, {"matrix products": 1.25})
    assert sum(seconds(free, rates=weaker).values()) - IDLE == pytest.approx(1.25 * lasts(free), rel=0.01)


def errors(name: str, *, single: bool) -> list[float]:
    """Of the dry run's step times, without their signs."""
    rows = [row for row in rows_of(name) if (row.run.recipe.parallelism.kind == "none") is single]
    return sorted(abs(error) for row in rows if (error := row.error("step_seconds", "dry run")) is not None)


def test_steps_on_one_gpu_keep_the_bars() -> None:
    off = errors("h200_facts", single=True)
    assert len(off) == 34
    assert statistics.median(off) <= 0.05
    assert off[int(0.9 * (len(off) - 1))] <= 0.15
    assert off[-1] <= 0.30


def test_steps_on_two_gpus_keep_the_bar() -> None:
    off = [*errors("h200_facts", single=False), *errors("h200_two", single=False)]
    assert len(off) == 14
    assert statistics.median(off) <= 0.15


@pytest.mark.parametrize("name", ["h200_held_out", "h100_single"])
def test_on_runs_that_no_constant_was_fitted_to_the_dry_run_beats_the_formula(name: str) -> None:
    formula = [abs(row.error("step_seconds") or 0.0) for row in rows_of(name)]
    off = errors(name, single=True)
    assert statistics.median(off) < statistics.median(formula)
    assert max(off) < max(formula)
