"""Which trials there are: begun in the study and in a folder each, told once, and found again after any end of ours."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

from estimators.errors import BadInput
from estimators.learning import Training
from estimators.outcome import Outcome, Result, to_document
from estimators.recipe import Recipe
from estimators.strict import decoded, encoded
from planner.sweep.hope import Hope
from planner.sweep.outcome import complete, concerns_all, trial_of, values_of
from planner.sweep.result import Expected, Trial
from planner.sweep.space import Terms
from planner.sweep.storage import StudyError
from planner.sweep.study import Row, Study
from runners import job
from runners.job import Job
from runners.processes import Identity, signal_ours
from runners.running import tokens_of

TRIALS = "trials"


@dataclass(slots=True, kw_only=True)
class Live:
    """A trial that is begun and not told."""

    number: int
    expected: Expected
    repeat: bool
    attempt: int
    lost: int = 0
    """Attempts that ended without saying anything of the recipe."""
    hopeless: str = ""
    token: str = ""
    place: str = ""
    began: float = 0.0
    first: bool = False
    """At its place, since the command began."""
    hope: Hope = field(default_factory=Hope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all jobs of a sweep are made of."""

    terms: Terms
    config: Mapping[str, object]
    """The fields of the model's config.json."""
    training: Training = field(default_factory=Training)
    weights: str = job.RANDOM
    data: str | None = None
    """The file to train on."""
    cap_bytes: int | None = None
    """What a job may hold of each GPU, where the user says so."""

    def job(self, recipe: Recipe, seed: int, token: str) -> Job:
        return Job(
            recipe=recipe,
            config=self.config,
            weights=self.weights,
            data=self.data,
            training=self.training,
            steps=self.terms.steps,
            seed=seed,
            token=token,
            budget_bytes=self.cap_bytes,
        )


class Ledger:
    """The record of a sweep. Every method leaves a state from which the same command goes on."""

    def __init__(
        self, study: Study, folder: Path, work: Work, objectives: Sequence[str], budget_bytes: int | None
    ) -> None:
        self.study, self.folder, self._work = study, folder, work
        self._objectives, self._budget_bytes = tuple(objectives), budget_bytes
        self.finished: list[Trial] = []
        self.interrupted: list[Live] = []
        self.unwanted: list[Live] = []
        """Interrupted too, and not in the space any more: begun in the study, until a command asks for them again."""
        for row in study.rows():
            self._read(row)

    def _read(self, row: Row) -> None:
        if row.running:
            live = _live(row)
            wanted = live.repeat or self.study.space.holds(live.expected.configuration)
            (self.interrupted if wanted else self.unwanted).append(live)
        elif "trial" in row.attributes:
            self.finished.append(decoded(Trial, row.attributes["trial"], f"trial {row.number} of {self.study.name}"))

    def begin(self, expected: Expected, *, repeat: bool = False) -> Live:
        """Records that a trial begins."""
        token = job.new_token()
        attributes = {"digest": expected.configuration.digest, "seed": expected.seed, "key": expected.key,
                      "alpha": expected.configuration.alpha, "expected": encoded(expected), "repeat": repeat,
                      "job": token, "attempt": 1, "lost": 0, "name": expected.configuration.name,
                      "micro_batch": expected.recipe.micro_batch}  # fmt: skip
        number = self.study.begin(expected.configuration, attributes)
        return Live(number=number, expected=expected, repeat=repeat, attempt=1, token=token)

    def again(self, live: Live, *, lost: bool) -> Live:
        """Records that a trial begins anew; `lost`: the last attempt ended by itself, and counts."""
        fresh = Live(number=live.number, expected=live.expected, repeat=live.repeat, attempt=live.attempt + 1,
                     lost=live.lost + lost, token=job.new_token())  # fmt: skip
        self.study.note(live.number, {"job": fresh.token, "attempt": fresh.attempt, "lost": fresh.lost, "hopeless": ""})
        return fresh

    def make(self, live: Live) -> Path:
        """The job's folder, with the job in it.

        Raises:
            StudyError: it cannot be written.
        """
        folder = self.place_of(live)
        try:
            return job.create(folder, self._work.job(live.expected.recipe, live.expected.seed, live.token))
        except OSError as error:
            raise StudyError(f"cannot write {folder}: {error.strerror}; what the study holds is safe") from None

    def place_of(self, live: Live) -> Path:
        return self.folder / TRIALS / f"{live.number:04d}-{live.attempt}"

    def left_by(self, live: Live) -> Result | None:
        """What an interrupted trial came to, once nothing of it runs any more; None: it has to run again."""
        folder = self.place_of(live)
        bury(folder, live.token)
        result = result_of(folder, live.token)
        if result is None or (result.end.outcome is Outcome.CANCELLED and not live.hopeless):
            return None
        return None if concerns_all(result.end) else result  # by now it may be mended

    def ended(self, live: Live, result: Result) -> Trial:
        """A trial that is over, and still to be told. Its result is in the job's folder before anything else starts:
        nothing is lost from here."""
        self._keep(live, result)
        trial = trial_of(
            live.number, live.expected, result, place=live.place, repeat=live.repeat, hopeless=live.hopeless,
            folder=str(self.place_of(live).relative_to(self.folder)), job=live.token, first=live.first,
        )  # fmt: skip
        self.finished.append(complete(trial, self._objectives))
        return self.finished[-1]

    def _keep(self, live: Live, result: Result) -> None:
        path = self.place_of(live) / job.RESULT
        if not path.exists():
            with suppress(OSError):  # a full disk: it is told to the study in a moment, or run again
                job.write_atomically(path, to_document(result))

    def give_up(self, live: Live, why: str) -> None:
        """Records why a trial is about to be stopped, so that its end is not taken for an interruption."""
        live.hopeless = why
        self.study.note(live.number, {"hopeless": why})

    def tell(self, trial: Trial) -> None:
        """Records a trial's end: once, and all of it."""
        values, constraints = values_of(trial, self._objectives, self._budget_bytes)
        attributes = {"outcome": trial.outcome.value, "trial": encoded(trial), **_shown(trial)}
        self.study.tell(trial.number, values, constraints, attributes)


def _shown(trial: Trial) -> dict[str, Any]:
    """What a person wants to see beside the values, in the dashboard of any study; nothing reads it again."""
    figures = {"took_seconds": round(trial.seconds, 3), "untrained_loss": trial.untrained_loss, "score": trial.score}
    words = {"why": "" if trial.ok else trial.hopeless or trial.evidence, "notes": "; ".join(trial.notes)}
    return {name: value for name, value in (figures | words).items() if value not in (None, "")}


def result_in(folder: Path) -> Result | None:
    """The result that a job left; None where there is none that can be read."""
    with suppress(OSError, ValueError, BadInput, RecursionError):
        table = json.loads((folder / job.RESULT).read_bytes())
        table.pop("schema_version", None)
        return decoded(Result, table, "result")
    return None


def result_of(folder: Path, token: str) -> Result | None:
    """As `result_in`, where the job beside it is the one of that token: a folder may hold another's."""
    with suppress(BadInput):
        return result_in(folder) if job.read(folder).token == token else None
    return None


def bury(folder: Path, token: str) -> None:
    """Kills what is left of a job whose guard was killed too: only processes that its token, or that of the warm
    process which took the job, proves ours."""
    for path in folder.glob("beat-*"):
        with suppress(OSError, UnicodeDecodeError, ValueError):
            pid, ticks = (int(word) for word in path.read_text().split()[:2])
            for proof in tokens_of(folder, token):
                signal_ours(Identity(pid=pid, started_ticks=ticks, token=proof), SIGKILL)


def _live(row: Row) -> Live:
    attributes: Mapping[str, Any] = row.attributes
    return Live(
        number=row.number,
        expected=decoded(Expected, attributes["expected"], f"trial {row.number}"),
        repeat=bool(attributes["repeat"]),
        attempt=int(attributes["attempt"]),
        lost=int(attributes["lost"]),
        hopeless=str(attributes.get("hopeless", "")),
        token=str(attributes["job"]),
    )
