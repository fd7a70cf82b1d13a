"""What a measured job can do beside training: live under a cap, evaluate, load a checkpoint, record the allocator."""

import gc
import gzip
import json
import os
import tempfile
from pathlib import Path

import torch


def apply_cap(case: dict) -> None:
    """Limit torch to `cap_bytes` from here on, as a smaller card would; context and libraries are not counted."""
    if cap := case.get("cap_bytes"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap / total)


def evaluation_peak(trainer: object, recipe: dict) -> dict:
    """Allocated and reserved peak of an evaluation after training, where the recipe asks for one."""
    if not recipe.get("evaluation_batch"):
        return {}
    torch.cuda.reset_peak_memory_stats()
    trainer.args.per_device_eval_batch_size = recipe["evaluation_batch"]
    trainer.evaluate(torch.utils.data.Subset(trainer.train_dataset, range(2 * recipe["evaluation_batch"])))
    torch.cuda.synchronize()
    return dict(
        evaluation_allocated_bytes=torch.cuda.max_memory_allocated(),
        evaluation_reserved_bytes=torch.cuda.max_memory_reserved(),
    )


def checkpoint_load(case: dict, config: object) -> dict:
    """Peaks while `from_pretrained` loads a checkpoint of random weights as the recipe stores them."""
    if not case.get("measure_load"):
        return {}
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    recipe = case["recipe"]
    with tempfile.TemporaryDirectory() as folder:
        with torch.device("cuda"):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        quantization = None
        if recipe["quantization"].startswith("nf4"):
            quantization = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=recipe["quantization"] == "nf4")  # fmt: skip
        elif recipe["quantization"] == "int8":
            quantization = BitsAndBytesConfig(load_in_8bit=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, recipe["weights"]), quantization_config=quantization, device_map={"": 0},
            use_safetensors=True, trust_remote_code=False)  # fmt: skip
        found = dict(
            load_allocated_bytes=torch.cuda.max_memory_allocated() - before,
            load_reserved_bytes=torch.cuda.max_memory_reserved(),
            load_rest_bytes=torch.cuda.memory_allocated() - before,
        )
        del model
    gc.collect()
    torch.cuda.empty_cache()
    return found


def start_history(case: dict) -> None:
    """Record every allocation and free from here on, where the case names a file for them."""
    if case.get("history"):
        torch.cuda.memory._record_memory_history(context=None, stacks="python", max_entries=5_000_000)


def save_history(case: dict) -> None:
    """The recorded events, compact: ["a", id, bytes], ["f", id], ["s", bytes] and ["u", bytes] for segments."""
    if not case.get("history"):
        return
    names, events = {}, []
    for entry in torch.cuda.memory._snapshot()["device_traces"][0]:
        action, address, size = entry["action"], entry["addr"], entry["size"]
        if action == "alloc":
            names[address] = len(events)
            events.append(["a", len(events), size])
        elif action == "free_completed" and address in names:
            events.append(["f", names.pop(address)])
        elif action in ("segment_alloc", "segment_free"):
            events.append(["s" if action == "segment_alloc" else "u", size])
    folder = Path(os.environ["MEASURE_HISTORY"])
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"name": case["name"], "recipe": case["recipe"], "torch": torch.__version__, "events": events})
    (folder / f"{case['name']}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
