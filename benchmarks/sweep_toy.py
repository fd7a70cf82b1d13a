"""How many launches a sweep wastes on out of memory when the estimator knows nothing: a toy of two axes, 60 launches.

    python benchmarks/sweep_toy.py [SEEDS]

A trial of rank r and micro-batch b, 1 to 16 each, needs r × b and has 32; it learns the more, the more it uses. Told
by Optuna alone, as a failure or as a constraint, against the sweep's own queue and screen (tests/planner/toy.py).
"""

import statistics
import sys
import tempfile
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.planner.toy import LARGEST, LAUNCHES, ROOM, toy


def alone(seed: int, *, as_failure: bool) -> tuple[int, int, float]:
    """Optuna by itself: launches out of memory, different ones, and how much of the room the best one uses."""
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
    tried = []
    for _ in range(LAUNCHES):
        trial = study.ask()
        need = trial.suggest_int("rank", 1, LARGEST) * trial.suggest_int("micro_batch", 1, LARGEST)
        tried.append((trial.params["rank"], trial.params["micro_batch"]))
        if need > ROOM and as_failure:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        trial.set_constraint("fits", need / ROOM - 1)
        study.tell(trial, 1 - need / ROOM if need <= ROOM else 1.0)
    return _summed(tried)


def swept(seed: int) -> tuple[int, int, float]:
    """The sweep: its sampler, queue, screen, supervisor and study."""
    with tempfile.TemporaryDirectory() as folder:
        _, executor = toy(Path(folder), seed)
    return _summed(executor.launched)


def _summed(tried: list[tuple[int, int]]) -> tuple[int, int, float]:
    needs = [rank * batch for rank, batch in tried]
    return sum(n > ROOM for n in needs), len(set(tried)), max((n for n in needs if n <= ROOM), default=0) / ROOM


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ways = {"Optuna, told as a failure": lambda seed: alone(seed, as_failure=True),
            "Optuna, told as a constraint": lambda seed: alone(seed, as_failure=False),
            "the sweep": swept}  # fmt: skip
    print(f"{'of ' + str(LAUNCHES) + ' launches':30} {'out of memory':>14} {'different':>10} {'best':>6}")
    for name, way in ways.items():
        wasted, different, best = zip(*(way(seed) for seed in seeds), strict=True)
        figures = statistics.mean(wasted), statistics.mean(different), statistics.mean(best)
        print("{:30} {:14.1f} {:10.1f} {:6.3f}".format(name, *figures), flush=True)


if __name__ == "__main__":
    main()
