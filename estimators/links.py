"""What several GPUs and offloading add to a step: collectives, transfers, the host's optimizer, and Python's hooks.

Sources: DeepSpeed 0.19.8 runtime/zero/parameter_offload.py (four hooks around every module, whether it has weights or
not), stage_1_and_2.py (a hook on every trained tensor); torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param_group.py;
torch/distributed/run.py, which sets OMP_NUM_THREADS to 1 where a node has several ranks and nobody set it.
"""

from dataclasses import dataclass

from estimators.calibration import Rates
from estimators.hardware import Cluster, Device
from estimators.memory import job_of
from estimators.model import ModelSpec
from estimators.recipe import Recipe
from estimators.strategies.axes import Exchange
from estimators.techniques import ADAPTERS, PARALLELISMS, find_law
from estimators.trainable import target_names

CONTAINERS = 4
"""Modules of a block that are called and have no weights of their own: block, attention, MLP, activation."""
AROUND_BLOCKS = 6
"""Model, its base, embedding, rotary embedding, final norm, head."""
HIDDEN_SHARE, EXPOSED_SHARE = 0.5, 0.2
"""Of what the passes last, the part beside which collectives run; and of collectives, the part that nothing hides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Seconds of one step that nothing hides."""

    communication: float = 0.0
    transfers: float = 0.0
    host_optimizer: float = 0.0


def link_seconds(
    model: ModelSpec, recipe: Recipe, cluster: Cluster, device: Device, rates: Rates, passes_seconds: float
) -> Links:
    """What collectives, host transfers and the optimizer on the CPU add to passes that last `passes_seconds`."""
    place, times = recipe.parallelism, recipe.gradient_accumulation
    if place.kind == "none":
        return Links()
    exchange = find_law("parallelism", PARALLELISMS, place.kind).exchange(job_of(model, recipe))
    host_speed = device.host_link.bytes_per_second * rates.host_link_efficiency
    moved = exchange.to_host + exchange.from_host + times * (exchange.micro_to_host + exchange.micro_from_host)
    stored = exchange.disk + times * exchange.micro_disk
    ranks = min(len(cluster.gpus), place.devices)
    return Links(
        communication=_communication(exchange, recipe, cluster, device, rates, passes_seconds),
        transfers=moved / host_speed + stored / rates.nvme_bytes_per_second,
        host_optimizer=exchange.host_optimizer_parameters * _cpu_adam_seconds(ranks, rates),
    )


def _communication(
    exchange: Exchange, recipe: Recipe, cluster: Cluster, device: Device, rates: Rates, passes_seconds: float
) -> float:
    times, devices = recipe.gradient_accumulation, recipe.parallelism.devices
    link = cluster.node_link if cluster.nodes > 1 and cluster.node_link else cluster.peer_link or device.host_link
    share = (devices - 1) / devices / (link.bytes_per_second * rates.peer_link_efficiency)
    micro = share * (exchange.micro_gathered + exchange.micro_reduced) + exchange.micro_calls * link.latency_seconds
    memory_speed = device.memory_bytes_per_second * rates.efficiency(device).memory
    beside = times * (micro + exchange.micro_copied / memory_speed)
    beside += share * (2 * exchange.reduced + exchange.scattered)
    after = share * exchange.gathered + exchange.calls * link.latency_seconds + exchange.copied / memory_speed
    exposed = max(EXPOSED_SHARE * beside, beside - HIDDEN_SHARE * passes_seconds) if exchange.overlaps else beside
    return exposed + after


def _cpu_adam_seconds(ranks: int, rates: Rates) -> float:
    """A parameter's, on one rank: alone it has all cores, else one thread, and all ranks share the host's memory."""
    if ranks == 1:
        return rates.cpu_adam_seconds_per_parameter
    return max(rates.cpu_thread_adam_seconds_per_parameter, ranks * rates.cpu_adam_seconds_per_parameter)


def hook_seconds(model: ModelSpec, recipe: Recipe, rates: Rates) -> tuple[float, float]:
    """The host's seconds in hooks, in one forward and one backward pass."""
    kind, job = recipe.parallelism.kind, job_of(model, recipe)
    gradients = job.trainable_tensors * rates.gradient_hook_seconds
    if kind in ("zero1", "zero2"):
        return 0.0, gradients
    if kind == "zero3":
        forward = module_calls(model, recipe) * rates.module_hook_seconds
        return forward, forward * (2 if recipe.gradient_checkpointing else 1) + gradients
    if kind == "fsdp2":
        units = (job.layers + (1 if job.tied else 2)) * rates.unit_hook_seconds
        return units, units
    return 0.0, 0.0


def module_calls(model: ModelSpec, recipe: Recipe) -> int:
    """Modules that one forward pass calls."""
    adapter = recipe.adapter
    names = frozenset() if adapter.trains_everything else target_names(model, adapter.targets)
    # An adapter's own layer is called beside its base, its dropout and its matrices.
    around = 2 + find_law("adapter", ADAPTERS, adapter.method).tensors() if names else 0
    calls = AROUND_BLOCKS
    for block, count in model.block_counts:
        norms = (*block.norms, *block.attention.query_key_norms)
        adapted = sum(layer.name in names for layer in block.linears)
        calls += count * (CONTAINERS + len(norms) + len(block.linears) + around * adapted)
    return calls
