"""axolotl's YAML as a recipe, with its own defaults (axolotl 0.19)."""

from collections.abc import Mapping

from estimators.errors import BadInput
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from estimators.strategies.loss.liger import PATCHED
from estimators.techniques import OPTIMIZERS
from estimators.units import format_bytes
from planner.emit.read_trl import targets_of
from planner.emit.read_usual import ARGUMENTS, ARGUMENTS_TOLD, MODULES_TO_SAVE, near_attention, strategy_says
from planner.emit.reading import Fields, Setting, is_on, known
from planner.options import LARGEST_SEED

NAME = "axolotl"
SIGNS = (
    "base_model",
    "sequence_len",
    "micro_batch_size",
    "sample_packing",
    "adapter",
    "num_epochs",
    "lora_target_linear",
)
HARMLESS = (
    *ARGUMENTS, "datasets", "dataset_prepared_path", "num_epochs", "lr_scheduler", "saves_per_epoch", "special_tokens",
    "pad_to_sequence_len", "wandb_project", "wandb_entity", "wandb_name", "wandb_watch", "wandb_log_model",
    "wandb_run_id", "wandb_mode", "use_wandb", "use_mlflow", "use_tensorboard", "chat_template", "chat_template_jinja",
    "train_on_inputs", "fsdp_version", "strict", "tokenizer_type", "tokenizer_config", "tokenizer_use_fast",
    "tokenizer_legacy", "model_type", "model_revision", "revision_of_model", "liger_layer_norm", "liger_rms_norm_gated",
    "seed_data", "debug", "loss_watchdog_threshold", "loss_watchdog_patience", "early_stopping_patience",
    "auto_resume_from_checkpoints", "peft_use_rslora", "tokens", "lora_fan_in_fan_out", "lora_on_cpu",
    "low_cpu_mem_usage", "eval_sample_packing", "save_first_step", "dataset_processes", "dataset_num_proc",
    "dataset_shard_num", "dataset_keep_in_memory", "shuffle_merged_datasets", "sample_packing_bin_size",
    "sample_packing_group_size", "sample_packing_sequentially", "sample_packing_eff_est", "excess_length_strategy",
    "hub_revision", "hf_use_auth_token", "default_system_message", "eot_tokens", "is_llama_derived_model",
    "is_mistral_derived_model", "is_qwen_derived_model", "is_falcon_derived_model", "embeddings_skip_upcast",
    "loraplus_lr_ratio", "loraplus_lr_embedding", "curriculum_sampling", "include_tkps",
    "eval_table_size", "eval_max_new_tokens", "cosine_min_lr_ratio", "cosine_constant_lr_ratio", "embedding_lr",
    "embedding_lr_scale",
)  # fmt: skip
"""Keys without a say in the memory or the speed of a step, or read elsewhere."""
REFUSED = {
    "rl": "is another training than supervised fine-tuning",
    "reward_model": "is another training than supervised fine-tuning",
    "process_reward_model": "is another training than supervised fine-tuning",
    "tensor_parallel_size": "splits every layer over GPUs",
    "context_parallel_size": "splits every sequence over GPUs",
    "sequence_parallel_degree": "splits every sequence over GPUs",
    "expert_parallel_size": "splits the experts over GPUs",
    "dp_replicate_size": "shards in groups of GPUs",
    "lora_modules_to_save": MODULES_TO_SAVE,
    "lora_target_parameters": "adapts parameters that are no layers",
    "peft_layers_to_transform": "adapts some of the layers alone",
    "unfrozen_parameters": "trains a part of the weights",
    "lisa_n_layers": "trains some of the layers at a time",
    "relora": "merges the adapter and begins again",
    "qat": "trains as if quantised",
    "gptq": "is another quantisation",
    "quantize_moe_experts": "quantises experts as they are loaded",
}
TOLD = ARGUMENTS_TOLD | {
    "chunked_cross_entropy": "priced as the plain loss, which takes more memory",
    "liger_cross_entropy": "priced as the plain loss, which takes more memory",
    "activation_offloading": "priced as gradient checkpointing on the GPU, which mostly takes more memory",
    "tiled_mlp": "priced without, which takes more memory for long sequences",
    "lora_model_dir": "the rank of the adapter in that folder counts; priced is the one that the file names",
}
ATTENTION_FLAGS = {
    "xformers_attention": "xformers", "sage_attention": "sage", "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager",
}  # fmt: skip
"""Its older words for attn_implementation, the first that is set counting (LEGACY_ATTN_FLAG_TO_IMPL)."""
KEEPS_FLOAT32 = ("sdpa", "eager")
"""Under which the weights of norms, embeddings and head stay as they were cast (ATTN_IMPLS_WITHOUT_DTYPE_CAST)."""
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
LAYER_KERNELS = ("liger_rms_norm", "liger_glu_activation")


def read(fields: Fields, setting: Setting) -> Recipe:
    """
    Raises:
        BadInput: a key is wrong, or names what is not priced here.
    """
    fields.refuse(REFUSED)
    method = fields.text("adapter", "full")
    quantized = _quantization(fields)
    if method not in ("full", "lora", "qlora") or (method == "qlora") != quantized.startswith("nf4"):
        raise BadInput(f"{fields.where}: adapter {method[:20]!a} with the base {quantized} is not priced here")
    compute = _compute(fields, setting)
    checkpointing, cuts = _checkpointing(fields), _cuts(fields)
    micro_batch = fields.whole("micro_batch_size", 1, 1, 65_536)
    fields.assumed.append(
        "expandable_segments, which the command axolotl asks torch for unless PYTORCH_ALLOC_CONF is set"
    )
    recipe = Recipe(
        model=setting.model.name,
        adapter=_adapter(fields, setting, method, quantized),
        quantization=quantized,
        weights=compute,
        compute=compute,
        optimizer=known(NAME, "the optimizer", OPTIMIZERS, fields.text("optimizer", "adamw_torch_fused")),
        gradient_checkpointing=checkpointing,
        attention=_attention(fields),
        loss=_loss(fields, setting, cuts=cuts, checkpointing=checkpointing or setting.fsdp_checkpoints),
        micro_batch=micro_batch,
        gradient_accumulation=fields.whole("gradient_accumulation_steps", 1, 1, 1 << 20),
        sequence_length=fields.length("sequence_len", 512, NAME),
        packing=fields.flag("sample_packing", False),
        parallelism=setting.place,
        kbit_upcast=False,  # it casts back what PEFT's preparation upcast (_configure_embedding_dtypes)
        evaluation_batch=_evaluation(fields, micro_batch, cuts=cuts),
        learning_rate=fields.number("learning_rate", 2e-4),
        seed=fields.whole("seed", 42, high=LARGEST_SEED),
        expandable_segments=True,
    )
    fields.tell(TOLD)
    if not cuts:  # for which all is cast back
        _tell_float32(fields, setting, recipe)
    return recipe


def _compute(fields: Fields, setting: Setting) -> str:
    """The type of the weights and of autocast (resolve_dtype of its utils/config)."""
    half, single = fields.take("bf16", "auto"), fields.take("fp16")
    if half not in ("auto", True, False, "true", "false"):
        raise fields.wrong("bf16", "auto, true or false", half)
    if fields.flag("bfloat16", False) or half in (True, "true"):
        return "bfloat16"
    if half == "auto":
        if is_on(single):
            return "float16"
        return "bfloat16" if setting.half == "bfloat16" else "float16" if single is None else "float32"
    return "float16" if single in (True, "true") else "float32"


def _checkpointing(fields: Fields) -> bool:
    value = fields.take("gradient_checkpointing", False)
    if value in ("offload", "offload_disk"):
        fields.assumed.append(f"gradient_checkpointing {value}: {TOLD['activation_offloading']}")
        return True
    fields.left["gradient_checkpointing"] = value
    on = fields.flag("gradient_checkpointing", False)
    kwargs = fields.table("gradient_checkpointing_kwargs")
    if on and kwargs.get("use_reentrant", not kwargs):
        fields.assumed.append("re-entrant checkpointing is priced as the other kind (use_reentrant: false)")
    return on


def _attention(fields: Fields) -> str:
    flags = [name for word, name in ATTENTION_FLAGS.items() if fields.flag(word, False)]
    return near_attention(NAME, fields, fields.text("attn_implementation", flags[0] if flags else "sdpa"))


def _cuts(fields: Fields) -> bool:
    """Whether Apple's loss is on, as it is by itself where its plugin is."""
    asked = fields.take("cut_cross_entropy", True) in (True, "true")
    return asked and "cut_cross_entropy" in str(fields.left.get("plugins", ""))


def _loss(fields: Fields, setting: Setting, *, cuts: bool, checkpointing: bool) -> str:
    """Its kernels are plugins': without the plugin a key is not heard."""
    plugins = str(fields.take("plugins", "")).lower()
    fused = fields.flag("liger_fused_linear_cross_entropy", False) and "liger" in plugins
    fields.take("liger_rope")
    older = fields.take("liger_swiglu")  # of liger_glu_activation
    layers = [name for name in LAYER_KERNELS if is_on(fields.take(name, older if "glu" in name else None))]
    if not (fused or cuts):
        if layers and "liger" in plugins:
            fields.assumed.append(f"{', '.join(layers)}: priced without, which takes more memory")
        return "plain"
    name = "liger_fused_linear_cross_entropy" if fused else "cut_cross_entropy"
    if setting.model.model_type not in PATCHED or (len(layers) < len(LAYER_KERNELS) and not checkpointing):
        fields.assumed.append(f"{name} is priced as the plain loss, which takes more memory")
        return "plain"
    if cuts or len(layers) < len(LAYER_KERNELS):
        fields.assumed.append(f"{name} is priced as Liger's loss with its kernels for layers: neither keeps logits")
    return "liger"


def _quantization(fields: Fields) -> str:
    options = fields.table("bnb_config_kwargs")
    if options.get("bnb_4bit_quant_type", "nf4") != "nf4":
        raise BadInput(f"{fields.where}: bnb_4bit_quant_type other than nf4 is not priced here")
    nested = options.get("bnb_4bit_use_double_quant", True)
    four, eight = fields.flag("load_in_4bit", False), fields.flag("load_in_8bit", False)
    if four:
        return "nf4" if nested else "nf4-single"
    return "int8" if eight else "none"


def _adapter(fields: Fields, setting: Setting, method: str, quantized: str) -> Adapter:
    rank, alpha = fields.whole("lora_r", 0, 0, 65_536), fields.whole("lora_alpha", 0, 0, 1 << 20)
    dropout, everywhere = fields.number("lora_dropout", 0.0), fields.flag("lora_target_linear", False)
    named = fields.left.get("lora_target_modules")
    targets = targets_of(fields, "lora_target_modules", ALL_LINEAR, setting)
    dora = fields.flag("peft_use_dora", False)
    kernels = {name: fields.take(name) for name in KERNELS}
    if method == "full":
        return Adapter(method="full")
    said = {"lora_r": rank, "lora_alpha": alpha, "lora_target_linear or lora_target_modules": everywhere or named}
    if missing := [name for name, value in said.items() if not value]:
        raise fields.missing(missing)
    _tell_kernels(fields, kernels, quantized)
    chosen = ALL_LINEAR if everywhere else targets
    return Adapter(method="dora" if dora else "lora", rank=rank, alpha=alpha, dropout=dropout, targets=chosen)


def _tell_kernels(fields: Fields, kernels: Mapping[str, object], quantized: str) -> None:
    """It switches its own on where the file says nothing of any (check_auto_enable_lora_kernels)."""
    if all(value is None for value in kernels.values()):
        if quantized != "int8" and not is_on(fields.left.get("trust_remote_code")):
            fields.assumed.append("axolotl's kernels for LoRA, which it switches on by itself, are priced as PEFT's "
                                  "own layers (lora_mlp_kernel: false keeps those)")  # fmt: skip
    elif on := [name for name, value in kernels.items() if value in (True, "true")]:
        fields.assumed.append(f"{', '.join(on)} priced as PEFT's own layers")


def _evaluation(fields: Fields, micro_batch: int, *, cuts: bool) -> int | None:
    """How many rows at a time, where there is something to evaluate on and a time to do it."""
    batch = fields.whole("eval_batch_size", micro_batch, 1, 65_536)
    rows = is_on(fields.take("test_datasets")) or fields.number("val_set_size", 0.0) > 0
    times = [fields.take(name) not in (None, 0, False) for name in ("evals_per_epoch", "eval_steps")]
    strategies = [strategy_says(fields, name) for name in ("eval_strategy", "evaluation_strategy")]
    evaluates = rows and any((*times, *strategies))
    if evaluates and cuts:  # as many rows as are trained then take less than training does
        fields.assumed.append(
            f"evaluation in batches of {batch} is not priced: cut_cross_entropy keeps no logits there"
        )
        return None
    return batch if evaluates else None


def _tell_float32(fields: Fields, setting: Setting, recipe: Recipe) -> None:
    """It loads embeddings, head and norms in float32 and casts them back for an adapter, FSDP or flash attention."""
    alone = recipe.parallelism.kind in ("none", "ddp")
    if not (recipe.adapter.trains_everything and alone and recipe.attention in KEEPS_FLOAT32):
        return
    if recipe.weights == "float32":
        return
    weights = setting.model.embedding_parameters + setting.model.head_parameters
    states = 4 if recipe.optimizer.startswith("adamw_torch") else 0
    more = format_bytes(weights * (4 + states))  # two bytes more of each weight, and of each thing as large
    fields.assumed.append(
        f"embeddings and head stay in float32 with the attention {recipe.attention}, not with flash_attention_2: about "
        f"{more} more than is priced here"
    )
