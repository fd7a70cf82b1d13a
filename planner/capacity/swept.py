"""A sweep that was run: its trials, those that no other one beats, and what it took."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from estimators.errors import BadInput
from estimators.strict import decoded
from planner.sweep.pareto import candidates, front, noise_of, recommend
from planner.sweep.result import Recommendation, Trial

STUDY = "study.sqlite"
OBJECTIVES = ("loss", "vram_bytes", "tokens_per_second")
LARGEST_FILE_BYTES = 256_000_000
_TRIALS = "SELECT value_json FROM trial_user_attributes WHERE key = 'trial' ORDER BY trial_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """The trials of a sweep that ended."""

    path: str
    trials: tuple[Trial, ...]
    recommended: int | None
    why: str
    by_loss: bool = False
    """Recommended here, by the loss: a study does not say what else the sweep was after."""

    @property
    def front(self) -> tuple[int, ...]:
        """The trials that no other one beats in everything that all of them were measured by."""
        return front(self.trials, self.objectives)

    @property
    def objectives(self) -> tuple[str, ...]:
        pool = candidates(self.trials)
        return tuple(name for name in OBJECTIVES if pool and all(getattr(one, name) is not None for one in pool))

    def standing(self, trial: Trial) -> Literal["front", "seed", "beaten"]:
        """On the front, another seed of the leader, which competes with no other, or neither."""
        return "seed" if trial.repeat else "front" if trial.number in self.front else "beaten"

    @property
    def chosen(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.number == self.recommended), None)

    def gpu_seconds(self) -> float:
        """Of all trials, those that failed included."""
        return sum(trial.seconds * trial.recipe.parallelism.devices for trial in self.trials)


def read_sweep(path: Path) -> Swept:
    """The sweep in a folder, or in a file of `plan sweep --json`.

    Raises:
        BadInput: there is no sweep, or it cannot be read.
    """
    if path.is_dir():
        trials = _of_study(path / STUDY)
        best = recommend(trials, "loss", OBJECTIVES, noise_of(trials))
        return replace(_swept(path, trials, best), by_loss=True)
    return _of_document(_document(path), path)


def _of_study(path: Path) -> tuple[Trial, ...]:
    """Read past Optuna, which would have to be installed and would open the file to write."""
    if not path.is_file():
        raise BadInput(f"--sweep: no {STUDY} in {path.parent}; a folder that `plan sweep` wrote has one")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=10)
        try:
            rows = [json.loads(text) for (text,) in connection.execute(_TRIALS)]
        finally:
            connection.close()
    except (sqlite3.Error, ValueError, RecursionError) as error:
        raise BadInput(f"--sweep: {path} is no study of a sweep: {str(error)[:120]}") from None
    return tuple(decoded(Trial, row, f"{path}: trial") for row in rows)


def _document(path: Path) -> Mapping[str, Any]:
    """The last document of a file: the whole sweep."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE_BYTES).decode()
        found = json.loads(text.strip().splitlines()[-1])
    except OSError as error:
        raise BadInput(f"--sweep {path}: {error.strerror}") from None
    except (ValueError, IndexError, RecursionError):
        raise BadInput(f"--sweep {path}: its last line is no JSON document of `plan sweep --json`") from None
    if not isinstance(found, dict) or found.get("event") != "done":
        raise BadInput(f'--sweep {path}: its last line is not the event "done" of `plan sweep --json`')
    return found


def _of_document(document: Mapping[str, Any], path: Path) -> Swept:
    rows, best = document.get("trials"), document.get("recommendation")
    if not isinstance(rows, list):
        raise BadInput(f"--sweep {path}: its trials must be a list")
    trials = tuple(decoded(Trial, _bare(row), f"{path}: trial {number}") for number, row in enumerate(rows))
    found = decoded(Recommendation, best, f"{path}: recommendation") if best is not None else None
    return _swept(path, trials, found)


def _swept(path: Path, trials: tuple[Trial, ...], best: Recommendation | None) -> Swept:
    number, why = (best.number, best.why) if best else (None, "")
    return Swept(path=str(path), trials=trials, recommended=number, why=why)


def _bare(trial: Any) -> Any:
    """Without what the document adds to a trial."""
    if not isinstance(trial, dict):
        return trial
    return {name: value for name, value in trial.items() if name not in ("perplexity", "on_front")}
