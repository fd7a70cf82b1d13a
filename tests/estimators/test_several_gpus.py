"""Real runs under DDP, ZeRO and FSDP2, with and without offload, are met: memory, host memory, time."""

import functools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

import profiles
from estimators.catalogue import find_device
from estimators.document import from_document
from estimators.hardware import Cluster, Gpu, Host
from estimators.memory import job_of
from estimators.models import load_model
from estimators.price import Price
from estimators.pricing import price
from estimators.strategies.parallelism.nccl import nccl_bytes
from estimators.strategies.parallelism.streams import reserved_extra_bytes

ROWS = [Path(profiles.__file__).parent / "measurements" / f"h200_{name}.jsonl" for name in ("facts", "two")]
ALONE_OUTSIDE_TORCH = 800_653_312
"""What runs hold beside torch's allocator on one H200, in almost every row of the first file."""


def measured() -> dict[str, dict[str, Any]]:
    lines = [line for path in ROWS for line in path.read_text(encoding="utf-8").splitlines()]
    rows = {row["name"]: row for row in map(json.loads, lines)}
    return {name: row for name, row in rows.items() if row["recipe"]["parallelism"]["kind"] != "none"}


MEASURED = measured()


@functools.lru_cache
def priced(name: str) -> Price:
    recipe, device = from_document(MEASURED[name]["recipe"]), find_device("h200-sxm")
    gpus = (Gpu(device=device, total_bytes=device.total_bytes),) * recipe.parallelism.devices
    host = Host(memory_bytes=2**41, disk_bytes=2**41)
    cluster = Cluster(gpus=gpus, peer_link=device.peer_link, host=host, hypothetical=True)
    return price(load_model(recipe.model), recipe, cluster)


def worst(name: str, figure: str) -> int:
    """The figure of the rank that has most of it."""
    return int(max(rank[figure] for rank in MEASURED[name]["ranks"]))


def test_there_are_14_runs_under_every_kind() -> None:
    kinds = [row["recipe"]["parallelism"]["kind"] for row in MEASURED.values()]
    assert len(kinds) >= 14
    assert set(kinds) == {"ddp", "zero1", "zero2", "zero3", "fsdp2"}


@pytest.mark.parametrize("name", MEASURED)
def test_measured_memory_is_met(name: str) -> None:
    assert priced(name).peak_allocated.value == pytest.approx(worst(name, "peak_allocated_bytes"), rel=0.02)
    assert priced(name).peak_reserved.value == pytest.approx(worst(name, "peak_reserved_bytes"), rel=0.10)
    whole = worst(name, "peak_reserved_bytes") + worst(name, "outside_torch_bytes")
    assert priced(name).process.value == pytest.approx(whole, rel=0.10)


@pytest.mark.parametrize("name", MEASURED)
def test_what_communication_holds_beside_torch_is_met(name: str) -> None:
    place = from_document(MEASURED[name]["recipe"]).parallelism
    beside = worst(name, "outside_torch_bytes") - ALONE_OUTSIDE_TORCH
    assert nccl_bytes(place.kind, place.devices, bool(place.offload)) == pytest.approx(beside, rel=0.01)


@pytest.mark.parametrize("name", MEASURED)
def test_side_streams_do_not_hold_more_than_was_reserved_and_free(name: str) -> None:
    recipe = from_document(MEASURED[name]["recipe"])
    gap = worst(name, "peak_reserved_bytes") - worst(name, "peak_allocated_bytes")
    assert reserved_extra_bytes(recipe.parallelism.kind, job_of(load_model(recipe.model), recipe)) < gap


def test_half_of_the_measured_steps_are_met_to_15_percent_and_all_to_40() -> None:
    seconds = {name: row["step_seconds"] for name, row in MEASURED.items()}
    off = [abs(priced(name).step_seconds.value / measured - 1) for name, measured in seconds.items()]
    assert statistics.median(off) <= 0.15
    assert max(off) <= 0.40


@pytest.mark.parametrize("name", [name for name, row in MEASURED.items() if row["recipe"]["parallelism"]["offload"]])
def test_offloads_host_memory_is_met(name: str) -> None:
    assert priced(name).host.value == pytest.approx(worst(name, "host_used_bytes"), rel=0.03)


def test_offload_takes_the_host_memory_that_it_says() -> None:
    away, here = "D-zero2off-l321b-full-s2048-b2-ck", "D-zero2-l321b-full-s2048-b2-ck"
    took = worst(away, "host_used_bytes") - worst(here, "host_used_bytes")
    assert priced(away).host.value - priced(here).host.value == pytest.approx(took, rel=0.02)


def test_several_ranks_step_on_one_thread_each_and_a_lone_one_on_all() -> None:
    """torchrun sets OMP_NUM_THREADS to 1: two ranks with half the parameters each take longer than one with all."""
    alone, two = "zero2-1gpu-offload-llama-3.2-1b-ck", "D-zero2off-l321b-full-s2048-b2-ck"
    assert MEASURED[two]["step_seconds"] > 2 * MEASURED[alone]["step_seconds"]
    assert priced(two).seconds["optimizer"] > 3 * priced(alone).seconds["optimizer"]
