"""An sbatch script: one torchrun on every node, for the files of the estimated trainer or of another that was named."""

import shlex
from collections.abc import Mapping

from planner.emit.accelerate import environment
from planner.emit.order import Order, Tool
from planner.emit.torchrun import doubt, program, started, started_files, torchrun

NAME, FILE = "slurm", "job.sbatch"
BODY = """#!/bin/bash
#SBATCH --job-name=plan
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --output=%x-%j.out
##SBATCH --time=24:00:00
##SBATCH --partition=NAME
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 50000))
export MASTER_ADDR MASTER_PORT
srun --kill-on-bad-exit=1 bash -c {step}
"""


def files(order: Order) -> Mapping[str, str]:
    step = torchrun(
        NAME,
        order,
        nnodes="$SLURM_NNODES",
        nproc_per_node=str(order.gpus_per_node),
        node_rank="$SLURM_NODEID",
        master_addr="$MASTER_ADDR",
        master_port="$MASTER_PORT",
    )
    text = BODY.format(
        nodes=order.nodes,
        gpus=order.gpus_per_node,
        step=shlex.quote(environment(order) + step),
    )
    return {**started_files(NAME, order), FILE: text}


def command(order: Order) -> str:
    return shlex.join(["sbatch", FILE])


def notes(order: Order) -> tuple[str, ...]:
    """What it runs, and which paths of this machine the cluster must have too."""
    owner = started(NAME, order)
    last = program(NAME, order)[-1]
    found = [f"{FILE} runs {owner.name} ({last}); set --time and --partition in it as your cluster wants them"]
    if order.paths:
        found.append(f"{' and '.join(order.paths)}: of this machine, and every node must find it under the same path")
    return (*found, *owner.notes(order))


TOOL = Tool(
    name=NAME,
    packages=("torch",),
    files=files,
    command=command,
    launches=True,
    trainers=("transformers", "trl"),
    doubt=doubt,
    notes=notes,
)
