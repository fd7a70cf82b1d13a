"""Run by benchmarks/validate_emit.py inside LLaMA-Factory's environment after a job: the rows that its reader makes."""

import os
import sys
from pathlib import Path

import yaml
from as_in_a_trial import main

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513"}
os.environ |= {"LLAMAFACTORY_VERBOSITY": "ERROR"}


def rows(folder: Path) -> list[dict[str, list[int]]]:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    os.chdir(folder)
    settings = yaml.safe_load((folder / "llamafactory.yaml").read_text()) | {"output_dir": "elsewhere"}
    model, data, training, _, _ = get_train_args(settings)
    loaded = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data)
    found = get_dataset(template, model, data, training, stage="sft", **loaded)
    return list(found["train_dataset"])


if __name__ == "__main__":
    here = Path(sys.argv[1])
    sys.exit(main("llamafactory", here, rows(here)))
