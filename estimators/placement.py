"""Which GPUs of a cluster a job runs on, and what joins them.

A process can use one MIG instance only, and instances are no peers of each other (NVIDIA's MIG user guide), so a job on
several GPUs runs on whole ones. An NVLink bridge joins two cards of one kind, or four; switches and fixed links on a
board join all of its GPUs.
"""

from collections.abc import Sequence
from dataclasses import replace

from estimators.hardware import Cluster, Gpu, Link


def used_cluster(cluster: Cluster, devices: int) -> Cluster:
    """The part of `cluster` that a job of `devices` ranks uses: within one node where one has so many GPUs, else as
    many nodes as hold them; all there are where they are too few."""
    able = whole_gpus(cluster) if devices > 1 else cluster.gpus
    gpus = _roomiest(able, devices) if able else _roomiest(cluster.gpus, 1)
    nodes = min(cluster.nodes, -(-devices // len(gpus)))
    if (gpus, nodes) == (cluster.gpus, cluster.nodes):
        return cluster
    described = cluster.described_link if cluster.nodes == 1 else None
    peers = cluster.peer_link if gpus == cluster.gpus else described or peer_link(gpus, cluster.hypothetical)
    return replace(cluster, gpus=gpus, nodes=nodes, peer_link=peers, node_link=cluster.node_link if nodes > 1 else None)


def whole_gpus(cluster: Cluster) -> tuple[Gpu, ...]:
    """The GPUs of a node that a job on several can use: all but MIG instances."""
    return tuple(gpu for gpu in cluster.gpus if gpu.mig_parent_uuid is None)


def peer_link(gpus: Sequence[Gpu], hypothetical: bool) -> Link | None:
    """The NVLink that joins these GPUs of a node: only equal cards, no more than a bridge joins, and on a live machine
    only where the driver sees a ring of links through them. None where there is none."""
    device = gpus[0].device
    bridged = device.nvlink_bridged_cards
    if any(gpu.device.name != device.name for gpu in gpus) or (bridged and len(gpus) > bridged):
        return None
    return device.peer_link if hypothetical or _ring(gpus) else None


def _roomiest(gpus: tuple[Gpu, ...], count: int) -> tuple[Gpu, ...]:
    """The `count` GPUs with the most room, in their own order."""
    if count >= len(gpus):
        return gpus
    order = sorted(range(len(gpus)), key=lambda at: (-_room(gpus[at]), at))[:count]
    return tuple(gpus[at] for at in sorted(order))


def _room(gpu: Gpu) -> int:
    return gpu.device.usable_bytes if gpu.free_bytes is None else gpu.free_bytes


def _ring(gpus: Sequence[Gpu]) -> bool:
    """Whether each of the GPUs reaches two others (one, where there are two), and all of them hang together."""
    peers = {gpu.uuid: {other.uuid for other in gpus if other.uuid in gpu.nvlink_peers} for gpu in gpus}
    reached, waiting = set[str | None](), [gpus[0].uuid]
    while waiting:
        uuid = waiting.pop()
        if uuid not in reached:
            reached.add(uuid)
            waiting += peers[uuid]
    return len(reached) == len(gpus) and all(len(seen) >= min(2, len(gpus) - 1) for seen in peers.values())
