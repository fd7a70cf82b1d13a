"""A sweep of two axes on a machine that holds little, run by trials that end as they start."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from estimators.learning import Evaluated, Learning
from estimators.outcome import End, Outcome, RankReport, Result
from estimators.recipe import Adapter, Recipe
from planner.sweep.appraise import Option, Refusal, Skip
from planner.sweep.ledger import Work
from planner.sweep.result import Sweep
from planner.sweep.run import Order, run
from planner.sweep.space import Configuration, Space, Terms
from planner.sweep.supervisor import Settings
from runners import job
from runners.executors import Ended
from tests.planner.sweeps import CONFIG, order

LARGEST, LAUNCHES = 16, 60
ROOM = 32
"""A trial of rank r and micro-batch b needs r × b."""


class Toy:
    """An estimator that knows nothing: only what ran out of memory is told from what did not."""

    def __call__(self, configuration: Configuration, skip: Skip) -> Option | Refusal:
        batch = configuration.micro_batch or 1
        adapter = Adapter(method="lora", rank=configuration.rank, alpha=configuration.alpha, targets=("q_proj",))
        recipe = Recipe(model="m", adapter=adapter, micro_batch=batch, gradient_accumulation=2)
        return Refusal(kind="dominated", reason="no less") if skip(recipe) else Option(recipe=recipe, price=None)


class AtOnce:
    """Trials that end as they start: out of memory, or with a loss that falls with the memory that they use."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, int]] = []
        self._ended: list[Ended] = []

    places = ("GPU 0",)
    absent: Mapping[str, str] = MappingProxyType({})

    def warm(self, work: job.Job) -> None: ...

    def start(self, place: str, folder: Path) -> None:
        recipe = job.read(folder).recipe
        need = recipe.adapter.rank * recipe.micro_batch
        self.launched.append((recipe.adapter.rank, recipe.micro_batch))
        end = End(outcome=Outcome.OK if need <= ROOM else Outcome.OUT_OF_MEMORY)
        learning = Learning(evaluated=(Evaluated(step=0, loss=2.0), Evaluated(step=1, loss=1 - need / ROOM)))
        rank = RankReport(rank=0, device_name="toy", phases=(), step_seconds=(), warm_up_steps=0, steady_tokens=0,
                          steady_padded_tokens=0, meter_seconds=0.0, learning=learning)  # fmt: skip
        result = Result(end=end, ranks=(rank,) if end.ok else (), seconds=1.0)
        self._ended.append(Ended(place=place, folder=folder, result=result))

    def wait(self, seconds: float) -> Sequence[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self, place: str) -> None: ...

    def close(self) -> None: ...


def toy(folder: Path, seed: int) -> tuple[Sweep, AtOnce]:
    numbers = tuple(range(1, LARGEST + 1))
    terms = Terms(model="m", steps=4, global_batch=1, sequence_length=8, weights="random", data=None, held_out=None,
                  seed=seed)  # fmt: skip
    one: Order = replace(
        order(folder),
        space=Space(ranks=numbers, micro_batches=numbers),
        settings=Settings(objectives=("loss",), repeats=0),
        work=Work(terms=terms, config=CONFIG),
        most_trials=LAUNCHES,
    )
    executor = AtOnce()
    return run(one, Toy(), executor), executor
