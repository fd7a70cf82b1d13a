"""From --gpus and its companions to a Cluster: what is at hand, or what the user describes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from estimators.errors import NoUsableGpu
from estimators.hardware import Cluster, Host
from planner.cluster import cluster_of, hypothetical_cluster
from planner.options import find_gpus
from planner.report.paint import say

if TYPE_CHECKING:
    from runners.probe import Probe

OF_A_MACHINE = {"nodes": "--nodes", "host_memory": "--host-memory", "host_disk": "--host-disk", "link": "--link"}


def described(values: Mapping[str, Any]) -> Cluster:
    """The cluster of a --gpus that names GPUs. NVMe is taken to be there where a disk is described."""
    host = Host(memory_bytes=values["host_memory"], disk_bytes=values["host_disk"], nvme=bool(values["host_disk"]))
    return hypothetical_cluster(find_gpus(values["gpus"]), values["nodes"], host, values["link"])


def found(probe: "Probe", values: Mapping[str, Any]) -> Cluster:
    """The cluster that the probe found, as the user corrects it."""
    host = Host(memory_bytes=values["host_memory"], disk_bytes=values["host_disk"])
    return cluster_of(probe, values["nodes"], host, values["link"])


def look(quiet: bool = False) -> "Probe":
    """Asks the driver; what a person must know of it goes to stderr."""
    from runners.probe import probe

    answer = probe()
    if not quiet:
        for text in warnings(answer):
            say(f"warning: {text}")
    return answer


def warnings(probe: "Probe") -> list[str]:
    """Lost GPUs, and notes: one that all GPUs share is said once."""
    notes: dict[str, list[str]] = {}
    for gpu in probe.gpus:
        for note in gpu.notes:
            notes.setdefault(note, []).append("GPU" if gpu.index is None else f"GPU {gpu.index}")
    shared = [
        note if len(owners) == len(probe.gpus) > 1 else f"{', '.join(owners)}: {note}" for note, owners in notes.items()
    ]
    return [*probe.lost, *shared]


def any_cluster(values: Mapping[str, Any]) -> Cluster:
    """For a command that needs GPUs.

    Raises:
        NoUsableGpu: --gpus is auto and there is none.
    """
    if values["gpus"] is not None:
        return described(values)
    probe = look()
    if probe.absent:
        raise NoUsableGpu(f"no GPU here ({probe.absent}); describe one, such as --gpus 1xrtx-4090")
    return found(probe, values)
