"""The sweep's study in Optuna: the one place where trials are recorded, and the sampler of spaces too large to walk.

Nobody but the supervisor writes it. A trial is begun in one transaction and is told in one, so that whatever ends the
supervisor in between leaves it begun, never half told.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from planner.sweep.address import Address
from planner.sweep.lock import only_one
from planner.sweep.space import RANKS, Configuration, Space, Span, word_of
from planner.sweep.storage import check, engine, server_lock, told
from planner.usual import usual_learning_rate

DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "loss": "minimize",
    "vram_bytes": "minimize",
    "tokens_per_second": "maximize",
}
TRIALS_BEFORE_MODEL = 10
CONSTRAINTS = "constraints"
"""Where Optuna kept constraints before they had names, and where optuna-dashboard (0.21) still reads them."""
Value = str | int | float | bool | None
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A trial as the study holds it."""

    number: int
    running: bool
    failed: bool
    attributes: Mapping[str, Any]


class Study:
    """An open study, and the only one that writes it."""

    def __init__(self, address: Address, study: optuna.Study, space: Space, held: ExitStack) -> None:
        self.address, self._study, self.space, self._held = address, study, space, held

    @classmethod
    def open(
        cls,
        address: Address,
        name: str,
        objectives: Sequence[str],
        space: Space,
        *,
        patience_seconds: float,
    ) -> Self:
        """Opens the study of that name, which the space's `kinds` are part of, and makes it where there is none.

        Raises:
            BadInput: another supervisor has it, or it is no database.
            StudyError: it cannot be opened; the message says why, and a server that never answered is bad use.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with ExitStack() as held, told(address, opening=True):
            if address.path is not None:
                held.enter_context(only_one(address.path.with_name(f"{address.path.name}.lock")))
            storage = optuna.storages.RDBStorage(address.url, engine_kwargs=engine(address, patience_seconds))
            held.callback(_leave, storage)
            check(storage, address)
            held.enter_context(server_lock(storage, address, name))
            study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, directions=[DIRECTIONS[o] for o in objectives]
            )
            with _without_warnings():
                study.set_metric_names(list(objectives))
            return cls(address, study, space, held.pop_all())
        raise AssertionError  # a context that swallows nothing ends with a value or an error

    @property
    def name(self) -> str:
        return self._study.study_name

    def rows(self) -> tuple[Row, ...]:
        """Every trial, in the order in which they were begun."""
        with told(self.address):
            return tuple(
                Row(
                    number=trial.number,
                    running=trial.state is TrialState.RUNNING,
                    failed=trial.state is TrialState.FAIL,
                    attributes=trial.user_attrs,
                )
                for trial in self._study.get_trials(deepcopy=False)
            )

    def begin(self, configuration: Configuration, attributes: Mapping[str, Any]) -> int:
        """Records that a trial begins, and returns its number."""
        chosen = _parameters(configuration, self.space)
        with told(self.address):
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.RUNNING,
                    params={name: value for name, (value, _) in chosen.items()},
                    distributions={name: axis for name, (_, axis) in chosen.items()},
                    user_attrs=dict(attributes),
                )
            )
            return self._study.get_trials(deepcopy=False)[-1].number

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Adds to a trial that is running."""
        with told(self.address):
            trial = self._live(number)
            for name, value in attributes.items():
                trial.set_user_attr(name, value)

    def tell(
        self,
        number: int,
        values: Sequence[float] | None,
        constraints: Mapping[str, float],
        attributes: Mapping[str, Any],
    ) -> None:
        """Records how a trial ended: with its values, feasible where no constraint is above zero; None: it failed."""
        with told(self.address):
            trial = self._live(number)
            known = trial.constraints
            for name, value in constraints.items():
                if name not in known:  # a supervisor that died may have come so far
                    trial.set_constraint(name, value)
            if constraints:
                trial.storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, list(constraints.values()))
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            state = TrialState.COMPLETE if values is not None else TrialState.FAIL
            self._study.tell(number, values and list(values), state=state)

    def _live(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)

    def close(self) -> None:
        self._held.close()


def _leave(storage: optuna.storages.RDBStorage) -> None:
    with suppress(Exception):  # what was written is written
        storage.remove_session()
        storage.engine.dispose()


def _without_warnings() -> AbstractContextManager[Any]:
    """Of features that Optuna calls experimental."""
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)


def _parameters(configuration: Configuration, space: Space) -> dict[str, tuple[Value, BaseDistribution]]:
    """What a configuration chooses. The axes of numbers are no wider than what is tried: charts are drawn over them."""
    rate, dropout, rank = configuration.learning_rate, configuration.dropout, configuration.rank
    low, high = _ends((*_rates(space), rate))
    found: dict[str, tuple[Value, BaseDistribution]] = {
        "learning_rate": (rate, FloatDistribution(low, high, log=True)),
        "dropout": (dropout, FloatDistribution(*_ends((*space.dropouts, dropout)))),
    }
    if rank:  # as wide as usual: most sweeps that go on with more ranks keep the axis
        found["rank"] = (rank, IntDistribution(*_ends((*RANKS, *space.ranks, rank)), log=True))
    for name, words in space.kinds.items():
        found[name] = (word_of(getattr(configuration, name)), CategoricalDistribution(words))
    return found


def _rates(space: Space) -> tuple[float, ...]:
    if isinstance(space.learning_rates, Span):
        return space.learning_rates.low, space.learning_rates.high
    return space.learning_rates or tuple(map(usual_learning_rate, space.methods))


def _ends(values: Sequence[Number]) -> tuple[Number, Number]:
    return min(values), max(values)


class Sampler:
    """Proposes configurations of a space that is too large to walk: TPE over all objectives, which learns from what
    was tried, out of memory included. It remembers nothing between commands: it is told again what the study holds."""

    def __init__(self, space: Space, objectives: Sequence[str], seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._objectives = space, tuple(objectives)
        with _without_warnings():
            sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=TRIALS_BEFORE_MODEL
            )
            self._study = optuna.create_study(sampler=sampler, directions=[DIRECTIONS[o] for o in objectives])
        self._open: dict[str, optuna.Trial] = {}

    def propose(self) -> Configuration:
        """A configuration, which may be one that was proposed before."""
        with _without_warnings():
            trial = self._study.ask()
            chosen = {name: self._suggest(trial, name, values) for name, values in self._space.axes.items()}
        configuration = self._space.at(**chosen)
        if configuration.digest in self._open:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._open[configuration.digest] = trial
        return configuration

    def refuse(self, configuration: Configuration) -> None:
        """A configuration that is not launched: as bad as one that ran out of memory."""
        worst = [0.0 if DIRECTIONS[name] == "maximize" else 1e9 for name in self._objectives]
        self.learn(configuration, worst, {"fits": 1.0})

    def learn(self, configuration: Configuration, values: Sequence[float], constraints: Mapping[str, float]) -> None:
        """What became of a configuration, proposed here or not."""
        trial = self._open.pop(configuration.digest, None)
        if trial is None:
            with _without_warnings():
                self._study.enqueue_trial(self._point(configuration))
                trial = self._study.ask()
                for name, axis in self._space.axes.items():
                    self._suggest(trial, name, axis)
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        self._study.tell(trial, list(values))

    def _suggest(self, trial: optuna.Trial, name: str, values: tuple[object, ...] | Span) -> object:
        """Values in an order are drawn by their place in it, so that neighbours teach about each other."""
        if isinstance(values, Span):
            return trial.suggest_float(name, values.low, values.high, log=True)
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            return values[trial.suggest_int(name, 0, len(values) - 1)]
        return values[trial.suggest_categorical(name, list(range(len(values))))]

    def _point(self, configuration: Configuration) -> dict[str, Any]:
        axes = self._space.axes.items()
        return {name: _place(values, getattr(configuration, name)) for name, values in axes}


def _place(values: tuple[object, ...] | Span, value: object) -> object:
    if isinstance(values, Span):
        return value
    return values.index(value) if value in values else 0
