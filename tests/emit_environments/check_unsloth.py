"""Run by benchmarks/validate_emit.py with Unsloth's package unpacked, not imported: it cannot be without a GPU.

Every keyword of train_unsloth.py is one of the functions' own, as their source has them.
"""

import ast
import sys
from importlib.metadata import distribution
from itertools import takewhile
from pathlib import Path

from every_folder import main


def parameters(name: str) -> set[str]:
    """Of every FastLanguageModel function of that name in unsloth/models."""
    found: set[str] = set()
    for file in ("loader.py", "llama.py"):
        source = Path(str(distribution("unsloth").locate_file(f"unsloth/models/{file}"))).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                found |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    return found


def check(folder: Path) -> None:
    constants = {}
    script = ast.parse((folder / "train_unsloth.py").read_text()).body
    for node in takewhile(lambda node: not isinstance(node, ast.FunctionDef), script):  # the settings are at its head
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = ast.literal_eval(node.value)
    unknown = set(constants["MODEL"]) - parameters("from_pretrained")
    unknown |= set(constants["ADAPTER"]) - parameters("get_peft_model")
    assert not unknown, f"no such keywords: {sorted(unknown)}"


if __name__ == "__main__":
    sys.exit(main("unsloth", "train_unsloth.py", check))
