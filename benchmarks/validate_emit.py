"""Holds the files of `plan --emit` to tools that cannot live in one environment.

    python benchmarks/validate_emit.py [TOOL …] [--environments DIR]

Each tool gets a virtual environment (made once; axolotl's takes 3 GB), every recipe of tests/planner/emit_cases.py that
it can express is written, and tests/emit_environments/check_TOOL.py reads all of them there with the tool's own parser.
Where there is a learn_TOOL.py, the printed command then trains a tiny model on this CPU, once for each kind of
examples, and the tokens that it learned are held to those of a trial. Exits 1 if anything is refused or differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from estimators.errors import BadInput
from estimators.recipe import Recipe
from planner.emit.checked import CHECKED
from planner.emit.order import Data, DataKind, Order, Schedule
from planner.emit.tools import find_tool, write_for
from tests.planner import emit_cases

PACKAGES = {
    "axolotl": (f"torch=={CHECKED['torch']}", f"axolotl=={CHECKED['axolotl']}"),
    "llamafactory": (f"torch=={CHECKED['torch']}", f"llamafactory=={CHECKED['llamafactory']}"),
    "skypilot": (f"skypilot=={CHECKED['skypilot']}",),
    "unsloth": ("--no-deps", f"unsloth=={CHECKED['unsloth']}"),
}
"""As pip takes them."""
UNWANTED = {"llamafactory": ("torchvision", "torchaudio")}
"""Their CUDA builds cannot be imported beside a torch for the CPU."""
CHECKS = ROOT / "tests" / "emit_environments"
QUIET = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "AXOLOTL_DO_NOT_TRACK": "1"}
ON_A_CPU = {
    "axolotl": {"bf16: true": "bf16: false"},
    "llamafactory": {"do_train: true": "do_train: true\nuse_cpu: true"},
}
"""All that is changed of a file before it is run here, but for a line of log for each step."""
STEPS, WARM_UP_STEPS = 5, 2
KINDS: tuple[DataKind, ...] = ("completion", "messages")


def environment(tool: str, folder: Path) -> Path:
    """The tool's Python; installs it the first time."""
    place = folder / tool
    python, done = place / "bin" / "python", place / "installed"
    if not done.exists():
        print(f"installing {tool} into {place} …", flush=True)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES[tool]], check=True)
        if tool in UNWANTED:
            subprocess.run([str(python), "-m", "pip", "uninstall", "-q", "-y", *UNWANTED[tool]], check=True)
        done.touch()
    return python


def write_all(tool: str, folder: Path) -> int:
    """Writes what the tool can express of every case, a folder each; returns how many."""
    number = 0
    for order in emit_cases.orders():
        try:
            files = write_for(order, [tool]).files
        except BadInput:
            continue
        number += 1
        place = folder / f"{number:03}-{emit_cases.name_of(order.recipe)}"
        place.mkdir(parents=True)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
    return number


def validate(tool: str, environments: Path) -> bool:
    python = environment(tool, environments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{tool}: {write_all(tool, folder)} written", flush=True)
        accepted = in_environment(python, f"check_{tool}.py", folder)
    alike = [learns(tool, python, kind) for kind in KINDS if tool in ON_A_CPU]
    return accepted and all(alike)


def in_environment(python: Path, script: str, folder: Path) -> bool:
    beside = {"PYTHONPATH": os.pathsep.join((str(CHECKS), str(folder)))}  # what the checks share
    environment = {**os.environ, **QUIET, **beside}
    done = subprocess.run([str(python), "-P", str(CHECKS / script), str(folder)], env=environment, check=False)
    return done.returncode == 0


def learns(tool: str, python: Path, kind: DataKind) -> bool:
    """Whether the command that is printed trains to its last step on what a trial would learn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        order = write_job(tool, kind, folder)
        (folder / "torchaudio.py").touch()  # LLaMA-Factory imports it, for texts too
        path = os.pathsep.join((str(python.parent), os.environ["PATH"]))
        environment = {**os.environ, **QUIET, "PATH": path, "PYTHONPATH": str(folder), "NPROC_PER_NODE": "1"}
        command = find_tool(tool).command
        assert command is not None
        with (folder / "log").open("w") as log:
            trained = subprocess.run(
                command(order), shell=True, cwd=folder, env=environment, stdout=log, stderr=log, check=False
            )
        if trained.returncode:
            print(f"{tool}, {kind}: exit code {trained.returncode}\n{(folder / 'log').read_text()[-3000:]}")
        return trained.returncode == 0 and in_environment(python, f"learn_{tool}.py", folder)


def write_job(tool: str, kind: DataKind, folder: Path) -> Order:
    """A LoRA job over a tiny checkpoint, the examples, and beside them what a trial makes of those."""
    from runners.data import tokenize
    from tests.runners import tiny_checkpoint

    weights = tiny_checkpoint.make(folder / "weights")
    examples = EXAMPLES[kind]
    tokenizer = tiny_checkpoint.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})  # no turn ends in <eos>
    tokenizer.save_pretrained(weights)
    rows = [tokenize(example, tokenizer, 64) for example in examples]
    expected = [{name: row[name].tolist() for name in ("input_ids", "labels")} for row in rows]
    if tool == "llamafactory" and kind == "completion":  # as the note in its file says
        examples = [{**example, "completion": f"{example['completion']} <eos>"} for example in examples]
    data = Data(path=tiny_checkpoint.file_of(folder / "examples.jsonl", examples), kind=kind)
    recipe = Recipe(
        model=emit_cases.MODEL, adapter=emit_cases.adapter_of("lora"), sequence_length=64, micro_batch=2,
        learning_rate=1e-3,
    )  # fmt: skip
    schedule = Schedule(name="constant", warm_up_steps=WARM_UP_STEPS)
    order = emit_cases.order(recipe, kind, weights=str(weights), data=data, steps=STEPS, schedule=schedule)
    for file, text in write_for(order, [tool]).files.items():
        for ours, here in (ON_A_CPU[tool] | {"logging_steps: 10": "logging_steps: 1"}).items():
            text = text.replace(ours, here)
        (folder / file).write_text(text, encoding="utf-8")
    rates = [recipe.learning_rate * min(1.0, step / WARM_UP_STEPS) for step in range(STEPS)]
    (folder / "expected.json").write_text(json.dumps({"rows": expected, "rates": rates}))
    return order


EXAMPLES: dict[DataKind, list[dict[str, object]]] = {
    "completion": [{"prompt": "a b c" + " d" * number, "completion": " j" * (number + 1)} for number in range(10)],
    "messages": [
        {
            "messages": [
                *([{"role": "system", "content": "e f"}] if number % 2 else []),
                *(
                    {"role": role, "content": " ".join(word * (1 + number % 4))}
                    for turn in range(1 + number % 3)
                    for role, word in (("user", "ab"), ("assistant", "j"))
                ),
            ]
        }
        for number in range(10)
    ],
}
"""Of many lengths, all within a row; one turn to three, with a system's and without."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", default=list(PACKAGES), metavar="TOOL")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "plan" / "emit_environments")
    asked = parser.parse_args()
    asked.environments.mkdir(parents=True, exist_ok=True)
    results = [validate(tool, asked.environments.resolve()) for tool in asked.tools]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
