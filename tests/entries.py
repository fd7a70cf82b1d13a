"""Stored runs for tests, made as `plan measure` makes them."""

from dataclasses import replace
from typing import Any

from estimators.catalogue import find_device
from estimators.fingerprint import Machine, machine_of
from estimators.hardware import Cluster, Gpu
from estimators.measurement import RankPeak
from estimators.models import load_model
from estimators.outcome import Outcome
from estimators.price import Price
from estimators.pricing import price
from estimators.recipe import Adapter, Recipe
from estimators.record import Entry, Measured, prediction_of

LORA = Recipe(model="llama-3.2-1b", adapter=Adapter(method="lora", rank=16, alpha=64, targets=("q_proj", "v_proj")))


def machine(name: str = "box", gpu: str = "h200-sxm", uuid: str | None = None) -> Machine:
    return machine_of(name, "Some CPU @ 2.1 GHz", 16, [(gpu, uuid or f"GPU-{name}")], "580.159.04")


def cluster(gpu: str = "h200-sxm") -> Cluster:
    device = find_device(gpu)
    return Cluster(gpus=(Gpu(device=device, total_bytes=device.total_bytes),), hypothetical=True)


def priced(recipe: Recipe, gpu: str = "h200-sxm") -> Price:
    return price(load_model(recipe.model), recipe, cluster(gpu))


def rank(allocated: int, **fields: Any) -> RankPeak:
    return RankPeak(
        loaded_bytes=allocated // 2,
        peak_allocated_bytes=allocated,
        peak_reserved_bytes=fields.pop("reserved", allocated + (1 << 28)),
        process_bytes=fields.pop("process", allocated + (1 << 30)),
        outside_torch_bytes=None,
        **fields,
    )


def entry(job: str = "one", *, gpu: str = "h200-sxm", recipe: Recipe = LORA, **fields: Any) -> Entry:
    """A run that ended well, as far as `fields` do not say otherwise."""
    measured = fields.pop("measured", None) or Measured(
        outcome=Outcome.OK, ranks=(rank(8 << 30),), step_seconds=0.25, step_spread_seconds=0.01
    )
    made = Entry(
        job=job,
        seconds_since_epoch=1_795_000_000.0,
        machine=machine(gpu=gpu),
        gpu=gpu,
        recipe=recipe,
        measured=measured,
        versions={"torch": "2.13.0"},
    )
    return replace(made, **fields)


def expected(made: Entry) -> Entry:
    """The same run with what a plan had said of it."""
    return replace(made, prediction=prediction_of(priced(made.recipe, made.gpu)))
