"""A job is a folder: job.json says what to run, each rank leaves a file with what it took, result.json sums up."""

import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from estimators.config_json import parse_config
from estimators.document import from_document, to_document
from estimators.errors import BadInput
from estimators.learning import Training, check
from estimators.models import Config
from estimators.recipe import Recipe
from estimators.strict import decoded, encoded

SCHEMA_VERSION = 2
JOB, RESULT, LOG = "job.json", "result.json", "log.txt"
RANDOM = "random"
TOKEN_BYTES = 16
LARGEST_COUNT = 1 << 60
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl", "accelerate", "deepspeed", "liger-kernel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a child process needs to know to train `steps` steps of a recipe, and nothing about the machine."""

    recipe: Recipe
    config: Mapping[str, object]
    """The fields of the model's config.json."""
    weights: str = RANDOM
    """Or the absolute path of a checkpoint folder with safetensors."""
    data: str | None = None
    """The absolute path of a JSONL file, one example a line; None: random tokens."""
    training: Training = field(default_factory=Training)
    """How it learns; what a run that is only measured has no need of."""
    steps: int = 6
    seed: int = 42
    save: bool = False
    """Whether the trained weights are saved after the last step, as a phase of its own."""
    token: str = field(default_factory=lambda: new_token())
    """Stands in the environment of the job's processes, and proves that they are ours."""
    budget_bytes: int | None = None
    """What the process may hold of each GPU; None: all that is free."""
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())

    @property
    def ranks(self) -> int:
        return self.recipe.parallelism.devices

    def model_config(self) -> Config:
        return Config(name=self.recipe.model, source=self.recipe.model, fields=self.config)


def new_token() -> str:
    """Nobody else's."""
    return secrets.token_hex(TOKEN_BYTES)


def installed_versions() -> dict[str, str]:
    """The versions of the libraries that a job runs, of those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def create(folder: Path, job: Job) -> Path:
    """Makes `folder` and writes the job into it.

    Raises:
        BadInput: the folder is not empty, or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BadInput(f"{folder} is not empty, and a job needs a folder of its own")
    except OSError as error:
        raise BadInput(f"{folder}: {error.strerror}") from None
    document = {field.name: getattr(job, field.name) for field in dataclasses.fields(Job)}
    document |= {"recipe": to_document(job.recipe), "config": dict(job.config), "versions": dict(job.versions)}
    document |= {"training": encoded(job.training)}
    write_atomically(folder / JOB, {"schema_version": SCHEMA_VERSION, **document})
    return folder


def read(folder: Path) -> Job:
    """The job in `folder`.

    Raises:
        BadInput: there is none, or a key of it is missing, unknown or wrong.
    """
    path = folder / JOB
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    table = parse_config(text, str(path))
    expected = {"schema_version", *(field.name for field in dataclasses.fields(Job))}
    if wrong := sorted(expected ^ set(table)):
        raise BadInput(f"{path}: {'missing' if wrong[0] in expected else 'unknown'} key {wrong[0][:60]!r}")
    if table.pop("schema_version") != SCHEMA_VERSION:
        raise BadInput(f"{path}: schema_version must be {SCHEMA_VERSION}")
    for name, valid in CHECKS.items():
        if not valid(table[name]):
            raise BadInput(f"{path}: {name} cannot be {repr(table[name])[:60]}")
    training = check(decoded(Training, table["training"], f"{path}: training"))
    values: dict[str, Any] = {**table, "recipe": from_document(table["recipe"]), "training": training}
    return Job(**values)


def _count(value: object) -> bool:
    return type(value) is int and 0 < value < LARGEST_COUNT


def _absolute(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and Path(value).is_absolute()


CHECKS: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "weights": lambda value: value == RANDOM or _absolute(value),
    "data": lambda value: value is None or _absolute(value),
    "steps": _count,
    "seed": lambda value: type(value) is int and 0 <= value < 1 << 63,
    "save": lambda value: type(value) is bool,
    "token": lambda value: isinstance(value, str) and len(value) == 2 * TOKEN_BYTES and value.isalnum(),
    "budget_bytes": lambda value: value is None or _count(value),
    "versions": lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
}


def rank_path(folder: Path, rank: int) -> Path:
    """Where a rank leaves its report, or its failure."""
    return folder / f"rank-{rank}.json"


def beat_path(folder: Path, rank: int) -> Path:
    """Where a rank says how far it is."""
    return folder / f"beat-{rank}"


def write_atomically(path: Path, document: object) -> None:
    """Writes JSON so that a reader sees all of it or none, whenever the writer dies.

    Raises:
        OSError: the disk is full, or the folder is gone; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
