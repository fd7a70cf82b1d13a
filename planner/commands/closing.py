"""With which options `plan --emit` writes the recipe that a sweep measured, and what it cannot be told."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estimators.units import GIB, MIB
from planner.commands.emitting import OF_THE_JOB

if TYPE_CHECKING:
    from planner.commands.ordering import Subject

STAND_IN = "rtx-4090"
"""After a sweep on the CPU: files are written for a GPU, and which one it will be is not known."""
USUAL = {"schedule": "linear", "warm_up_steps": None, "seed": 42}
"""What `plan --emit` writes unasked."""
AS_TYPED = {"precision": "--precision", "rules_path": "--rules", "data": "--data"}
SIZES = {"vram_budget_bytes": "--vram-budget", "headroom_bytes": "--headroom"}
FLAGS = {"assume_idle": "--assume-idle", "offline": "--offline"}


def options_of(subject: "Subject", values: Mapping[str, Any]) -> Iterator[str]:
    """On as many GPUs as a trial had, within the same limits, with the same weights and data."""
    if weights := _folder_of_weights(values):
        yield from ("--model", weights)
    cluster, devices = subject.cluster, values["gpus_per_trial"]
    if cluster is None:
        yield from ("--gpus", f"{devices}x{STAND_IN}")
    elif cluster.hypothetical or len(cluster.gpus) != devices:
        yield from ("--gpus", f"{devices}x{cluster.gpus[0].device.name}")
    for name, option in AS_TYPED.items():
        if values[name] is not None:
            yield from (option, values[name])
    for name, option in OF_THE_JOB.items():
        if values[name] != USUAL[name]:
            yield from (option, str(values[name]))
    for name, option in SIZES.items():
        if values[name] is not None:
            yield from (option, _size(values[name]))
    yield from (option for name, option in FLAGS.items() if values[name])


def _folder_of_weights(values: Mapping[str, Any]) -> str | None:
    """What was trained, where it is another folder than the model's name says, and one that can be planned for."""
    given = values["weights"]
    if given in (None, "random", values["model"]) or not (Path(given) / "config.json").is_file():
        return None
    return str(given)


def _size(size_bytes: int) -> str:
    """To the byte."""
    for name, unit in (("GiB", GIB), ("MiB", MIB)):
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B" if size_bytes else "0"


def unwritten(values: Mapping[str, Any]) -> Iterator[str]:
    """What trials had and `plan --emit` has no option for, so that nobody takes the written files for the same."""
    if values["patience"] is not None:
        yield (
            f"trials had a patience of {values['patience']}: files that plan --emit writes evaluate nothing and train "
            "to their last step"
        )
