"""What several GPUs and offloading add to a step: collectives, transfers, the host's optimizer, and Python's hooks.

Sources: DeepSpeed 0.19.8 runtime/zero/parameter_offload.py (four hooks around every module, whether it has weights or
not), stage_1_and_2.py (a hook on every trained tensor); torch 2.13 distributed/fsdp/_fully_shard/_fsdp_param_group.py;
torch/distributed/run.py, which sets OMP_NUM_THREADS to 1 where a node has several ranks and nobody set it.
"""

from dataclasses import dataclass

from estimators.calibration import PEER_LINK_EFFICIENCY, Rates
from estimators.hardware import Cluster, Device, Link
from estimators.memory import job_of
from estimators.model import ModelSpec
from estimators.recipe import Recipe
from estimators.strategies.axes import Exchange, Job
from estimators.techniques import ADAPTERS, PARALLELISMS, find_law
from estimators.trainable import target_names

CONTAINERS = 4
"""Modules of a block that are called and have no weights of their own: block, attention, MLP, activation."""
AROUND_BLOCKS = 6
"""Model, its base, embedding, rotary embedding, final norm, head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Seconds of one step that nothing hides."""

    communication: float = 0.0
    transfers: float = 0.0
    host_optimizer: float = 0.0


def link_seconds(
    model: ModelSpec, recipe: Recipe, cluster: Cluster, device: Device, rates: Rates, passes: tuple[float, float]
) -> Links:
    """What collectives, host transfers and the optimizer on the CPU add on a cluster that the job uses all of.

    `passes` are the seconds of one forward and one backward pass.
    """
    place, times = recipe.parallelism, recipe.gradient_accumulation
    if place.kind == "none":
        return Links()
    job = job_of(model, recipe)
    exchange = find_law("parallelism", PARALLELISMS, place.kind).exchange(job)
    host_speed = device.host_link.bytes_per_second * rates.host_link_efficiency
    moved = exchange.to_host + exchange.from_host + times * (exchange.micro_to_host + exchange.micro_from_host)
    stored = exchange.disk + times * exchange.micro_disk
    ranks = min(len(cluster.gpus), place.devices)
    return Links(
        communication=_communication(exchange, job, times, cluster, device, rates, passes),
        transfers=moved / host_speed + stored / rates.nvme_bytes_per_second,
        host_optimizer=exchange.host_optimizer_parameters * _cpu_adam_seconds(ranks, cluster.host.cpu_cores, rates),
    )


def _communication(
    exchange: Exchange,
    job: Job,
    times: int,
    cluster: Cluster,
    device: Device,
    rates: Rates,
    passes: tuple[float, float],
) -> float:
    """A step's collectives, less what runs beside the passes: of each micro-batch, and of the last backward pass."""
    link = _slowest_link(cluster, device)
    share = (job.devices - 1) / job.devices / (link.bytes_per_second * _reached(link, rates))
    memory_speed = device.memory_bytes_per_second * rates.efficiency(device).memory
    micro = share * (exchange.micro_gathered + exchange.micro_reduced) + exchange.micro_calls * link.latency_seconds
    micro += exchange.micro_copied / memory_speed
    once = share * (2 * exchange.reduced + exchange.scattered)
    after = share * exchange.gathered + exchange.calls * link.latency_seconds + exchange.copied / memory_speed
    if not exchange.overlaps:
        return times * micro + once + after
    forward, backward = passes
    first, last = _unhidden(job)
    # What a micro-batch gathers and reduces takes its part of the last backward pass, too.
    left = backward * max(0.0, 1 - micro / (forward + backward))
    return times * max(first * micro, micro - forward - backward) + max(last * once, once - left) + after


def _slowest_link(cluster: Cluster, device: Device) -> Link:
    """What a ring through all GPUs is as fast as: the link in a node, or the one between nodes."""
    peers = cluster.peer_link or device.host_link
    between = cluster.node_link if cluster.nodes > 1 else None
    return min(peers, between or peers, key=lambda link: link.bytes_per_second)


def _reached(link: Link, rates: Rates) -> float:
    """The share of a link's data sheet that collectives reach. What was measured of one link says nothing of another:
    there the default holds, turned as this machine's runs have turned the measured one's since."""
    measured = rates.measured_link
    if measured is None or measured.bytes_per_second == link.bytes_per_second:
        return rates.peer_link_efficiency
    return min(1.0, PEER_LINK_EFFICIENCY * rates.peer_link_efficiency / measured.efficiency)


def _unhidden(job: Job) -> tuple[float, float]:
    """Of a micro-batch's collectives, and of a step's, the shares beside which no pass runs.

    The embedding is gathered before anything is computed, and its gradient comes last of all. DDP reduces it with what
    is in the same bucket, and no less than a bucket. Sources: torch's c10d reducer, from memory (a bucket
    goes out when its last gradient is there; tensors are dealt out in reverse order), _fsdp_param_group.py (a unit is
    gathered on a stream of its own while the one in front of it runs; the first has none in front).
    """
    embedding = job.embedding_parameters - (0 if job.tied else job.head_parameters)
    whole = sum(group.parameters for group in (*job.trained, *job.frozen))
    bucket = (job.buckets.ddp_mib << 20) // job.trainable_bytes_each
    last = max(0 if job.adapter else embedding, bucket)
    return embedding / max(1, whole), min(1.0, last / max(1, job.trainable_parameters))


def _cpu_adam_seconds(ranks: int, cores: int | None, rates: Rates) -> float:
    """A parameter's, on one rank. All ranks share the host's memory. Our launcher deals out the cores that it sees; of
    a machine whose cores nobody told, one rank has enough of them, and each of several has torchrun's one thread."""
    threads = max(cores // ranks, 1) if cores else None if ranks == 1 else 1
    alone = rates.cpu_thread_adam_seconds_per_parameter / threads if threads else 0.0
    return max(alone, ranks * rates.cpu_adam_seconds_per_parameter)


def host_share(recipe: Recipe, rates: Rates) -> float:
    """How many times as long the host takes to issue what a rank of this job computes as that of a job alone."""
    return rates.shared_host if recipe.parallelism.devices > 1 else 1.0


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
    law = find_law("adapter", ADAPTERS, adapter.method)
    calls = AROUND_BLOCKS
    for block, count in model.block_counts:
        norms = (*block.norms, *block.attention.query_key_norms)
        # An adapter's own layer is called beside its base, its dropout and its matrices.
        adapters = sum(2 + len(law.shapes(layer, adapter.rank)) for layer in block.linears if layer.name in names)
        calls += count * (CONTAINERS + len(norms) + len(block.linears) + adapters)
    return calls
