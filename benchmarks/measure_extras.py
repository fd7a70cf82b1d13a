"""What a measured job can do beside training: live under a cap, evaluate, load a checkpoint, record the allocator."""

import gc
import gzip
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from estimators.models import Config
from estimators.recipe import Adapter, Recipe
from runners.build import build_model


def check_environment(recipe: Recipe) -> None:
    """Refuse to measure what is not asked for: whether segments expand is settled before torch is imported."""
    expandable = any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
    if expandable != recipe.expandable_segments:
        raise RuntimeError(f"expandable_segments is {expandable} in this process")


def apply_cap(case: dict) -> None:
    """Limit torch to `cap_bytes` from here on, as a smaller card would; context and libraries are not counted."""
    if cap := case.get("cap_bytes"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap / total)


def evaluation_peak(trainer: object, recipe: Recipe) -> dict:
    """Allocated and reserved peak of an evaluation after training, where the recipe asks for one."""
    if not recipe.evaluation_batch:
        return {}
    torch.cuda.reset_peak_memory_stats()
    trainer.args.per_device_eval_batch_size = recipe.evaluation_batch
    trainer.evaluate(torch.utils.data.Subset(trainer.train_dataset, range(2 * recipe.evaluation_batch)))
    torch.cuda.synchronize()
    return dict(
        evaluation_allocated_bytes=torch.cuda.max_memory_allocated(),
        evaluation_reserved_bytes=torch.cuda.max_memory_reserved(),
    )


def checkpoint_load(case: dict, recipe: Recipe, config: Config) -> dict:
    """Peaks while `from_pretrained` loads a checkpoint of random weights as the recipe stores them."""
    if not case.get("measure_load"):
        return {}
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    stored = replace(recipe, adapter=Adapter(method="full"), quantization="none", weights="bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        build_model(stored, config, "cuda").save_pretrained(folder)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        quantization = None
        if recipe.quantization.startswith("nf4"):
            quantization = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=recipe.quantization == "nf4")  # fmt: skip
        elif recipe.quantization == "int8":
            quantization = BitsAndBytesConfig(load_in_8bit=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, recipe.weights), quantization_config=quantization, device_map={"": 0},
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
    """Record every allocation and free from here on, where the case asks for them."""
    if case.get("history"):
        torch.cuda.memory._record_memory_history(context=None, stacks="python", max_entries=5_000_000)


def mark_loaded(case: dict) -> None:
    """Remember where in the history the steps begin."""
    if case.get("history"):
        case["entries_at_load"] = len(torch.cuda.memory._snapshot()["device_traces"][0])


SEGMENTS = {"segment_alloc": "s", "segment_free": "u", "segment_map": "m", "segment_unmap": "n"}


def save_history(case: dict) -> None:
    """The recorded events, compact, and the index of the first one after loading.

    ["a", id, bytes] and ["f", id] are tensors, with a stream at the end where it is not the default one; ["s", bytes]
    and ["u", bytes] segments made and given back, ["m", bytes] and ["n", bytes] pages mapped and unmapped. `addresses`
    are those of all events but "f", in units of 512 bytes from the lowest: equal blocks are taken by address.
    """
    if not case.get("history"):
        return
    names, events, addresses, loaded_at, seen = {}, [], [], 0, 0
    for index, entry in enumerate(torch.cuda.memory._snapshot()["device_traces"][0]):
        if index == case["entries_at_load"]:
            loaded_at = len(events)
        action, address, size = entry["action"], entry["addr"], entry["size"]
        stream = [entry["stream"]] if entry.get("stream") else []
        if action == "alloc":
            names[address] = len(events)
            events.append(["a", len(events), size, *stream])
        elif action == "free_completed" and address in names:
            events.append(["f", names.pop(address), *stream])
        elif action in SEGMENTS:
            events.append([SEGMENTS[action], size, *stream])
        if events and len(events) > seen and events[-1][0] != "f":
            addresses.append(address)
        seen = len(events)
    folder = Path(os.environ["MEASURE_HISTORY"])
    folder.mkdir(parents=True, exist_ok=True)
    document = {"name": case["name"], "recipe": case["recipe"], "torch": torch.__version__, "loaded_at": loaded_at}
    lowest = min(addresses, default=0)
    document["addresses"] = [(address - lowest) // 512 for address in addresses]
    text = json.dumps(document | {"events": events})
    (folder / f"{case['name']}.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
