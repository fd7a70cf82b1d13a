"""The model of a measured recipe: random weights on the GPU, quantised as the loader does it, with its adapters."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def quantize(model: torch.nn.Module, kind: str) -> None:
    """Replace every linear layer but the head, weight by weight, as the loader does."""
    import bitsandbytes as bnb

    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if not isinstance(layer, torch.nn.Linear) or name in ("lm_head", "embed_out"):
                continue
            weight = torch.empty(layer.out_features, layer.in_features, dtype=torch.bfloat16, device="cuda").normal_(
                0, 0.02
            )
            shape = dict(
                input_features=layer.in_features, output_features=layer.out_features, bias=layer.bias is not None
            )
            if kind == "int8":
                new = bnb.nn.Linear8bitLt(**shape, has_fp16_weights=False, threshold=6.0, device="meta")
                new.weight = bnb.nn.Int8Params(weight.half().cpu(), requires_grad=False, has_fp16_weights=False).to(
                    "cuda"
                )
            else:
                double = kind == "nf4"
                new = bnb.nn.Linear4bit(
                    **shape, compute_dtype=torch.bfloat16, compress_statistics=double, quant_type="nf4", device="meta"
                )
                parameter = bnb.nn.Params4bit(
                    weight, requires_grad=False, compress_statistics=double, quant_type="nf4", module=new
                )
                new.weight = parameter.to("cuda")
                del parameter
            del weight
            if layer.bias is not None:
                new.bias = torch.nn.Parameter(
                    torch.zeros(layer.out_features, dtype=torch.bfloat16, device="cuda"), requires_grad=False
                )
            setattr(module, name, new)


def configuration(case: dict, recipe: dict) -> object:
    fields = dict(case["config"])
    config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    config._attn_implementation, config.use_cache = recipe["attention"], False
    return config


def build(case: dict, recipe: dict) -> tuple:
    """The config and the model of a recipe, with random weights, on the GPU (on the CPU under ZeRO-3)."""
    import peft

    config = configuration(case, recipe)
    dtype, quantization = DTYPES[recipe["weights"]], recipe["quantization"]
    kind, method = recipe["parallelism"]["kind"], recipe["adapter"]["method"]
    if quantization != "none":
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        quantize(model, quantization)
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    real = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda").normal_(0, 0.02)
                    module._parameters[name] = torch.nn.Parameter(real, requires_grad=False)
        with torch.device("cuda"):
            if hasattr(model.model, "rotary_emb"):
                model.model.rotary_emb = type(model.model.rotary_emb)(config)
        model.tie_weights()
        setattr(model, "is_loaded_in_8bit" if quantization == "int8" else "is_loaded_in_4bit", True)
        model.is_quantized = False
        if recipe.get("kbit_upcast") is not False:
            model = peft.prepare_model_for_kbit_training(
                model,
                use_gradient_checkpointing=recipe["gradient_checkpointing"],
                gradient_checkpointing_kwargs={"use_reentrant": False},
            )
    else:
        torch.set_default_dtype(dtype)
        with torch.device("cpu" if kind == "zero3" else "cuda"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        torch.set_default_dtype(torch.float32)
    if method != "full":
        adapter = recipe["adapter"]
        targets = adapter["targets"] if isinstance(adapter["targets"], str) else list(adapter["targets"])
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=adapter["rank"],
                lora_alpha=adapter["alpha"],
                lora_dropout=adapter["dropout"],
                target_modules=targets,
                use_dora=method == "dora",
                task_type="CAUSAL_LM",
            ),
        )
    model.config.use_cache = False
    return config, model
