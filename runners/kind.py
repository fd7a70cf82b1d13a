"""Which Device a GPU is: the catalogue's, a MIG instance's share of it, or one derived from what NVML says."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from estimators.catalogue import pcie_link
from estimators.errors import BadInput, UnknownName
from estimators.hardware import Device, Link
from runners.nvml import Card, Driver, Instance, LostGpuError

Find = Callable[[str, int | None], Device]
"""The catalogue: a name as NVML gives it, and NVML's total to tell two sizes of one name apart."""

UNKNOWN_CARD = "unknown card: rates derived, not from the catalogue"
_RULE = (
    "derived: dense tensor rate = {factor:g} x float32 on {family} of compute capability {capability}, a lower bound"
)
_VIRTUAL = re.compile(r"(?:GRID|NVIDIA) (?P<card>.+?)(?:-\d+){1,2}[ABCQ]")
"""A virtual GPU's name ends in its profile: "NVIDIA A40-24Q", "GRID A100-2-10C"."""

_CORES = {(6, 0): 64, (6, 1): 128, (6, 2): 128, (7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
_CORES_SINCE_8_6 = 128
_MOST_WATTS = 600.0
"""What a card's power connectors carry at most: an upper bound where the driver withholds the limit."""
_NVLINK_5 = 7
"""NVML's number for it; one link carries 50 GB/s one way since then, 25 GB/s before, 20 GB/s in the first version."""


def identify(driver: Driver, card: Card, find: Find, total_bytes: int | None) -> tuple[Device, tuple[str, ...]]:
    """The kind of a whole card, and what a person must know about how it was found.

    Raises:
        LostGpuError: the card is in no catalogue and the driver withholds what a Device needs.
    """
    try:
        return find(card.name, total_bytes), ()
    except UnknownName:
        virtual = _VIRTUAL.fullmatch(card.name)
    if virtual:
        try:
            return find(virtual["card"], None), (
                "virtual GPU: it shares the card, whose rates are the most it can get",
            )
        except UnknownName:
            pass
    return _derive(_ask_facts(driver, card), card, total_bytes), (UNKNOWN_CARD,)


def share(parent: Device, instance: Instance, total_bytes: int, multiprocessors: int | None) -> Device:
    """The part of a card that one MIG instance is: rates by its multiprocessors, bandwidth by its memory."""
    memory = min(1.0, total_bytes / parent.total_bytes)
    compute = min(1.0, multiprocessors / parent.multiprocessors) if multiprocessors else memory
    title = instance.name or f"{parent.title} MIG"
    source = f"derived: {compute:.3f} of the rates and {memory:.3f} of the bandwidth of {parent.title}"
    bfloat16, float8 = parent.bfloat16_flops_per_second, parent.float8_flops_per_second
    return replace(
        parent,
        name=f"{parent.name}-mig-{title.rpartition(' MIG ')[2]}" if " MIG " in title else f"{parent.name}-mig",
        title=title,
        memory_bytes_per_second=parent.memory_bytes_per_second * memory,
        float16_flops_per_second=parent.float16_flops_per_second * compute,
        bfloat16_flops_per_second=None if bfloat16 is None else bfloat16 * compute,
        float8_flops_per_second=None if float8 is None else float8 * compute,
        float32_flops_per_second=parent.float32_flops_per_second * compute,
        multiprocessors=multiprocessors or max(1, int(parent.multiprocessors * compute)),
        peer_link=None,
        confidence="derived",
        sources={**parent.sources, "mig": source},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What NVML says about a card that no catalogue holds."""

    capability: tuple[int, int]
    cores: int
    sm_clock_hertz: float
    memory_bytes_per_second: float
    watts: float | None
    host_link: Link
    peer_link: Link | None


def _ask_facts(driver: Driver, card: Card) -> _Facts:
    """Everything that a Device needs; a fact that is missing refuses the card."""

    def need(what: str, question: str, *arguments: Any) -> Any:
        answer = driver.ask(question, card.handle, *arguments)
        if not answer:
            raise LostGpuError(f"not in the catalogue, and the driver does not tell its {what}")
        return answer

    nvml = driver.nvml
    capability = need("compute capability", "nvmlDeviceGetCudaComputeCapability")
    cores = need("number of cores", "nvmlDeviceGetNumGpuCores")
    sm_clock = need("clock", "nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)
    memory_clock = need("memory clock", "nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM)
    bus_bits = need("memory bus width", "nvmlDeviceGetMemoryBusWidth")
    milliwatts = driver.ask("nvmlDeviceGetEnforcedPowerLimit", card.handle)
    return _Facts(
        capability=capability,
        cores=cores,
        sm_clock_hertz=sm_clock * 1e6,
        memory_bytes_per_second=2 * memory_clock * 1e6 * bus_bits / 8,
        watts=milliwatts / 1e3 if milliwatts else None,
        host_link=_host_link(driver, card),
        peer_link=_peer_link(driver, card),
    )


def _host_link(driver: Driver, card: Card) -> Link:
    """PCIe as the driver reports it; where it does not, or nothing since 2012 has it, generation 3 with four lanes."""
    generation = driver.ask("nvmlDeviceGetMaxPcieLinkGeneration", card.handle)
    lanes = driver.ask("nvmlDeviceGetCurrPcieLinkWidth", card.handle)
    try:
        return pcie_link(generation or 3, lanes or 4)
    except BadInput:
        return pcie_link(3, 4)


def _peer_link(driver: Driver, card: Card) -> Link | None:
    links = range(driver.nvml.NVML_NVLINK_MAX_LINKS)
    active = [link for link in links if driver.ask("nvmlDeviceGetNvLinkState", card.handle, link) == 1]
    if not active:
        return None
    version = driver.ask("nvmlDeviceGetNvLinkVersion", card.handle, active[0]) or 1
    rate = 50e9 if version >= _NVLINK_5 else 25e9 if version > 1 else 20e9
    return Link(name=f"NVLink x{len(active)}", bytes_per_second=rate * len(active))


def _derive(facts: _Facts, card: Card, total_bytes: int | None) -> Device:
    if not total_bytes:
        raise LostGpuError("not in the catalogue, and the driver does not tell its memory")
    float32 = 2.0 * facts.cores * facts.sm_clock_hertz
    factor, family = _tensor_factor(facts.capability, card.name)
    tensor = float32 * factor
    per_multiprocessor = _CORES.get(facts.capability, _CORES_SINCE_8_6)
    return Device(
        name=re.sub(r"[^a-z0-9]+", "-", card.name.lower().removeprefix("nvidia ")).strip("-"),
        title=card.name,
        total_bytes=total_bytes,
        usable_bytes=total_bytes,
        memory_bytes_per_second=facts.memory_bytes_per_second,
        float16_flops_per_second=tensor,
        bfloat16_flops_per_second=tensor if facts.capability >= (8, 0) else None,
        float8_flops_per_second=2 * tensor if facts.capability >= (8, 9) else None,
        float32_flops_per_second=float32,
        compute_capability=facts.capability,
        multiprocessors=max(1, facts.cores // per_multiprocessor),
        host_link=facts.host_link,
        peer_link=facts.peer_link,
        power_watts=facts.watts or _MOST_WATTS,
        data_centre=family == "a data-centre card",
        confidence="derived",
        sources=_sources(factor, family, facts, per_multiprocessor),
    )


def _tensor_factor(capability: tuple[int, int], name: str) -> tuple[float, str]:
    """Dense float16 over float32 rate with float32 accumulation, and the family that the rule is for.

    2 on GeForce and 4 on professional cards since Ampere reproduce data sheets (16 on the A100's chip). The large
    data-centre chips since Hopper do at least 4, the export variants no more; older ones are taken at their least.
    """
    geforce = "GeForce" in name or "TITAN" in name.upper()
    workstation = "RTX" in name or "Quadro" in name
    family = "GeForce" if geforce else "a workstation card" if workstation else "a data-centre card"
    if capability < (7, 0):
        return 1.0, family
    if capability < (8, 0):
        has_tensor_cores = capability < (7, 5) or "RTX" in name
        return (4.0 if has_tensor_cores else 2.0), family
    if capability == (8, 0):
        return 16.0, family
    return (2.0 if geforce else 4.0), family


def _sources(factor: float, family: str, facts: _Facts, per_multiprocessor: int) -> dict[str, str]:
    rule = _RULE.format(factor=factor, family=family, capability="{}.{}".format(*facts.capability))
    return {
        "total_bytes": "NVML",
        "usable_bytes": "NVML",
        "memory_bytes_per_second": "derived: 2 x NVML's memory clock x bus width",
        "float16_flops_per_second": rule,
        "bfloat16_flops_per_second": rule,
        "float8_flops_per_second": "derived: 2 x the float16 rate from compute capability 8.9 on",
        "float32_flops_per_second": "derived: 2 x NVML's cores x its highest clock",
        "compute_capability": "NVML",
        "multiprocessors": f"derived: NVML's cores / {per_multiprocessor}",
        "host_link": "NVML's PCIe generation and width, 3.0 x4 where it withholds them",
        "peer_link": "NVML's active NVLinks",
        "power_watts": "NVML" if facts.watts else f"assumed: the most that a card draws, {_MOST_WATTS:g} W",
    }
