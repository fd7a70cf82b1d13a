"""What the readers share: keys without a say in memory or speed, and words for attention that are priced as another."""

from planner.emit.arguments import ATTENTIONS
from planner.emit.reading import Fields, known

ARGUMENTS = (
    "output_dir", "overwrite_output_dir", "do_train", "num_train_epochs", "max_steps", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "logging_dir", "logging_first_step", "logging_strategy", "logging_steps", "log_level",
    "log_level_replica", "log_on_each_node", "logging_nan_inf_filter", "save_strategy", "save_steps",
    "save_total_limit", "save_only_model", "save_safetensors", "save_on_each_node", "eval_steps", "eval_delay",
    "eval_on_start", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "report_to", "run_name",
    "project", "trackio_space_id", "disable_tqdm", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo",
    "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "ddp_timeout", "ddp_find_unused_parameters",
    "ddp_broadcast_buffers", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "dataloader_drop_last", "remove_unused_columns", "label_names", "group_by_length",
    "train_sampling_strategy", "data_seed", "full_determinism", "local_rank", "include_num_input_tokens_seen",
    "include_tokens_per_second", "average_tokens_across_devices", "gradient_checkpointing_kwargs", "deepspeed", "fsdp",
    "fsdp_config", "trust_remote_code", "neftune_noise_alpha", "tf32", "skip_memory_metrics", "prediction_loss_only",
    "eval_accumulation_steps",
)  # fmt: skip
"""Of transformers' TrainingArguments, for the tools whose files hold them: read elsewhere, or of no weight."""
ARGUMENTS_TOLD = {
    "torch_compile": "priced as not compiled",
    "auto_find_batch_size": "priced with the batch that the file names, which the trainer may make smaller",
    "torch_empty_cache_steps": "priced without emptying the cache between steps, which costs time",
    "label_smoothing_factor": "priced without; it may take more memory for the loss",
}
LIKE_ANOTHER = {
    "xformers": "sdpa",
    "flash_attention_3": "flash_attention_2",
    "flash_attention_4": "flash_attention_2",
    "flash_attention_torch": "flash_attention_2",
    "kernels-community/flash-attn": "flash_attention_2",
    "kernels-community/flash-attn2": "flash_attention_2",
    "kernels-community/flash-attn3": "flash_attention_2",
    "kernels-community/vllm-flash-attn3": "flash_attention_2",
}
"""What keeps for the backward pass the same as another implementation does: inputs, output, and a number a row."""
MODULES_TO_SAVE = "trains whole layers beside the adapter"


def near_attention(tool: str, fields: Fields, said: str) -> str:
    """
    Raises:
        BadInput: there is no law for it here.
    """
    name = said.partition("@")[0].partition(":")[0]
    if name in LIKE_ANOTHER:
        fields.assumed.append(f"the attention {name} is priced as {LIKE_ANOTHER[name]}")
    return known(tool, "the attention", ATTENTIONS.values(), LIKE_ANOTHER.get(name, said))


def evaluation(fields: Fields, key: str, default: int, *, evaluates: bool) -> int | None:
    """How many rows are evaluated at a time, where anything is."""
    given = fields.left.get(key) is not None
    batch = fields.whole(key, default, 1, 65_536)
    if evaluates and not given and default > 1:
        fields.assumed.append(f"{batch} rows are evaluated at a time, the tool's default: {key} is not there")
    return batch if evaluates else None


def strategy_says(fields: Fields, name: str = "eval_strategy") -> bool:
    """YAML 1.1 reads the word no as false."""
    return fields.take(name, "no") not in ("no", False)
