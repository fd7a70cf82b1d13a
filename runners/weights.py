"""The weights of a job: random ones, or those of a checkpoint, read from safetensors and never executed."""

from pathlib import Path
from typing import Any

import torch
import transformers

from estimators.errors import BadInput
from estimators.recipe import Recipe
from runners.build import adapted, attention_of, build_model
from runners.job import RANDOM, Job
from runners.losses import DeviceName
from runners.tools import DATA_TYPES


def make_model(job: Job, device: DeviceName) -> Any:
    """The model as it is handed to the trainer: quantised, with its adapters, filled.

    Raises:
        BadInput: the checkpoint has no safetensors, or does not fit the config.
    """
    if job.weights == RANDOM:
        return build_model(job.recipe, job.model_config(), device)
    check_checkpoint(Path(job.weights))
    return adapted(_load(job, device), job.recipe)


def check_checkpoint(folder: Path) -> None:
    """A folder with safetensors.

    Raises:
        BadInput: it is not one. Pickled weights are code of whoever made them.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such checkpoint folder")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    hint = f": {pickled[0]} is pickled, which can run code; convert it to safetensors" if pickled else ""
    raise BadInput(f"{folder}: has no *.safetensors{hint}")


def _load(job: Job, device: DeviceName) -> Any:
    fields = dict(job.config)
    settings = transformers.AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    models: Any = transformers.AutoModelForCausalLM
    place = None if job.recipe.parallelism.kind == "zero3" else {"": device if device == "cpu" else _card()}
    try:
        model = models.from_pretrained(
            job.weights, config=settings, dtype=DATA_TYPES[job.recipe.weights], device_map=place,
            attn_implementation=attention_of(job.recipe), quantization_config=quantization(job.recipe),
            use_safetensors=True, trust_remote_code=False, local_files_only=True,
        )  # fmt: skip
    except (ValueError, KeyError) as error:
        raise BadInput(f"{job.weights}: {str(error).splitlines()[0][:200]}") from None
    model.config.use_cache = False
    return model


def _card() -> int:
    return torch.cuda.current_device()


def quantization(recipe: Recipe) -> Any:
    """transformers' name for the recipe's quantisation; None where there is none."""
    if not recipe.quantized:
        return None
    settings: Any = transformers.BitsAndBytesConfig
    if recipe.quantization == "int8":
        return settings(load_in_8bit=True)
    return settings(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DATA_TYPES[recipe.compute],
        bnb_4bit_use_double_quant=recipe.quantization == "nf4",
    )  # fmt: skip
