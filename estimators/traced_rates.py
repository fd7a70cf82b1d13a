"""How long what a dry run counts takes: what kernels reach of the data sheet, and what the host needs for each call.

Fitted to the runs of profiles/measurements/h200_facts and h200_single by benchmarks/fit_rates.py, which prints them
anew with their errors; attention was timed (profiles/calibrations/h200.json) and not fitted. No constant was fitted to
the other files, but their errors were looked at while it was chosen what to tell apart and how far a constant may move:
they are no blind test. Where a step waits for the host, the same job took up to a quarter more or less on another host
of the same kind: those constants are no better than that.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Shares of the data sheet's rates that a kind of kernel reaches."""

    matmul: float
    """Products in 16 bits, of their dense rate."""
    float32: float
    """Products in float32, of that rate without tensor cores."""
    attention: float
    uneven_attention: float
    """Over heads of neither 64, 128 nor 256: 80 and 96 were timed."""
    memory: float
    """Elementwise kernels, and products with a short side: adapters."""
    dequantize: float
    """bitsandbytes' 4-bit weights, read and written out in 16 bits before each product."""
    int8: float
    """bitsandbytes' 8-bit products, of twice the 16-bit rate."""
    update: float
    """Optimizers: long lists of large tensors, nothing else between them."""


HOPPER = Kernels(
    matmul=0.62, float32=0.68, attention=0.39, uneven_attention=0.29, memory=0.78, dequantize=0.58, int8=0.61,
    update=0.845,
)  # fmt: skip
ELSEWHERE = Kernels(
    matmul=0.72, float32=0.75, attention=0.70, uneven_attention=0.70, memory=1.0, dequantize=0.50, int8=0.60,
    update=0.85,
)  # fmt: skip
"""Not measured by us. Kernels of attention are FlashAttention 2's, made for all heads (up to 73 % of an A100's peak,
arXiv 2307.08691). Elementwise kernels come to the data sheet's rate: memory is slower than a Hopper's, and caches of 40
to 96 MB, as is inferred, hold much of what one leaves to the next. Matrix products, attention and memory were chosen by
the published rows on A100 and L40S; chosen without one source, that source's median error is 7 to 16 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRates:
    """Kernels by family of card, and seconds of the host by call: one set of the latter until a host is measured."""

    hopper: Kernels = HOPPER
    elsewhere: Kernels = ELSEWHERE
    kernel_seconds: float = 3e-6
    """Start, tail and gap of a kernel, on the GPU."""
    operator_seconds: float = 32e-6
    """The host's time for an operator of the forward pass: Python around it, autograd's bookkeeping, the launch."""
    view_seconds: float = 3e-6
    """The same for one that only makes a view."""
    module_seconds: float = 10e-6
    """A module's call beside the operators in it."""
    adapter_seconds: float = 27e-6
    """More for one of PEFT's, which looks up its adapters and casts what it is given."""
    nf4_seconds: float = 108e-6
    """More for a 4-bit layer of bitsandbytes."""
    int8_seconds: float = 320e-6
    """More for an 8-bit one, which looks for outlier columns. That it waits for the answer, so that nothing runs ahead,
    is inferred from its steps."""
    backward_operator_seconds: float = 17e-6
    """An operator of the backward pass, which C++ runs."""
    backward_view_seconds: float = 2e-6
    backward_quantized_seconds: float = 53e-6
    """More for the backward pass of a layer of bitsandbytes, which is Python."""
    saved_seconds: float = 20e-6
    """A tensor that checkpointing keeps: Python's hooks when it is packed, packed again, and unpacked."""
    bitsandbytes_update_flops: float = 1500.0
    """Float32 operations' worth of time for one parameter in bitsandbytes' optimizer kernels."""
    step_seconds: float = 4.6e-3
    """Per optimizer step: the Trainer's own Python, collation, the first wait."""
