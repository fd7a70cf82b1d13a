"""The machine: a kind of GPU, one GPU of it, the host around it, and the cluster they form."""

from dataclasses import dataclass, field
from typing import Literal

Confidence = Literal["verified", "derived", "memory"]
"""verified: seen in a log or agreeing with a stored table; derived: from a rule that is named; memory: to be
checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection that bytes cross: PCIe to the host, NVLink or PCIe to a peer, a network to another node."""

    name: str
    bytes_per_second: float
    """One direction."""
    latency_seconds: float = 10e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One kind of GPU, as its data sheet and its driver describe it. Rates are dense, with float32 accumulation."""

    name: str
    """The catalogue's name, such as "rtx-4090"; what people type resolves to it."""
    title: str
    """The name that NVML and people print, such as "NVIDIA GeForce RTX 4090"."""
    total_bytes: int
    """NVML's total, not the marketing figure."""
    usable_bytes: int
    """What CUDA can hand out on an idle card: the total less the driver's share."""
    memory_bytes_per_second: float
    float16_flops_per_second: float
    bfloat16_flops_per_second: float | None
    """None below compute capability 8.0."""
    float8_flops_per_second: float | None
    float32_flops_per_second: float
    """Outside the tensor cores: what torch uses for float32 products by default."""
    compute_capability: tuple[int, int]
    multiprocessors: int
    host_link: Link
    peer_link: Link | None
    """NVLink where the card has it; None means that peers are reached through the host link."""
    nvlink_bridged_cards: int = 0
    """How many equal cards an NVLink bridge joins; 0 where switches or fixed links join all, or there is no NVLink."""
    power_watts: float
    data_centre: bool
    unified_memory: bool = False
    confidence: Confidence
    sources: dict[str, str] = field(hash=False)
    """Where each figure comes from, by field name."""

    @property
    def supports_bfloat16(self) -> bool:
        return self.compute_capability >= (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on a GPU. A container sees other processes' bytes as None."""

    pid: int
    used_bytes: int | None
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU that a job may use: of a known kind, with what is free on it now.

    Fields that a driver did not answer are None; hypothetical GPUs have only a device.
    """

    device: Device
    total_bytes: int
    free_bytes: int | None = None
    """None for a hypothetical GPU: it is idle."""
    used_bytes: int | None = None
    reserved_bytes: int | None = None
    index: int | None = None
    """NVML's index; CUDA's ordinal may differ, so identity is the UUID."""
    uuid: str | None = None
    processes: tuple[GpuProcess, ...] = ()
    mig_parent_uuid: str | None = None
    driver_version: str | None = None
    power_limit_watts: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    nvlink_peers: tuple[str, ...] = ()
    """UUIDs (or PCI bus ids where the UUID is unknown) of GPUs that NVLink reaches."""
    ecc_enabled: bool | None = None
    retired_pages: int | None = None
    throttle_reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a person must know about this GPU: a co-tenant, an unknown kind, a figure the driver withheld."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine around the GPUs, as its cgroup allows it. None: unknown."""

    memory_bytes: int | None = None
    """Available now, the smaller of the kernel's figure and the cgroup's."""
    disk_bytes: int | None = None
    cpu_cores: int | None = None
    nvme: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a job runs on: the GPUs of one node, how many such nodes, and what links them."""

    gpus: tuple[Gpu, ...]
    nodes: int = 1
    host: Host = field(default_factory=Host)
    peer_link: Link | None = None
    """Between GPUs of a node; None: through the host."""
    node_link: Link | None = None
    hypothetical: bool = False
    described_link: Link | None = None
    """The link that the user gave, wherever it was put."""

    @property
    def size(self) -> int:
        return len(self.gpus) * self.nodes
