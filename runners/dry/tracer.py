"""Dry runs on demand: from the cache where the same job was traced before, else with torch, which is imported then."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache as once
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from estimators.errors import BadInput
from estimators.hardware import Device
from estimators.models import Config
from estimators.recipe import Recipe
from estimators.traced import Traced
from runners.dry import cache

if TYPE_CHECKING:
    from estimators.allocator import Event

REQUIRED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
OPTIONAL = ("trl", "liger-kernel")
INSTALL = "pip install 'finetune-plan[train]'"


def missing() -> tuple[str, ...]:
    """The packages that a dry run needs and that are not there."""
    return tuple(name for name in REQUIRED if find_spec(name) is None)


@once
def versions() -> dict[str, str]:
    """Of the libraries whose code a dry run executes."""
    return {name: found for name in (*REQUIRED, *OPTIONAL) if (found := _version(name)) is not None}


def _version(name: str) -> str | None:
    """As the folder beside the package says: importlib.metadata takes longer to import than this to be done."""
    module = name.replace("-", "_")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return None
    beside = _installed(Path(spec.origin).parents[1])
    return beside[module] if module in beside else _declared(name)


@once
def _installed(folder: Path) -> Mapping[str, str]:
    """The versions of all packages in a folder, by module name."""
    found = (re.fullmatch(r"(.+)-([^-]+)\.dist-info", path.name) for path in folder.iterdir())
    return {match[1].lower().replace("-", "_").replace(".", "_"): match[2] for match in found if match}


def _declared(name: str) -> str | None:
    """The version of a package that is installed elsewhere than its code: an editable one."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def _hushed() -> Iterator[None]:
    """What the libraries have to say of the future, or of a CPU, is not for those who plan."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRuns:
    """Traces recipes of one model."""

    config: Config

    def __call__(self, recipe: Recipe, device: Device) -> Traced:
        """The figures of a dry run.

        Raises:
            BadInput: the libraries are not installed, or cannot run the recipe.
        """
        job = self._job(recipe, device)
        return cache.load_figures(job) or self._trace(recipe, device, job)[0]

    def events(self, recipe: Recipe, device: Device) -> "tuple[list[Event], int]":
        """All that the job asks of the allocator, and the index of the first event after loading.

        Raises:
            BadInput: as above.
        """
        job = self._job(recipe, device)
        return cache.load_events(job) or self._trace(recipe, device, job)[1]

    def _job(self, recipe: Recipe, device: Device) -> str:
        if absent := missing():
            raise BadInput(f"a dry run needs {', '.join(absent)}: {INSTALL}")
        return cache.digest(_essence(recipe), self.config.fields, device, versions())

    def _trace(self, recipe: Recipe, device: Device, job: str) -> "tuple[Traced, tuple[list[Event], int]]":
        with _hushed():
            from runners.dry.trace import dry_run

            trace = dry_run(recipe, self.config, device)
        figures = Traced(**{name: getattr(trace, name) for name in Traced.__dataclass_fields__})
        events = (list(trace.events), trace.first_step)
        cache.save(job, figures, *events)
        return figures, events


def _essence(recipe: Recipe) -> Mapping[str, object]:
    """What of a recipe its memory depends on."""
    from estimators.document import to_document

    return to_document(replace(recipe, model="", learning_rate=0.0, seed=0))
