"""The cluster that a plan is made for: what the probe found, or what the user describes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from estimators.errors import NoUsableGpu
from estimators.hardware import Cluster, Device, Gpu, Host, Link
from estimators.placement import peer_link

if TYPE_CHECKING:
    from runners.probe import Probe

NODE_LINK = Link(name="100 Gb/s network", bytes_per_second=12.5e9, latency_seconds=30e-6)
"""Taken between nodes where --link says nothing."""


def hypothetical_cluster(devices: Sequence[Device], nodes: int, host: Host, link: Link | None) -> Cluster:
    """Idle GPUs of the given kinds, one Device per GPU of a node; `link` is between GPUs, or between nodes."""
    gpus = tuple(Gpu(device=device, total_bytes=device.total_bytes) for device in devices)
    return _linked(gpus, nodes, host, link, hypothetical=True)


def cluster_of(probe: "Probe", nodes: int, host: Host, link: Link | None) -> Cluster:
    """The GPUs that the probe found; what `host` says overrides what was found of the host.

    Raises:
        NoUsableGpu: the probe found no GPU.
    """
    if not probe.gpus:
        raise NoUsableGpu("no GPU can be used" + (f": {'; '.join(probe.lost)}" if probe.lost else ""))
    found = probe.host
    merged = replace(
        found,
        memory_bytes=host.memory_bytes or found.memory_bytes,
        disk_bytes=host.disk_bytes or found.disk_bytes,
    )
    return _linked(probe.gpus, nodes, merged, link, hypothetical=False)


def _linked(gpus: tuple[Gpu, ...], nodes: int, host: Host, link: Link | None, *, hypothetical: bool) -> Cluster:
    return Cluster(
        gpus=gpus,
        nodes=nodes,
        host=host,
        peer_link=link if link and nodes == 1 else peer_link(gpus, hypothetical),
        node_link=(link or NODE_LINK) if nodes > 1 else None,
        hypothetical=hypothetical,
        described_link=link,
    )
