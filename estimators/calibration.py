"""What was learned from measured runs: how near to its data sheet a GPU comes, what its host needs to issue a kernel,
and how far off the formulas are.

The defaults come from the runs in profiles/measurements (benchmarks/accuracy.py prints how well they hold); a machine's
own measurements replace them.
"""

from dataclasses import dataclass, field

from estimators.hardware import Device
from estimators.traced_rates import Kernels, TracedRates


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What a step's kernels reach of the data sheet."""

    matmul: float
    attention: float
    memory: float
    """Of elementwise kernels, which read and write somewhat more than the tensors that the walk counts."""


HOPPER = Efficiency(matmul=0.635, attention=0.46, memory=0.585)
"""cuBLAS on the shapes of a step, under a power cap: 8192³ alone reaches 0.80 on an H200. Measured on H200 and H100."""
ELSEWHERE = Efficiency(matmul=0.65, attention=0.70, memory=0.95)
"""Not measured by us, and one set for all: matrix products reach what they reach on Hopper; FlashAttention 2 reaches up
to 73 % of an A100's peak (arXiv 2307.08691); slower memory behind a cache of 40 to 96 MB, which holds much of what one
elementwise kernel leaves to the next, is kept busier. Chosen among such values by the published rows on A100 and L40S
(benchmarks/published.py prints what a fit without each source makes of it)."""


PEER_LINK_EFFICIENCY = 0.70
"""What collectives reach of a link that was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLink:
    """A link between GPUs, by its data sheet, and what was measured of it."""

    bytes_per_second: float
    efficiency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Shares of the data sheet, and seconds of the host: one set of the latter for all hosts until one is measured."""

    hopper: Efficiency = HOPPER
    elsewhere: Efficiency = ELSEWHERE
    kernel_seconds: float = 6e-6
    """The least that one kernel takes on the GPU, its tail and the gap to the next included."""
    forward_dispatch_seconds: float = 46.6e-6
    """The host's time for one operation of the forward pass: module calls, views, autograd's bookkeeping, the
    launch."""
    backward_dispatch_seconds: float = 14.7e-6
    """The same in the backward pass, which C++ runs."""
    adapter_call_seconds: float = 20e-6
    """PEFT's layer around an adapted one: Python beside its operations."""
    nf4_call_seconds: float = 160e-6
    """A 4-bit product of bitsandbytes."""
    int8_call_seconds: float = 870e-6
    """An 8-bit product of bitsandbytes, which looks for outlier columns and waits for the answer."""
    expert_call_seconds: float = 5.6e-6
    """One expert of a mixture: transformers runs them in a Python loop."""
    backward_call_share: float = 0.31
    """What such a call costs in the backward pass, as a share of the forward's."""
    step_overhead_seconds: float = 4.7e-3
    """Per optimizer step: data loading, collation, gradient norm, the Trainer's own Python."""
    tensor_dispatch_seconds: float = 22.5e-6
    """Per trainable tensor and step: optimizer and gradient clipping walk the list in Python."""
    bitsandbytes_update_flops: float = 2030.0
    """Float32 operations' worth of time for one parameter in bitsandbytes' optimizer kernels."""
    host_link_efficiency: float = 0.80
    peer_link_efficiency: float = PEER_LINK_EFFICIENCY
    measured_link: MeasuredLink | None = None
    """The one link that peer_link_efficiency is of, where a device profile says so; None: any."""
    cpu_adam_seconds_per_parameter: float = 0.28e-9
    """DeepSpeed's CPUAdam and the casts around it on all cores of a server, bound by host memory."""
    cpu_thread_adam_seconds_per_parameter: float = 2.4e-9
    """The same on one thread, which is what torchrun gives each of several ranks (it sets OMP_NUM_THREADS=1)."""
    gradient_hook_seconds: float = 0.32e-3
    """DeepSpeed's Python for one trained tensor in a backward pass: into the bucket, reduced, its part kept."""
    module_hook_seconds: float = 0.34e-3
    """ZeRO-3's Python around one call of one module: fetch, prefetch and release, also of modules without weights."""
    unit_hook_seconds: float = 0.5e-3
    """FSDP 2's Python around one pass of one unit: gather, copy out, reshard, reduce."""
    shared_host: float = 1.15
    """How many times as long a host takes to issue where several ranks share it, and the slowest of them counts: one
    job took 116 ms alone and 142 ms as one of two, part of which are DDP's own hooks. Hooks were measured with it."""
    dtensor_seconds: float = 0.17e-3
    """Dispatch of one trained DTensor in clipping and optimizer step."""
    nvme_bytes_per_second: float = 3.0e9
    """A data-centre drive's sequential rate; not measured."""
    traced: TracedRates = field(default_factory=TracedRates)
    """What a dry run's operators take."""

    def efficiency(self, device: Device) -> Efficiency:
        """What kernels reach on a device: Hopper's share on data-centre cards from there on, the other's before."""
        return self.hopper if _of_hopper_or_later(device) else self.elsewhere

    def kernels(self, device: Device) -> Kernels:
        """The same of the kernels that a dry run tells apart."""
        return self.traced.hopper if _of_hopper_or_later(device) else self.traced.elsewhere


def _of_hopper_or_later(device: Device) -> bool:
    """Data-centre cards; consumer Blackwell is 12.0."""
    return (9, 0) <= device.compute_capability < (12, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBars:
    """Factors on an estimate that held 95 of 100 measured runs, from `benchmarks/accuracy.py`."""

    allocated: tuple[float, float] = (0.98, 1.025)
    reserved: tuple[float, float] = (0.942, 1.10)
    traced_allocated: tuple[float, float] = (0.997, 1.003)
    """Of a dry run: 123 runs on one GPU, 36 of them held out, are within 0.1 %, and what they reserve, 117 of them,
    within 1.25 %."""
    traced_reserved: tuple[float, float] = (0.9875, 1.0125)
    unseen_traced: tuple[float, float] = (0.97, 1.03)
    """On a kind of card that was not measured other kernels may be chosen; not checked."""
    step_seconds: tuple[float, float] = (0.70, 1.45)
    unseen_step_seconds: tuple[float, float] = (0.45, 1.55)
    """On a card, and so on a host, that was not measured: published steps of small batches took half as long."""
    traced_step_seconds: tuple[float, float] = (0.76, 1.30)
    """Of a dry run: 138 of 145 runs, the constants being fitted to 64 of them. Most of it is what hosts differ by."""
    unseen_traced_step_seconds: tuple[float, float] = (0.45, 1.55)
    """The formula's: what is not known is the host."""
    host: tuple[float, float] = (0.85, 1.20)
    """The offloaded runs are within 3 %; data loaders and tokenised data, which nothing here knows, are not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Rates and error bars together."""

    rates: Rates = field(default_factory=Rates)
    error_bars: ErrorBars = field(default_factory=ErrorBars)
    outside_more_bytes: int = 0
    """What a process of this machine takes beside torch's allocator, beyond what the laws say."""
    seen_devices: tuple[str, ...] = ("h200-sxm", "h100-sxm")
    """Catalogue names of the GPUs that were measured."""


DEFAULT = Calibration()
