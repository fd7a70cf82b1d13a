"""Step time by formula: every operation of the walk against the device's roofline, and the host that must issue it.

An operation takes the longer of its flops at the matrix rate and its bytes at the memory rate. The host issues kernels
ahead of the GPU, so a pass takes the longer of what the GPU needs and what issuing it needs: small batches wait for the
CPU. Sources: Williams et al. 2009 (roofline); arXiv 2205.05198 for recomputation.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from estimators.calibration import Rates
from estimators.hardware import Cluster, Device
from estimators.links import hook_seconds, host_share, link_seconds
from estimators.model import ModelSpec
from estimators.recipe import Recipe
from estimators.strategies.attention.sdpa_no_cudnn import speed_without_cudnn
from estimators.tape import OpClass
from estimators.techniques import OPTIMIZERS, find_law
from estimators.trainable import trainable_bytes_each, trainable_groups
from estimators.walk import Stretch, walk


@dataclass(frozen=True, slots=True)
class Pass:
    """Seconds of one pass over a stretch: what the GPU needs by class of operation, and what the host needs."""

    matmul: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    dequantize: float = 0.0
    host: float = 0.0

    @property
    def gpu(self) -> float:
        return self.matmul + self.attention + self.elementwise + self.dequantize

    def plus(self, other: "Pass", times: int = 1) -> "Pass":
        return Pass(
            self.matmul + times * other.matmul,
            self.attention + times * other.attention,
            self.elementwise + times * other.elementwise,
            self.dequantize + times * other.dequantize,
            self.host + times * other.host,
        )


def matmul_flops_per_second(device: Device, compute: str) -> float:
    """The data sheet's dense rate for products in `compute`; a card without bfloat16 emulates it in float32."""
    if compute == "float16":
        return device.float16_flops_per_second
    if compute == "bfloat16" and device.bfloat16_flops_per_second is not None:
        return device.bfloat16_flops_per_second
    return device.float32_flops_per_second


def slowest(cluster: Cluster, recipe: Recipe) -> Device:
    """The card that the others wait for."""
    return min((gpu.device for gpu in cluster.gpus), key=lambda one: matmul_flops_per_second(one, recipe.compute))


class Achieved(NamedTuple):
    """What kernels reach on a device."""

    matmul_flops_per_second: float
    attention_flops_per_second: float
    memory_bytes_per_second: float


def achieved(device: Device, recipe: Recipe, rates: Rates) -> Achieved:
    """The data sheet's rates times what kernels reach of them."""
    peak, share = matmul_flops_per_second(device, recipe.compute), rates.efficiency(device)
    attention = peak * share.attention * speed_without_cudnn(recipe, device)
    return Achieved(peak * share.matmul, attention, device.memory_bytes_per_second * share.memory)


@lru_cache(maxsize=8192)
def passes(stretch: Stretch, speed: Achieved, rates: Rates) -> tuple[Pass, Pass]:
    """Forward and backward pass of a stretch once, on a device of that speed."""
    forward, backward = _Sum(speed, rates.kernel_seconds), _Sum(speed, rates.kernel_seconds)
    for node in stretch.nodes:
        forward.add(node.kind, node.flops, node.traffic, node.launches, rates.forward_dispatch_seconds)
        if node.output.grad:
            backward.add(node.kind, node.backward_flops, node.backward_traffic, node.backward_launches,
                         rates.backward_dispatch_seconds)  # fmt: skip
    calls = sum(times * getattr(rates, f"{name}_call_seconds") for name, times in stretch.calls.items())
    forward.host += calls
    backward.host += calls * rates.backward_call_share
    return forward.total(), backward.total()


class _Sum:
    """A Pass being added up."""

    __slots__ = ("by_kind", "host", "kernel_seconds", "speed")

    def __init__(self, speed: Achieved, kernel_seconds: float) -> None:
        self.by_kind = {"matmul": 0.0, "attention": 0.0, "elementwise": 0.0, "dequantize": 0.0}
        self.host = 0.0
        self.speed = speed
        self.kernel_seconds = kernel_seconds

    def add(self, kind: OpClass, flops: float, traffic: float, launches: int, dispatch_seconds: float) -> None:
        rate = self.speed.attention_flops_per_second if kind == "attention" else self.speed.matmul_flops_per_second
        moving = traffic / self.speed.memory_bytes_per_second
        self.by_kind[kind] += max(flops / rate, moving, launches * self.kernel_seconds)
        self.host += launches * dispatch_seconds

    def total(self) -> Pass:
        kinds = self.by_kind
        return Pass(kinds["matmul"], kinds["attention"], kinds["elementwise"], kinds["dequantize"], self.host)


CAUSES = (
    "matrix products",
    "attention",
    "elementwise",
    "dequantisation",
    "optimizer",
    "communication",
    "host transfers",
    "waiting for the CPU",
)


def step_seconds(model: ModelSpec, recipe: Recipe, cluster: Cluster, rates: Rates) -> dict[str, float]:
    """Seconds of one optimizer step by cause (CAUSES); their sum is the step. The job uses all of `cluster`."""
    device = slowest(cluster, recipe)
    walked = walk(model, recipe)
    speed = achieved(device, recipe, rates)
    forward, backward = Pass(), Pass()
    for stretch in (*walked.blocks, walked.head):
        ahead, back = passes(stretch, speed, rates)
        forward = forward.plus(ahead, stretch.count)
        backward = backward.plus(back, stretch.count)
        if recipe.gradient_checkpointing and stretch is not walked.head:
            backward = backward.plus(ahead, stretch.count)
    times = recipe.gradient_accumulation
    gpu = Pass().plus(forward, times).plus(backward, times)
    ahead_hooks, back_hooks = hook_seconds(model, recipe, rates)
    shared = host_share(recipe, rates)
    lasting = (
        max(forward.gpu, shared * forward.host + ahead_hooks),
        max(backward.gpu, shared * backward.host + back_hooks),
    )
    waiting = sum(lasting) - forward.gpu - backward.gpu
    optimizer = _optimizer_seconds(model, recipe, device, rates)
    links = link_seconds(model, recipe, cluster, device, rates, lasting)
    return {
        "matrix products": gpu.matmul,
        "attention": gpu.attention,
        "elementwise": gpu.elementwise,
        "dequantisation": gpu.dequantize,
        "optimizer": optimizer + links.host_optimizer,
        "communication": links.communication,
        "host transfers": links.transfers,
        "waiting for the CPU": times * waiting + rates.step_overhead_seconds,
    }


def _optimizer_seconds(model: ModelSpec, recipe: Recipe, device: Device, rates: Rates) -> float:
    """The optimizer's own step and the clipping of gradients before it."""
    update = update_of(model, recipe, rates)
    updating = update.traffic_bytes / (device.memory_bytes_per_second * rates.efficiency(device).memory)
    updating += rates.bitsandbytes_update_flops * update.searched / device.float32_flops_per_second
    return max(update.issuing_seconds, updating)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What clipping and the optimizer's step ask of one rank's host and GPU."""

    issuing_seconds: float
    walking_seconds: float
    """Of it, what Python takes to go through the list of tensors."""
    traffic_bytes: float
    searched: float
    """Parameters of bitsandbytes' optimizers, whose kernels search and rescale per block: bound by instructions, which
    scale with float32 rate, not by memory."""


def update_of(model: ModelSpec, recipe: Recipe, rates: Rates) -> Update:
    """The optimizer's step; what the host does instead of the GPU where it is offloaded is in links."""
    groups, each = trainable_groups(model, recipe), trainable_bytes_each(recipe)
    law = find_law("optimizer", OPTIMIZERS, recipe.optimizer)
    shards = recipe.parallelism.devices if recipe.parallelism.kind.startswith(("zero", "fsdp")) else 1
    tensors = sum(group.count for group in groups)
    walking = tensors * rates.tensor_dispatch_seconds
    if recipe.parallelism.kind == "fsdp2":
        walking += tensors * rates.dtensor_seconds
    issuing = walking + law.launches(groups) * rates.tensor_dispatch_seconds
    if "optimizer" in recipe.parallelism.offload:
        return Update(issuing_seconds=issuing, walking_seconds=walking, traffic_bytes=0.0, searched=0.0)
    parameters = sum(group.parameters for group in groups)
    clipping = 3 * each * parameters
    return Update(
        issuing_seconds=issuing,
        walking_seconds=walking,
        traffic_bytes=(law.traffic_bytes(groups, each) + clipping) / shards,
        searched=parameters if law.library == "bitsandbytes" else 0.0,
    )
