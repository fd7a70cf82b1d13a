"""The cheapest change: first what leaves the learning alone, then what costs least."""

from estimators.catalogue import find_device
from estimators.hardware import Cluster, Gpu, GpuProcess
from estimators.models import load_model
from estimators.units import GIB
from planner.choose import make_plan
from planner.goal import Goal


def change(model: str, gpu: Gpu, **goal: object) -> str | None:
    return make_plan(Goal(model=model, **goal), load_model(model), Cluster(gpus=(gpu,))).cheapest_change  # type: ignore[arg-type]


def card(name: str, free_gib: int | None = None) -> Gpu:
    device = find_device(name)
    held = (GpuProcess(pid=4242, used_bytes=None, name="python"),) if free_gib else ()
    free = None if free_gib is None else free_gib * GIB
    return Gpu(device=device, total_bytes=device.total_bytes, free_bytes=free, processes=held)


def test_nothing_is_proposed_where_the_best_method_fits() -> None:
    assert change("llama-3.2-1b", card("h200")) is None


def test_a_loss_that_never_holds_the_logits_comes_before_a_shorter_sequence() -> None:
    proposed = change("gemma-2-2b", card("rtx-3060"), methods=("lora",), sequence_length=4096)
    assert proposed is not None
    assert "--trainer trl" in proposed or "--loss liger" in proposed


def test_memory_that_others_hold_is_named() -> None:
    proposed = change("llama-7b", card("h200", free_gib=50))
    assert proposed is not None
    assert "held by other processes" in proposed


def test_what_is_missing_is_given_in_bytes_with_the_card_that_has_it() -> None:
    proposed = change("llama-7b", card("rtx-4090"))
    assert proposed is not None
    assert "GiB more" in proposed
    assert "smallest card" in proposed
