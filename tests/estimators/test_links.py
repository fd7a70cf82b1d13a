"""What links add to a step: which link, what hides behind which pass, and what a mask costs in attention."""

from dataclasses import replace
from typing import Any

import pytest

from estimators.calibration import MeasuredLink, Rates
from estimators.catalogue import find_device
from estimators.hardware import Cluster, Device, Gpu, Host, Link
from estimators.links import link_seconds
from estimators.models import load_model
from estimators.pricing import price
from estimators.recipe import Adapter, Parallelism, Recipe
from estimators.throughput import step_seconds

H200 = find_device("h200")
LLAMA = load_model("llama-3.2-1b")
FULL = Recipe(model="llama-3.2-1b", adapter=Adapter(method="full"), weights="float32", micro_batch=2)
SLOW = Link(name="slow", bytes_per_second=1e9)
FAST = Link(name="fast", bytes_per_second=1e12)


def cluster(gpus: int, nodes: int = 1, node_link: Link | None = None, device: Device = H200) -> Cluster:
    card = Gpu(device=device, total_bytes=device.total_bytes)
    return Cluster(gpus=(card,) * gpus, nodes=nodes, peer_link=device.peer_link, node_link=node_link,
                   host=Host(memory_bytes=2**41, disk_bytes=2**42, nvme=True), hypothetical=True)  # fmt: skip


def over(kind: str, devices: int, **fields: Any) -> Recipe:
    return replace(FULL, parallelism=Parallelism(kind=kind, devices=devices), **fields)


def communication(recipe: Recipe, machine: Cluster, passes: tuple[float, float]) -> float:
    return link_seconds(LLAMA, recipe, machine, H200, Rates(), passes).communication


def test_the_link_between_nodes_counts_for_jobs_over_nodes_and_only_for_those() -> None:
    slow, fast = cluster(2, nodes=2, node_link=SLOW), cluster(2, nodes=2, node_link=FAST)
    within, across = over("ddp", 2), over("ddp", 4)
    assert price(LLAMA, within, slow).step_seconds == price(LLAMA, within, fast).step_seconds
    assert price(LLAMA, within, slow).step_seconds == price(LLAMA, within, cluster(2)).step_seconds
    assert price(LLAMA, across, slow).step_seconds.value > 2 * price(LLAMA, across, fast).step_seconds.value


def test_a_ring_over_nodes_is_as_fast_as_its_slowest_link() -> None:
    whole = over("zero3", 4)
    inside = replace(H200, peer_link=SLOW)
    among_slow = communication(whole, cluster(2, nodes=2, node_link=FAST, device=inside), (0.1, 0.2))
    assert among_slow > 5 * communication(whole, cluster(2, nodes=2, node_link=FAST), (0.1, 0.2))


def test_what_was_measured_of_a_link_is_applied_to_that_link_alone() -> None:
    """NVLink that reached a tenth says nothing of PCIe; what runs teach later turns both."""
    whole, nvlink = over("ddp", 2), cluster(2)
    assert H200.peer_link is not None
    pcie = replace(nvlink, peer_link=None)
    measured = MeasuredLink(bytes_per_second=H200.peer_link.bytes_per_second, efficiency=0.07)
    slow = Rates(peer_link_efficiency=0.07, measured_link=measured)
    turned = replace(slow, peer_link_efficiency=0.035)

    def seconds(machine: Cluster, rates: Rates) -> float:
        calls = replace(machine, peer_link=Link(name="no bytes", bytes_per_second=1e18))
        both = [link_seconds(LLAMA, whole, one, H200, rates, (1e-9, 1e-9)).communication for one in (machine, calls)]
        return both[0] - both[1]

    assert seconds(nvlink, slow) == pytest.approx(10 * seconds(nvlink, Rates()), rel=0.01)
    assert seconds(pcie, slow) == pytest.approx(seconds(pcie, Rates()))
    for machine in (nvlink, pcie):
        assert seconds(machine, turned) == pytest.approx(2 * seconds(machine, slow), rel=0.01)


def test_what_is_reduced_once_a_step_hides_behind_one_backward_pass() -> None:
    machine = replace(cluster(2), peer_link=Link(name="some", bytes_per_second=10e9))
    one, many = (communication(over("ddp", 2, gradient_accumulation=times), machine, (0.05, 0.1)) for times in (1, 16))
    assert one == many > 0.1
    longer = communication(over("ddp", 2), machine, (0.05, 0.2))
    assert one - longer == pytest.approx(0.1, rel=0.01)
    assert communication(over("ddp", 2), machine, (0.15, 0.1)) == one


def test_what_each_micro_batch_gathers_hides_behind_that_micro_batch() -> None:
    machine = replace(cluster(2), peer_link=Link(name="some", bytes_per_second=20e9))
    adapters = replace(over("fsdp2", 2), weights="bfloat16",
                       adapter=Adapter(method="lora", rank=8, alpha=32, targets=("q_proj",)))  # fmt: skip
    one, four = (
        communication(replace(adapters, gradient_accumulation=times), machine, (0.01, 0.02)) for times in (1, 4)
    )
    assert four == pytest.approx(4 * one, rel=0.05)


def test_the_first_gather_and_the_last_gradients_hide_behind_nothing() -> None:
    for kind in ("ddp", "fsdp2"):
        assert communication(over(kind, 2), cluster(2), (1e3, 1e3)) > 1e-3


def test_a_faster_drive_shortens_what_is_offloaded_to_it() -> None:
    place = Parallelism(kind="zero3", devices=1, offload=("optimizer", "parameters"), offload_to="nvme")
    away = replace(FULL, weights="bfloat16", optimizer="adamw_torch", parallelism=place)
    slow, fast = Rates(nvme_bytes_per_second=1e9), Rates(nvme_bytes_per_second=8e9)
    times = [step_seconds(LLAMA, away, cluster(1), rates)["host transfers"] for rates in (slow, fast)]
    assert times[0] > 3 * times[1]
    here = replace(away, parallelism=replace(place, offload_to="cpu"))
    assert step_seconds(LLAMA, here, cluster(1), slow) == step_seconds(LLAMA, here, cluster(1), fast)


@pytest.mark.parametrize(("length", "masked"), [(511, False), (512, True), (1024, True)])
def test_a_window_that_the_sequence_reaches_costs_a_mask(length: int, masked: bool) -> None:
    """Gemma 3's window is 512 tokens; flash_attention_2 needs no mask for it."""
    model = load_model("gemma-3-1b")
    lora = Adapter(method="lora", rank=16, alpha=64, targets=("q_proj",))
    sdpa = Recipe(model="gemma-3-1b", adapter=lora, sequence_length=length, micro_batch=4, gradient_checkpointing=False)
    costs = [price(model, replace(sdpa, attention=name), cluster(1)) for name in ("sdpa", "flash_attention_2")]
    assert (costs[0].peak_allocated.value > costs[1].peak_allocated.value) is masked
    assert (costs[0].seconds["attention"] > costs[1].seconds["attention"]) is masked


def test_a_padded_batch_pays_for_the_whole_square_and_keeps_each_layers_bias() -> None:
    lora = Adapter(method="lora", rank=16, alpha=64, targets=("q_proj",))
    long = Recipe(model="llama-3.2-1b", adapter=lora, sequence_length=4096, gradient_checkpointing=False)
    full, padded = price(LLAMA, long, cluster(1)), price(LLAMA, replace(long, padded=True), cluster(1))
    assert padded.seconds["attention"] == pytest.approx(2 * full.seconds["attention"], rel=0.05)
    biases = len(LLAMA.layers) * 4096**2 * 2
    assert padded.peak_allocated.value - full.peak_allocated.value > biases


def test_adam_on_the_cpu_has_the_cores_that_the_launcher_deals_out_or_else_torchruns_one_thread() -> None:
    away = over("zero2", 2, weights="bfloat16", optimizer="adamw_torch")
    away = replace(away, parallelism=replace(away.parallelism, offload=("optimizer",)))
    unknown = cluster(2)
    known = [replace(unknown, host=replace(unknown.host, cpu_cores=cores)) for cores in (2, 8, 32, 128)]
    alone, *more = (step_seconds(LLAMA, away, machine, Rates())["optimizer"] for machine in (unknown, *known))
    assert alone == more[0] > 3.5 * more[1] > 3.5 * more[2]
    assert more[2] == more[3]  # all ranks wait for one memory


def test_ranks_that_share_a_host_issue_more_slowly_than_a_job_alone() -> None:
    small = replace(FULL, micro_batch=1, sequence_length=64)
    fair = replace(Rates(), shared_host=1.0)
    shared = over("ddp", 2, micro_batch=1, sequence_length=64)
    together, apart = (step_seconds(LLAMA, shared, cluster(2), rates) for rates in (Rates(), fair))
    assert 1.05 < sum(together.values()) / sum(apart.values()) < 1.15
    assert step_seconds(LLAMA, small, cluster(1), Rates()) == step_seconds(LLAMA, small, cluster(1), fair)
