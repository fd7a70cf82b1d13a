"""torch's scaled_dot_product_attention with cuDNN's kernel put last, so that FlashAttention's goes first on every card.

On Hopper and data-centre Blackwell torch 2.10 and later take cuDNN's kernel first, which builds a plan for each new
width of a batch: 0.15 to 0.19 s a width on an H200 (LOG.md, 2026-11-22), about 1 s on a B200 (modelscope/FunASR issue
3704). Rows of many lengths meet a new width at nearly every step, until all were met. The environment variable
TORCH_CUDNN_SDPA_DEPRIORITIZED puts it last (torch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). Its memory is
the fused kernel's; with a mask the memory-efficient kernel takes its place.
"""

from dataclasses import dataclass

from estimators.strategies.attention.sdpa import FusedAttention

NAME = "sdpa_no_cudnn"
CUDNN_FIRST = (9, 10)
"""Major compute capabilities on which torch takes cuDNN's kernel first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutCudnn(FusedAttention):
    """The fused kernels without cuDNN's."""

    name: str = NAME
