"""A recipe made real: transformers' model with PEFT's adapters and bitsandbytes' layers, its optimizer and its loss.

The one place that constructs a model, on "meta" for the dry run and on "cuda" to train; nothing here depends on which,
beyond handing the name on. Each tool's table says how it spells our names.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import peft
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.trainer_pt_utils import get_parameter_names

from estimators.models import Config
from estimators.recipe import ALL_LINEAR, Recipe
from runners.losses import LOSSES, DeviceName, Loss
from runners.tools import DATA_TYPES, row, tool

HEADS = ("lm_head", "embed_out")  # never quantised by transformers
NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Names of tensors that the Trainer puts into a group of their own (Trainer.get_decay_parameter_names)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A job that can be stepped."""

    model: nn.Module
    parameters: tuple[nn.Parameter, ...]
    """Those to train, in the model's order."""
    make_optimizer: Callable[[], torch.optim.Optimizer]
    loss: Loss
    """(batch, number of labelled tokens) -> the loss, run as the recipe's trainer runs it, autocast and all."""


def build(recipe: Recipe, config: Config, device: DeviceName) -> Built:
    """The job that `recipe` describes, with random weights of the model `config` on `device`.

    Raises:
        BadInput: a technique of the recipe has no row in its tool's table, or the tool is not installed.
    """
    model = build_model(recipe, config, device)
    row("trainer", TRAINERS, recipe.trainer)(model, recipe)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return Built(
        model=model,
        parameters=tuple(parameter for parameter in model.parameters() if parameter.requires_grad),
        make_optimizer=lambda: make_optimizer(model, recipe),
        loss=row("loss", LOSSES, f"{recipe.trainer} {recipe.loss}")(model, recipe, device),
    )


def build_model(recipe: Recipe, config: Config, device: DeviceName) -> Any:
    """The model alone, quantised and with its adapters, as it is handed to a trainer that makes the rest itself."""
    return adapted(_base(recipe, config, device), recipe)


def adapted(model: Any, recipe: Recipe) -> Any:
    """A model that is there, made ready to be trained: a quantised base prepared, and the adapters added."""
    if recipe.quantized:
        prepare: Any = peft.prepare_model_for_kbit_training
        upcast = recipe.upcasts_kbit
        model = prepare(model, use_gradient_checkpointing=False) if upcast else model.requires_grad_(False)
    return row("PEFT", PEFT, recipe.adapter.method)(model, recipe)


ATTENTIONS = {
    "sdpa": ("sdpa", None),
    "sdpa_no_cudnn": ("sdpa", None),  # its environment tells torch the rest
    "eager": ("eager", None),
    "flash_attention_2": ("flash_attention_2", "flash_attn"),
}
"""transformers' attn_implementation, and the package that it needs."""


def attention_of(recipe: Recipe) -> str:
    """The recipe's attention, as transformers calls it.

    Raises:
        BadInput: the package of its kernels is not installed.
    """
    name, package = row("transformers", ATTENTIONS, recipe.attention)
    if package is not None:
        tool(package)
    return str(name)


def _base(recipe: Recipe, config: Config, device: DeviceName) -> Any:
    """The bare model: made where it is trained, or skeleton first and quantised layer by layer."""
    fields = dict(config.fields)
    settings = transformers.AutoConfig.for_model(str(fields.pop("model_type")), **fields)
    settings._attn_implementation = attention_of(recipe)
    settings.use_cache = False
    models: Any = transformers.AutoModelForCausalLM
    with hollow() if recipe.quantized else torch.device(device):
        model = models.from_config(settings, dtype=row("transformers", DATA_TYPES, recipe.weights))
    return _quantized(model, recipe, device) if recipe.quantized else model


def module_of(config: Config) -> ModuleType:
    """transformers' module of the model `config`."""
    kind = transformers.CONFIG_MAPPING[str(config.fields["model_type"])]
    return import_module(transformers.MODEL_FOR_CAUSAL_LM_MAPPING[kind].__module__)


@contextmanager
def hollow() -> Iterator[None]:
    """Tensors made inside are shapes to be filled later, and hold no memory on any device."""
    with torch.device("meta"):
        yield


def _quantized(model: Any, recipe: Recipe, device: DeviceName) -> Any:
    """Every linear layer but the head replaced by a quantised one, weight by weight, then the rest made real."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if is_quantized(name, layer):
                setattr(module, name, _quantized_layer(layer, recipe, device))
    _materialize(model, device)
    return mark_quantized(model, recipe)


def mark_quantized(model: Any, recipe: Recipe) -> Any:
    """What transformers says of a model that bitsandbytes quantised."""
    model.is_quantized = False  # what `from_pretrained` sets would forbid changing data types below
    setattr(model, "is_loaded_in_8bit" if recipe.quantization == "int8" else "is_loaded_in_4bit", True)
    return model


def is_quantized(name: str, layer: nn.Module) -> bool:
    """As transformers chooses (replace_with_bnb_linear): no subclass of Linear, but GPT-2's transposed layers."""
    return (isinstance(layer, Conv1D) or type(layer) is nn.Linear) and name.rsplit(".", 1)[-1] not in HEADS


def linear_shape(layer: Any) -> tuple[int, int]:
    """Inputs and outputs."""
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def _materialize(model: Any, device: DeviceName) -> None:
    """Give what the quantiser left (embeddings, norms, head, buffers) memory on `device`."""
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes"):
            continue
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                real = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                setattr(module, name, nn.Parameter(real.normal_(0, 0.02), requires_grad=False))
    for name, module in list(model.named_modules()):
        if name.endswith("rotary_emb"):  # its frequencies are computed, not loaded
            with torch.device(device):
                model.set_submodule(name, type(module)(module.config))
        elif module._buffers and not type(module).__module__.startswith("bitsandbytes"):
            _compute_buffers(model, module, device)
    model.tie_weights()


def _compute_buffers(model: Any, module: nn.Module, device: DeviceName) -> None:
    """What no checkpoint holds, like the factor of Gemma's embeddings, the family's own initialisation fills."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    model._init_weights(module)


def _four_bit(shape: dict[str, Any], recipe: Recipe) -> tuple[Any, Callable[[Tensor], Any]]:
    """bitsandbytes' 4-bit layer, and its parameter of a weight."""
    modules, double = tool("bitsandbytes.nn"), recipe.quantization == "nf4"
    new = modules.Linear4bit(
        **shape, compute_dtype=DATA_TYPES[recipe.compute], compress_statistics=double, quant_type="nf4"
    )
    settings = {"requires_grad": False, "compress_statistics": double, "quant_type": "nf4", "module": new}
    return new, lambda weight: modules.Params4bit(weight, **settings)


def _eight_bit(shape: dict[str, Any], recipe: Recipe) -> tuple[Any, Callable[[Tensor], Any]]:
    """bitsandbytes' 8-bit layer, whose weight arrives as float16."""
    modules = tool("bitsandbytes.nn")
    new = modules.Linear8bitLt(**shape, has_fp16_weights=False, threshold=6.0)
    return new, lambda weight: modules.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)


BITSANDBYTES_LAYERS: dict[str, Callable[..., tuple[Any, Callable[[Tensor], Any]]]] = {
    "nf4": _four_bit,
    "nf4-single": _four_bit,
    "int8": _eight_bit,
}


def _quantized_layer(layer: nn.Module, recipe: Recipe, device: DeviceName) -> nn.Module:
    """A quantised layer of the same shape, its random weight quantised on `device`."""
    make = row("bitsandbytes", BITSANDBYTES_LAYERS, recipe.quantization)
    inputs, outputs = linear_shape(layer)
    bias = layer.bias is not None
    with hollow():
        shape = {"input_features": inputs, "output_features": outputs, "bias": bias}
        new, parameter = make(shape, recipe)
    place: Any = {"dtype": DATA_TYPES[recipe.weights], "device": device}
    weight = torch.empty((outputs, inputs), **place).normal_(0, 0.02)
    new.weight = parameter(weight)._quantize(torch.device(device))  # as `.to(device)` does, but for meta
    if bias:
        new.bias = nn.Parameter(torch.zeros(outputs, **place), requires_grad=False)
    return new  # type: ignore[no-any-return]


def _low_rank(model: Any, recipe: Recipe) -> Any:
    adapter = recipe.adapter
    settings = peft.LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout,
        target_modules=ALL_LINEAR if adapter.targets == ALL_LINEAR else list(adapter.targets),
        use_dora=adapter.method == "dora", task_type="CAUSAL_LM",
    )  # fmt: skip
    return peft.get_peft_model(model, settings)


PEFT: dict[str, Callable[[Any, Recipe], Any]] = {
    "full": lambda model, recipe: model,
    "lora": _low_rank,
    "dora": _low_rank,
}


def _sft(model: Any, recipe: Recipe) -> None:
    """TRL's SFTTrainer: gradients through the inputs of checkpointed blocks, bfloat16 adapters on a quantised base."""
    if recipe.adapter.trains_everything:
        return
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
    for name, parameter in model.named_parameters() if recipe.quantized else ():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


TRAINERS: dict[str, Callable[[Any, Recipe], None]] = {"transformers": lambda model, recipe: None, "trl": _sft}


def _torch(name: str, **settings: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda groups, **more: getattr(torch.optim, name)(groups, **settings, **more)


def _bitsandbytes(name: str, bits: int, paged: bool = False) -> Callable[..., torch.optim.Optimizer]:
    optim = "bitsandbytes.optim"
    return lambda groups, **more: getattr(tool(optim), name)(groups, optim_bits=bits, is_paged=paged, **more)


def _adafactor(groups: Any, **more: Any) -> torch.optim.Optimizer:
    return transformers.Adafactor(groups, scale_parameter=False, relative_step=False, **more)  # type: ignore[no-untyped-call]


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw_torch": _torch("AdamW", foreach=True),  # torch's own choice on CUDA
    "adamw_torch_fused": _torch("AdamW", fused=True),
    "sgd": _torch("SGD", foreach=True),
    "adafactor": _adafactor,
    **{name: _bitsandbytes("AdamW", 8) for name in ("adamw_8bit", "adamw_bnb_8bit")},
    **{f"lion_{bits}bit": _bitsandbytes("Lion", bits) for bits in (8, 32)},
    **{f"paged_adamw_{bits}bit": _bitsandbytes("AdamW", bits, paged=True) for bits in (8, 32)},
    **{f"paged_lion_{bits}bit": _bitsandbytes("Lion", bits, paged=True) for bits in (8, 32)},
}


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer over the Trainer's two groups: what decays, and norms and biases."""
    decays = set(get_parameter_names(model, [nn.LayerNorm], list(NO_DECAY)))  # type: ignore[no-untyped-call]
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in trained if (name in decays) is decaying], "weight_decay": 0.0}
        for decaying in (True, False)
    ]
    optimizer: torch.optim.Optimizer = row("optimizer", OPTIMIZERS, recipe.optimizer)(groups, lr=recipe.learning_rate)
    if recipe.optimizer.endswith("_8bit"):
        _keep_embeddings_wide(model)
    return optimizer


def _keep_embeddings_wide(model: nn.Module) -> None:
    """The Trainer asks for float32 states of embeddings (Trainer.create_optimizer)."""
    manager = tool("bitsandbytes.optim").GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})
