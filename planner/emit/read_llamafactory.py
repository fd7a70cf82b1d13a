"""LLaMA-Factory's YAML as a recipe, with its own defaults (llamafactory 0.9.5)."""

from estimators.errors import BadInput
from estimators.recipe import Adapter, Recipe
from estimators.techniques import OPTIMIZERS
from planner.emit.read_trl import targets_of
from planner.emit.read_usual import ARGUMENTS, ARGUMENTS_TOLD, MODULES_TO_SAVE, evaluation, strategy_says
from planner.emit.reading import Fields, Setting, known
from planner.options import LARGEST_SEED

NAME = "llamafactory"
SIGNS = ("finetuning_type", "stage", "cutoff_len", "lora_rank", "lora_target", "quantization_bit", "template")
HARMLESS = (
    *ARGUMENTS, "dataset", "dataset_dir", "media_dir", "template", "overwrite_cache", "preprocessing_num_workers",
    "preprocessing_batch_size", "plot_loss", "max_samples", "val_size", "eval_dataset", "gradient_checkpointing",
    "include_effective_tokens_per_second", "stage", "use_rslora", "mask_history", "train_on_prompt", "seed_data",
    "streaming", "buffer_size", "mix_strategy", "interleave_probs", "tokenized_path", "tool_format", "default_system",
    "enable_thinking", "preserve_thinking", "ignore_pad_token_for_loss", "model_revision", "cache_dir",
    "use_fast_tokenizer", "split_special_tokens", "low_cpu_mem_usage", "use_swanlab", "swanlab_project",
    "swanlab_run_name", "swanlab_workspace", "swanlab_mode", "swanlab_logdir", "pissa_init", "pissa_iter",
    "pissa_convert", "loraplus_lr_ratio", "loraplus_lr_embedding", "disable_shuffling", "early_stopping_steps",
    "print_param_status", "use_kv_cache", "infer_backend", "infer_dtype", "rope_scaling", "create_new_adapter",
    "eval_on_each_dataset", "data_shared_file_system", "image_max_pixels", "image_min_pixels", "video_max_pixels",
    "video_min_pixels", "video_fps", "video_maxlen", "ray_run_name", "ray_num_workers", "resources_per_worker",
)  # fmt: skip
"""Keys without a say in the memory or the speed of a step, or read elsewhere. What YAML says of
gradient_checkpointing is not heard: disable_gradient_checkpointing is."""
ANOTHER_OPTIMIZER = "is another optimizer"
REFUSED = {
    "additional_target": MODULES_TO_SAVE,
    "resize_vocab": "adds embeddings and head to what is trained beside an adapter",
    "add_tokens": "adds embeddings and head to what is trained beside an adapter",
    "add_special_tokens": "adds embeddings and head to what is trained beside an adapter",
    "use_galore": ANOTHER_OPTIMIZER,
    "use_apollo": ANOTHER_OPTIMIZER,
    "use_badam": ANOTHER_OPTIMIZER,
    "use_adam_mini": ANOTHER_OPTIMIZER,
    "use_muon": ANOTHER_OPTIMIZER,
    "use_llama_pro": "trains some of the layers alone",
    "mixture_of_depths": "is another model",
    "use_asft_loss": "keeps a second model beside the first",
    "use_kt": "keeps experts in host memory",
    "use_mca": "is Megatron's own training",
    "fp8": "computes in 8 bits",
    "predict_with_generate": "generates texts where it evaluates",
}
TOLD = ARGUMENTS_TOLD | {
    "use_unsloth": "priced as the layers of transformers and PEFT, which take more memory and time",
    "use_unsloth_gc": "priced as gradient checkpointing on the GPU, which takes more memory and less time",
    "shift_attn": "priced as full attention",
    "use_dft_loss": "priced as the plain loss",
    "use_eaft_loss": "priced as the plain loss",
    "compute_accuracy": "priced without, which takes less memory where it is evaluated",
    "upcast_layernorm": "priced without: norms, and what they give on, take more memory in float32",
    "upcast_lmhead_output": "priced without: the loss makes its own float32 copy of logits",
    "adapter_name_or_path": "the rank of the adapter in that folder counts; priced is the one that the file names",
}
ATTENTIONS = {"auto": "sdpa", "sdpa": "sdpa", "disabled": "eager", "fa2": "flash_attention_2"}


def read(fields: Fields, setting: Setting) -> Recipe:
    """
    Raises:
        BadInput: a key is wrong, or names what is not priced here.
    """
    if fields.left.get("stage", "sft") != "sft":
        raise BadInput(f"{fields.where}: only the stage sft is priced here")
    fields.refuse(REFUSED)
    adapter = _adapter(fields, setting)
    weights, compute = _types(fields, setting, adapter)
    attention, neat = _attention(fields, setting), fields.flag("neat_packing", False)
    recipe = Recipe(
        model=setting.model.name,
        adapter=adapter,
        quantization=_quantization(fields),
        weights=weights,
        compute=compute,
        optimizer=known(NAME, "the optimizer", OPTIMIZERS, fields.text("optim", "adamw_torch_fused")),
        gradient_checkpointing=_checkpointing(fields, setting),
        attention=attention,
        loss="liger" if fields.flag("enable_liger_kernel", False) else "plain",
        micro_batch=fields.whole("per_device_train_batch_size", 8, 1, 65_536),
        gradient_accumulation=fields.whole("gradient_accumulation_steps", 1, 1, 1 << 20),
        sequence_length=fields.length("cutoff_len", 2048, NAME),
        packing=fields.flag("packing", False) or neat,
        padded=neat and attention != "flash_attention_2",  # it keeps rows apart by a mask
        parallelism=setting.place,
        kbit_upcast=False,
        evaluation_batch=evaluation(fields, "per_device_eval_batch_size", 8, evaluates=_evaluates(fields)),
        learning_rate=fields.number("learning_rate", 5e-5),
        seed=fields.whole("seed", 42, high=LARGEST_SEED),
        expandable_segments=_expandable(fields, setting),
    )
    fields.tell(TOLD)
    return recipe


def _types(fields: Fields, setting: Setting, adapter: Adapter) -> tuple[str, str]:
    """Of the weights and of autocast. It loads in the checkpoint's own type and casts what is trained to float32."""
    pure = fields.flag("pure_bf16", False)
    half = fields.flag("bf16", False) or pure
    compute = "float16" if fields.flag("fp16", False) else "bfloat16" if half else "float32"
    if adapter.trains_everything and not pure and not setting.place.kind.startswith("zero"):
        return "float32", compute
    if compute == "float32":
        fields.assumed.append(f"neither bf16 nor fp16 is on: the base, in the checkpoint's own 16 bits, is priced as "
                              f"under {'bf16' if setting.half == 'bfloat16' else 'fp16'}")  # fmt: skip
        return setting.half, setting.half
    return compute, compute


def _checkpointing(fields: Fields, setting: Setting) -> bool:
    """On unless it is switched off, and re-entrant but under FSDP's second version."""
    on = not fields.flag("disable_gradient_checkpointing", False)
    if fields.flag("use_reentrant_gc", True) and on and setting.place.kind != "fsdp2":
        fields.assumed.append("re-entrant checkpointing is priced as the other kind (use_reentrant_gc: false)")
    return on


def _attention(fields: Fields, setting: Setting) -> str:
    if setting.model.model_type == "gemma2" and fields.left.get("flash_attn", "auto") == "auto":
        fields.assumed.append("Gemma 2 without flash_attn: eager attention, as it is where flash-attn is not installed")
        fields.take("flash_attn")
        return "eager"
    return fields.one_of("flash_attn", ATTENTIONS, "auto")


def _evaluates(fields: Fields) -> bool:
    """While it trains, or once when it has."""
    now_and_then, asked = strategy_says(fields), fields.flag("do_eval", False)
    return now_and_then or asked


def _expandable(fields: Fields, setting: Setting) -> bool:
    """Its launcher asks torch for them where it starts torchrun: for several GPUs, and for DeepSpeed, which needs it
    (launcher.py; OPTIM_TORCH)."""
    kind = setting.place.kind
    torchrun = setting.place.devices > 1 or kind.startswith("zero")
    if not torchrun or setting.by_accelerate or kind == "fsdp2":  # which it has from accelerate
        return False
    fields.assumed.append("expandable_segments, which llamafactory-cli asks torch for where it starts torchrun "
                          "(OPTIM_TORCH=0 leaves it out)")  # fmt: skip
    return True


def _adapter(fields: Fields, setting: Setting) -> Adapter:
    kind = fields.one_of("finetuning_type", {"lora": "lora", "full": "full"}, "lora")
    rank = fields.whole("lora_rank", 8, 1, 65_536)
    alpha, dropout = fields.whole("lora_alpha", 2 * rank, 1, 1 << 20), fields.number("lora_dropout", 0.0)
    fields.left.setdefault("lora_target", "all")
    targets = targets_of(fields, "lora_target", "all", setting)
    dora = fields.flag("use_dora", False)
    if kind == "full":
        return Adapter(method="full")
    return Adapter(method="dora" if dora else "lora", rank=rank, alpha=alpha, dropout=dropout, targets=targets)


def _quantization(fields: Fields) -> str:
    nested, kind = fields.flag("double_quantization", True), fields.text("quantization_type", "nf4")
    bits, method = fields.whole("quantization_bit", 0), fields.text("quantization_method", "bnb")
    if bits and method not in ("bnb", "bitsandbytes"):
        raise BadInput(f"{fields.where}: quantization_method {method[:20]!a} is not priced here (bnb is)")
    if kind != "nf4" or bits not in (0, 4, 8):
        raise BadInput(f"{fields.where}: quantization_bit {bits} of the type {kind[:20]!a} is not priced here")
    return {0: "none", 4: "nf4" if nested else "nf4-single", 8: "int8"}[bits]
