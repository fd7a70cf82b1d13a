"""The dry run against what real GPUs did, event stream and all; CPU only, and no weights."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("peft", reason="peft is not installed")
pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from dataclasses import replace

import torch

from benchmarks.figures import FILES, found, written
from estimators.allocator import replay
from estimators.catalogue import find_device
from estimators.errors import BadInput
from estimators.measurement import Measurement, measurements
from estimators.models import load_config
from estimators.recipe import Adapter, Parallelism, Recipe
from runners.dry import steps
from runners.dry.trace import CannotTrace, Trace, dry_run
from runners.dry.tracer import versions
from tests.estimators.tiny import shallow

H200 = find_device("h200")
STALE = "benchmarks/dry_run_figures.json is stale: python benchmarks/accuracy.py --dry-run --write"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

RUNS = (
    "tiny11-lora-qv-s512-b1",
    "qw05-full-amp-s1024-b4",
    "tiny11-full-adafactor-s2048-b4",
    "tiny11-full-paged8-s2048-b2-ck",
    "llama-3.2-1b-lora-dropout",
    "llama-3.2-1b-lora-padded",
    "llama-3.2-1b-full-bf16-sgd",
    "llama-3.2-1b-full-paged32-amp-ck",
    "tinyllama-full-amp-accum4-ck",
    "gpt2-medium-full-fp32",
    "h100-llama-3.2-1b-full-amp-ck",
    "new-pythia-1b-full-fp32-s384-b12",
    "new-tinyllama-full-adafactor-eval-load",
    "new-llama-3.2-1b-lora-attn-liger-s6144-b2",
)
"""Measured runs of small models: methods, optimizers, padding, dropout, checkpointing, accumulation, losses, an
evaluation, two cards."""


def measured(name: str) -> tuple[str, Measurement]:
    """The file that a run is in, and the run."""
    return next((file, run) for file in FILES for run in measurements(file) if run.name == name)


@pytest.mark.parametrize("name", RUNS)
def test_peaks_are_those_of_the_real_run(name: str) -> None:
    file, run = measured(name)
    trace = dry_run(run.recipe, load_config(run.recipe.model), find_device(run.gpu))
    kept = found(file, name)
    same = 0.0 if written()["versions"] == versions() else 0.0005
    assert trace.peak_allocated_bytes == pytest.approx(kept["peak_allocated"].value, rel=same), STALE
    assert trace.peak_reserved_bytes == pytest.approx(kept["peak_reserved"].value, rel=40 * same), STALE
    assert trace.peak_allocated_bytes == pytest.approx(run.worst.peak_allocated_bytes, rel=0.0005)
    assert trace.peak_reserved_bytes == pytest.approx(run.worst.peak_reserved_bytes, rel=0.02)
    assert trace.loaded_bytes == pytest.approx(run.worst.loaded_bytes, rel=0.01)


def small(name: str = "smollm2-135m", **changes: object) -> Trace:
    recipe = Recipe(
        model=name, adapter=Adapter(method="lora", rank=8, alpha=32, targets=("q_proj", "v_proj")), micro_batch=8,
        sequence_length=256,
    )  # fmt: skip
    return dry_run(replace(recipe, **changes), shallow(load_config(name), layers=2), H200)  # type: ignore[arg-type]


def test_every_free_is_of_something_alive_and_phases_come_in_order() -> None:
    trace = small()
    alive: set[int] = set()
    for event in trace.events:
        if event.kind == "allocate":
            assert event.key not in alive
            alive.add(event.key)
        elif event.kind == "free":
            alive.remove(event.key)
    steps = len(trace.starts) // 3
    assert steps >= 3  # two are traced, and the second is repeated until the allocator is calm
    assert [phase for _, phase in trace.starts] == ["load", *("forward", "backward", "optimizer") * steps, "save"]
    assert replay(trace.events).peak_allocated_bytes == trace.peak_allocated_bytes


def test_the_second_step_leaves_nothing_behind() -> None:
    trace = small(optimizer="adamw_torch")
    starts = [index for index, phase in trace.starts if phase == "forward"]
    held = {0: 0}
    total, sizes = 0, {}
    for index, event in enumerate(trace.events, start=1):
        if event.kind == "allocate":
            sizes[event.key] = event.size_bytes
            total += event.size_bytes
        elif event.kind == "free":
            total -= sizes[event.key]
        held[index] = total
    saving = next(index for index, phase in trace.starts if phase == "save")
    assert held[saving] == held[starts[1]]
    assert held[len(trace.events)] < held[saving]  # training's own is let go of


def test_a_cap_below_the_peak_kills_the_job() -> None:
    trace = small()
    assert not replay(trace.events, trace.peak_allocated_bytes - 1).survives
    assert replay(trace.events, trace.peak_reserved_bytes).survives


def test_checkpointing_and_adapters_and_quantisation_save_memory() -> None:
    everything = small(adapter=Adapter(method="full"), weights="float32", gradient_checkpointing=False)
    checkpointed = small(adapter=Adapter(method="full"), weights="float32")
    adapted = small(gradient_checkpointing=False)
    assert checkpointed.peak_allocated_bytes < everything.peak_allocated_bytes
    assert adapted.peak_allocated_bytes < everything.peak_allocated_bytes
    assert small(quantization="nf4", kbit_upcast=False).loaded_bytes < small().loaded_bytes


def test_a_sharded_recipe_is_refused_by_name() -> None:
    with pytest.raises(BadInput, match="zero2"):
        small(parallelism=Parallelism(kind="zero2", devices=2))


def test_an_operation_that_meta_cannot_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = steps.build

    def build(*arguments: object) -> object:
        built = real(*arguments)  # type: ignore[arg-type]
        return replace(built, loss=lambda batch, tokens: torch.nonzero(batch["input_ids"]).float().sum())

    monkeypatch.setattr(steps, "build", build)
    with pytest.raises(CannotTrace, match="nonzero") as caught:
        small()
    assert "\n" not in str(caught.value)


def test_torch_is_left_as_it_was() -> None:
    before = torch.autocast, torch.is_autocast_enabled, torch.autograd._engine_run_backward
    small()
    assert before == (torch.autocast, torch.is_autocast_enabled, torch.autograd._engine_run_backward)
