"""Saving, as Trainer.save_model does it after training: the libraries' own code, which writes no weights here.

Weights go to the host tensor by tensor (safetensors), so that a GPU holds nothing more: as measured on a LoRA, whose
peak while it was saved was what it held at rest. What the libraries copy before that is seen like everything else: full
fine-tuning of a mixture of experts saves each expert as a tensor of its own, all of them at once.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

import peft
from torch import Tensor, nn
from transformers import modeling_utils
from transformers.utils import logging

from runners.dry.replacing import Replacement, replaced


def save(model: nn.Module) -> None:
    """Do what saving a trained model or its adapters does, except for what it does to the disk."""
    saved: Any = model
    with ExitStack() as stack, TemporaryDirectory() as folder:
        for replacement in _nothing_written():
            stack.enter_context(replaced(*replacement))
        saved.save_pretrained(folder)


def _nothing_written() -> Iterator[Replacement]:
    yield logging, "tqdm", lambda shards, **settings: shards
    for owner in (modeling_utils, peft.peft_model):
        yield owner, "safe_save_file", lambda tensors, path, metadata=None: None
    # Tensors on meta lie nowhere: PEFT would take them all for one, and copy them.
    yield peft.peft_model, "id_tensor_storage", _storage
    yield peft.PeftModel, "create_or_update_model_card", lambda model, folder: None


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
