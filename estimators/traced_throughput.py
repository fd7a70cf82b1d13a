"""Step time from a dry run: what its operators take on the GPU against what the host takes to issue them.

The host runs ahead of the GPU, so a micro-batch ends when both are done: the GPU computes the backward pass after the
forward one, and neither is over before the host has issued it. The Trainer looks at each loss, and so the host waits
at the end of each micro-batch. What several GPUs and offloading add is the formula's (estimators/links.py).
"""

from dataclasses import dataclass

from estimators.calibration import Rates
from estimators.hardware import Cluster, Device
from estimators.links import hook_seconds, host_share, link_seconds
from estimators.model import ModelSpec
from estimators.recipe import Recipe
from estimators.strategies.attention.sdpa_no_cudnn import speed_without_cudnn
from estimators.throughput import matmul_flops_per_second, slowest, update_of
from estimators.traced_rates import Kernels, TracedRates
from estimators.work import HOST_ONLY, Class, Work

AHEAD = ("forward", "recomputation")
"""Phases that Python runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What kernels reach on a device."""

    matmul: float
    float32: float
    attention: float
    uneven_attention: float
    int8: float
    memory: float
    dequantize: float
    update: float
    kernel_seconds: float


def speed_of(device: Device, recipe: Recipe, rates: TracedRates, kernels: Kernels) -> Speed:
    """Flops and bytes a second."""
    peak, memory = matmul_flops_per_second(device, recipe.compute), device.memory_bytes_per_second
    attention = peak * speed_without_cudnn(recipe, device)
    return Speed(
        matmul=peak * kernels.matmul,
        float32=device.float32_flops_per_second * kernels.float32,
        attention=attention * kernels.attention,
        uneven_attention=attention * kernels.uneven_attention,
        int8=2 * peak * kernels.int8,
        memory=memory * kernels.memory,
        dequantize=memory * kernels.dequantize,
        update=memory * kernels.update,
        kernel_seconds=rates.kernel_seconds,
    )


def gpu_seconds(work: Work, phase: str, speed: Speed) -> dict[str, float]:
    """What the GPU computes in a phase, by cause."""
    return {
        "matrix products": _products(work, phase, speed),
        "attention": sum(
            work.of(phase, kind).flops / rate + work.of(phase, kind).calls * speed.kernel_seconds
            for kind, rate in _attentions(speed)
        ),
        "elementwise": _moved(work, phase, "elementwise", speed.memory, speed),
        "dequantisation": _moved(work, phase, "nf4", speed.dequantize, speed),
    }


def _attentions(speed: Speed) -> tuple[tuple[Class, float], ...]:
    return ("attention", speed.attention), ("uneven attention", speed.uneven_attention)


def _products(work: Work, phase: str, speed: Speed) -> float:
    half, single = work.of(phase, "matmul"), work.of(phase, "float32")
    eight = work.of(phase, "int8")
    return (
        (half.flops + work.of(phase, "nf4").flops) / speed.matmul
        + single.flops / speed.float32
        + eight.flops / speed.int8
        + eight.size_bytes / speed.memory
        + (half.calls + single.calls + work.of(phase, "nf4").calls) * speed.kernel_seconds
        + _moved(work, phase, "narrow", speed.memory, speed)
    )


def _moved(work: Work, phase: str, kind: Class, bytes_per_second: float, speed: Speed) -> float:
    load = work.of(phase, kind)
    return load.size_bytes / bytes_per_second + load.calls * speed.kernel_seconds


def host_seconds(work: Work, phase: str, rates: TracedRates, quantization: str) -> float:
    """What the host needs to issue a phase's operators."""
    operators = sum(load.calls for (when, kind), load in work.loads.items() if when == phase and kind not in HOST_ONLY)
    views = work.of(phase, "view").calls
    if phase not in AHEAD:
        layers = work.of("forward", "quantized").calls * rates.backward_quantized_seconds
        return operators * rates.backward_operator_seconds + views * rates.backward_view_seconds + layers
    return (
        operators * rates.operator_seconds
        + views * rates.view_seconds
        + work.of(phase, "module").calls * rates.module_seconds
        + work.of(phase, "adapter").calls * rates.adapter_seconds
        + work.of(phase, "quantized").calls * (rates.int8_seconds if quantization == "int8" else rates.nf4_seconds)
        + work.of(phase, "saved").calls * rates.saved_seconds
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """Seconds of all forward and backward passes of a step."""

    forward: float
    backward: float


def _passes(work: Work, recipe: Recipe, gpu: dict[str, float], rates: Rates, hooks: tuple[float, float]) -> _Passes:
    """How long the passes last. `hooks` are the host's seconds in DeepSpeed's and FSDP's, of all micro-batches."""
    ahead, back, again = (
        host_share(recipe, rates) * host_seconds(work, phase, rates.traced, recipe.quantization)
        for phase in ("forward", "backward", "recomputation")
    )
    ahead, back = ahead + hooks[0], back + hooks[1]
    if recipe.quantization == "int8":  # what it waits for keeps host and GPU from working at once
        forward = gpu["forward"] + ahead
        return _Passes(forward=forward, backward=max(gpu["backward"], back) + gpu["recomputation"] + again)
    forward = max(gpu["forward"], ahead)
    total = max(forward + gpu["backward"] + gpu["recomputation"], ahead + back + again)
    return _Passes(forward=forward, backward=total - forward)


def traced_step_seconds(
    work: Work, model: ModelSpec, recipe: Recipe, cluster: Cluster, rates: Rates
) -> dict[str, float]:
    """Seconds of one optimizer step by cause (throughput.CAUSES); their sum is the step. `work` is what one GPU does,
    the job uses all of `cluster`."""
    device, traced = slowest(cluster, recipe), rates.traced
    speed = speed_of(device, recipe, traced, rates.kernels(device))
    by_phase = {phase: gpu_seconds(work, phase, speed) for phase in ("forward", "recomputation", "backward")}
    gpu = {phase: sum(causes.values()) for phase, causes in by_phase.items()}
    times = recipe.gradient_accumulation
    ahead, back = hook_seconds(model, recipe, rates)
    passes = _passes(work, recipe, gpu, rates, (times * ahead, times * back))
    links = link_seconds(model, recipe, cluster, device, rates, (passes.forward / times, passes.backward / times))
    causes = {cause: sum(phase[cause] for phase in by_phase.values()) for cause in by_phase["forward"]}
    return {
        **causes,
        "optimizer": _update_seconds(work, model, recipe, device, rates, speed) + links.host_optimizer,
        "communication": links.communication,
        "host transfers": links.transfers,
        "waiting for the CPU": passes.forward + passes.backward - sum(gpu.values()) + traced.step_seconds,
    }


def _update_seconds(work: Work, model: ModelSpec, recipe: Recipe, device: Device, rates: Rates, speed: Speed) -> float:
    """Clipping and the optimizer's step; bitsandbytes waits for each tensor's update before it issues the next."""
    update, traced = update_of(model, recipe, rates), rates.traced
    updating = update.traffic_bytes / speed.update
    if update.searched:  # its kernels stand still in a dry run
        flops = traced.bitsandbytes_update_flops * update.searched
        return update.issuing_seconds + updating + flops / device.float32_flops_per_second
    operators = work.of("optimizer", "optimizer").calls * traced.backward_operator_seconds
    return max(update.walking_seconds + operators, updating)
