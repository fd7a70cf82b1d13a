"""A SkyPilot task: rents the planned cards, uploads the folder, and runs there the files of the
estimated trainer, or of another that was named."""

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

from planner.emit.accelerate import PORT, environment
from planner.emit.checked import CHECKED
from planner.emit.order import Order, Settings, Tool
from planner.emit.packages import packages
from planner.emit.rows import refuse, row
from planner.emit.torchrun import doubt, program, started, started_files, torchrun
from planner.emit.yaml_text import dump

NAME, FILE = "skypilot", "sky.yaml"
ACCELERATORS = {
    "a10": "A10", "a10g": "A10G", "a100-pcie-40gb": "A100", "a100-pcie-80gb": "A100-80GB", "a100-sxm4-40gb": "A100",
    "a100-sxm4-80gb": "A100-80GB-SXM", "a40": "A40", "b200": "B200", "b300": "B300", "gb200": "GB200",
    "gh200-96gb": "GH200", "h100-pcie": "H100", "h100-sxm": "H100-SXM", "h100-nvl": "H100-NVL", "h200-sxm": "H200",
    "l4": "L4", "l40": "L40", "l40s": "L40S", "p100-pcie-16gb": "P100", "rtx-3090": "RTX3090", "rtx-4090": "RTX4090",
    "rtx-5090": "RTX5090", "rtx-6000-ada": "RTX6000-Ada", "rtx-a4000": "RTXA4000", "rtx-a5000": "RTXA5000",
    "rtx-a6000": "RTXA6000", "t4": "T4", "v100-pcie-16gb": "V100", "v100-sxm2-16gb": "V100",
    "v100-sxm2-32gb": "V100-32GB",
}  # fmt: skip
"""Names in SkyPilot's own catalogue of the cards of ours."""
ANY_OF = {"H100-SXM": ("H100", "H100-SXM"), "A100-80GB-SXM": ("A100-80GB", "A100-80GB-SXM")}
"""Clouds call the same card by different names."""


def settings(order: Order) -> Settings:
    """
    Raises:
        BadInput: the cards are not in its catalogue, or are not all of one kind.
    """
    kinds = sorted(set(order.devices))
    if len(kinds) != 1:
        raise refuse(NAME, f"a node of different cards ({', '.join(kinds) or 'none named'})")
    name = row(NAME, "the card", ACCELERATORS, kinds[0])
    accelerators = dict.fromkeys(ANY_OF.get(name, (name,)), order.gpus_per_node)
    needed = [f"torch=={CHECKED['torch']}", *packages(order, started(NAME, order))]
    start = torchrun(
        NAME,
        order,
        nnodes="$SKYPILOT_NUM_NODES",
        nproc_per_node="$SKYPILOT_NUM_GPUS_PER_NODE",
        node_rank="$SKYPILOT_NODE_RANK",
        master_addr="$HEAD",
        master_port=str(PORT),
    )
    head = 'HEAD=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    return {
        "name": "plan",
        "resources": {"accelerators": accelerators, "disk_size": 256},
        "num_nodes": order.nodes,
        "workdir": ".",
        **_mounts(order),
        "setup": f"set -e\n{shlex.join(['pip', 'install', *needed])}\n",
        "run": f"set -euo pipefail\n{head}\n{environment(order)}{start}\n",
    }


def _mounts(order: Order) -> Settings:
    """What the job reads goes to the place it is read from."""
    return {"file_mounts": {str(PurePosixPath(path)): path for path in order.paths}} if order.paths else {}


def files(order: Order) -> Mapping[str, str]:
    return {**started_files(NAME, order), FILE: dump(settings(order))}


def command(order: Order) -> str:
    return shlex.join(["sky", "launch", FILE])


def notes(order: Order) -> tuple[str, ...]:
    owner = started(NAME, order)
    found = [f"{FILE} runs {owner.name} ({program(NAME, order)[-1]})"]
    if order.paths:
        found.append(f"{' and '.join(order.paths)}: of this machine, from where it is uploaded to the same path")
    return (*found, *owner.notes(order))


TOOL = Tool(
    name=NAME,
    packages=("skypilot",),
    files=files,
    command=command,
    launches=True,
    trainers=("transformers", "trl"),
    doubt=doubt,
    notes=notes,
)
