"""torch's scaled_dot_product_attention with cuDNN's kernel put last, so that FlashAttention's goes first on every card.

On Hopper and data-centre Blackwell torch 2.10 and later take cuDNN's kernel first, which builds a plan for each new
width of a batch: 0.15 to 0.19 s a width on an H200 (LOG.md, 2026-11-22), about 1 s on a B200 (modelscope/FunASR issue
3704). Rows of many lengths meet a new width at nearly every step, until all were met. The environment variable
TORCH_CUDNN_SDPA_DEPRIORITIZED puts it last (torch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). Its memory is
the fused kernel's; with a mask the memory-efficient kernel takes its place. Both are slower than cuDNN's, which long
rows feel.
"""

from dataclasses import dataclass

from estimators.hardware import Device
from estimators.recipe import Recipe
from estimators.strategies.attention.sdpa import FusedAttention

NAME = "sdpa_no_cudnn"
CUDNN_FIRST = (9, 10)
"""Major compute capabilities on which torch takes cuDNN's kernel first."""
CAUSAL, MASKED = 0.57, 0.41
"""What FlashAttention's kernel reaches of cuDNN's rate, and with a mask the memory-efficient one: medians of forward
and backward passes of 2,048 to 8,192 tokens, heads of 64 and 128, on an H200 (0.50 to 0.64, and 0.37 to 0.49)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutCudnn(FusedAttention):
    """The fused kernels without cuDNN's."""

    name: str = NAME


def prefers_cudnn(device: Device) -> bool:
    return device.compute_capability[0] in CUDNN_FIRST


def speed_without_cudnn(recipe: Recipe, device: Device) -> float:
    """The rate of the recipe's attention as a share of what a device's attention reaches. cuDNN's takes no float32."""
    if recipe.attention != NAME or recipe.compute == "float32" or not prefers_cudnn(device):
        return 1.0
    return MASKED if recipe.padded else CAUSAL
