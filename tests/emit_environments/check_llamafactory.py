"""Run by benchmarks/validate_emit.py inside LLaMA-Factory's environment: every folder's YAML through its own parser."""

import json
import os
import sys
import types
from pathlib import Path

from every_folder import main

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512"}
os.environ |= {"DISABLE_VERSION_CHECK": "1", "LLAMAFACTORY_VERBOSITY": "ERROR"}


def check(folder: Path) -> None:
    from llamafactory.hparams import parser
    from omegaconf import OmegaConf

    sys.modules.setdefault(
        "torchaudio", types.ModuleType("torchaudio")
    )  # the data's reader asks; its build is for CUDA
    from llamafactory.data.parser import get_dataset_list

    os.chdir(folder)
    written = OmegaConf.to_container(OmegaConf.load(folder / "llamafactory.yaml"))
    settings = {**written, "use_cpu": True}  # it wants a GPU for bf16, and its fused optimizer too
    packed = settings["packing"]
    pure = settings.pop("pure_bf16", None)
    if "deepspeed" in settings:  # its package is not in this environment
        document = json.loads((folder / settings.pop("deepspeed")).read_text())
        assert document["zero_optimization"]["stage"] in (1, 2, 3)
    if settings["enable_liger_kernel"]:
        settings["enable_liger_kernel"] = False  # the same
    model, data, training, finetuning, _ = parser.get_train_args(settings)
    assert pure in (None, True)
    for name, value in settings.items():
        owner = next(one for one in (model, data, training, finetuning) if hasattr(one, name))
        read = getattr(owner, name)
        read = getattr(read, "value", read)
        if name == "cutoff_len" and packed:
            read += 1  # what it pads a packed row with
        if name not in REWRITTEN:
            assert read == value and isinstance(read, type(value)), f"{name}: wrote {value!r}, read {read!r}"
    assert finetuning.lora_target in (["all"], ["q_proj", "v_proj"])
    (examples,) = get_dataset_list([data.dataset[0]], data.dataset_dir)
    assert examples.load_from == "file" and examples.dataset_name == "/data/examples.jsonl", examples


REWRITTEN = ("dataset", "lora_target", "report_to", "trust_remote_code", "output_dir", "do_train", "use_cpu")
"""Split into lists, or kept elsewhere."""


if __name__ == "__main__":
    sys.exit(main("llamafactory", "llamafactory.yaml", check))
