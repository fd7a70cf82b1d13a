"""What the trials add up to: those that no other one beats, how much of a difference is chance, and which to use."""

import math
from collections.abc import Callable, Sequence

from estimators.units import format_bytes
from planner.sweep.result import Noise, Objective, Recommendation, Trial

LESS_IS_BETTER = {"loss": True, "vram_bytes": True, "tokens_per_second": False}


def costs(trial: Trial, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """Each objective, turned so that less is better; None where one of them is not known."""
    values = [getattr(trial, name) for name in objectives]
    if any(value is None for value in values):
        return None
    signs = [1 if LESS_IS_BETTER[name] else -1 for name in objectives]
    return tuple(sign * float(value) for sign, value in zip(signs, values, strict=True))


def candidates(trials: Sequence[Trial]) -> list[Trial]:
    """Those to choose from: ended well, and not another seed of one that is there already."""
    return [trial for trial in trials if trial.ok and not trial.repeat]


def front(trials: Sequence[Trial], objectives: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the trials that no other one is as good as in everything, and better in something."""
    known = [(trial, cost) for trial in candidates(trials) if (cost := costs(trial, objectives)) is not None]
    return tuple(trial.number for trial, cost in known if not any(_beats(other, cost) for _, other in known))


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def leader(trials: Sequence[Trial]) -> Trial | None:
    """The trial of the lowest loss; the smaller rank where two are equal."""
    known = [trial for trial in candidates(trials) if trial.loss is not None]
    return min(known, key=lambda trial: (trial.loss, trial.configuration.rank), default=None)


def repeated_one(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """The trial whose seeds are to show what differs by chance: the leader of the loss, or the fastest where that is
    what is asked for."""
    if objective != "speed":
        return leader(trials)
    known = [trial for trial in _that_learned(candidates(trials)) if trial.tokens_per_second is not None]
    return max(known, key=lambda trial: trial.tokens_per_second or 0.0, default=None)


def noise_of(trials: Sequence[Trial]) -> Noise | None:
    """Of the leader, or of the trial that led when seeds were repeated; None until one was."""
    repeated = {trial.configuration.digest for trial in trials if trial.repeat and trial.ok}
    first = next((trial for trial in _best_first(trials) if trial.configuration.digest in repeated), None)
    if first is None:
        return None
    same = [trial for trial in trials if trial.ok and trial.configuration.digest == first.configuration.digest]
    losses = tuple(trial.loss for trial in same if trial.loss is not None)
    speeds = tuple(trial.tokens_per_second for trial in same if trial.tokens_per_second is not None)
    return Noise(number=first.number, losses=losses, speeds=speeds) if max(len(losses), len(speeds)) > 1 else None


def _best_first(trials: Sequence[Trial]) -> list[Trial]:
    """By loss, and by speed where no loss is known."""
    return sorted(candidates(trials), key=lambda one: (one.loss is None, one.loss or 0.0, -_speed(one)))


def recommend(
    trials: Sequence[Trial], objective: Objective, objectives: Sequence[str], noise: Noise | None
) -> Recommendation | None:
    """The trial whose recipe to use under the goal, and why; None where none ended well."""
    pool = candidates(trials)
    if not pool:
        return None
    return _RULES[objective](pool, objectives, noise)


def _least_loss(pool: list[Trial], objectives: Sequence[str], noise: Noise | None) -> Recommendation | None:
    """The smallest rank within noise of the best loss: what is left of a difference is chance."""
    best = leader(pool)
    if best is None or best.loss is None:
        return None
    if best not in _that_learned(pool):
        return Recommendation(number=best.number, why=f"the lowest loss, {best.loss:.4f}, but no trial came below the "
                              f"untrained model's {best.untrained_loss:.4f}: none of them learned anything that "
                              "helps, and none is worth a long run")  # fmt: skip
    if noise is None or len(noise.losses) < 2:
        why = f"the lowest loss, {best.loss:.4f}; no seed was repeated, so what differs by chance is not known"
        return Recommendation(number=best.number, why=why)
    within = [
        trial for trial in _that_learned(pool) if trial.loss is not None and trial.loss <= best.loss + noise.spread
    ]
    chosen = min(within, key=_size)
    seeds = f"over {len(noise.losses)} seeds of the leader losses differ by {noise.spread:.4f}"
    if chosen is best:
        return Recommendation(number=best.number, why=f"the lowest loss, {best.loss:.4f}, and nothing smaller "
                                                      f"comes within chance of it: {seeds}")  # fmt: skip
    why = (
        f"the smallest within chance of the lowest loss: {chosen.loss:.4f} against {best.loss:.4f} of "
        f"{best.configuration.name}, and {seeds}"
    )
    return Recommendation(number=chosen.number, why=why)


def _size(trial: Trial) -> tuple[bool, int, int, float]:
    """Training everything is the largest of all; of one rank, what takes less memory, then what learned more."""
    configuration = trial.configuration
    return configuration.rank == 0, configuration.rank, trial.vram_bytes or 0, trial.loss or 0.0


def _least_memory(pool: list[Trial], objectives: Sequence[str], noise: Noise | None) -> Recommendation | None:
    known = [trial for trial in _that_learned(pool) if trial.vram_bytes is not None]
    if not known:
        return None
    best = min(known, key=lambda trial: (trial.vram_bytes, trial.loss or 0.0))
    return Recommendation(
        number=best.number, why=f"the least memory, {format_bytes(best.vram_bytes or 0)}, of those that learned"
    )


def _most_speed(pool: list[Trial], objectives: Sequence[str], noise: Noise | None) -> Recommendation | None:
    known = [trial for trial in _that_learned(pool) if trial.tokens_per_second is not None]
    if not known:
        return None
    best = max(known, key=_speed)
    ratio = 1.0 if noise is None else noise.speed_ratio
    chosen = min((trial for trial in known if _speed(trial) * ratio >= _speed(best)), key=_loss_then_size)
    if chosen is best:
        unknown = "" if noise else "; no seed was repeated, so what differs by chance is not known"
        why = f"the fastest, {_speed(best):,.0f} tokens/s, of those that learned{unknown}"
        return Recommendation(number=best.number, why=why)
    better = "the smallest" if chosen.loss is None else "the one of the lowest loss"
    why = (
        f"{better} within chance of the fastest: {_speed(chosen):,.0f} tokens/s against {_speed(best):,.0f} of "
        f"{best.configuration.name}, and seeds of one recipe differ by {ratio:.2f} ×"
    )
    return Recommendation(number=chosen.number, why=why)


def _speed(trial: Trial) -> float:
    return trial.tokens_per_second or 0.0


def _loss_then_size(trial: Trial) -> tuple[float, tuple[bool, int, int, float], float]:
    return trial.loss or 0.0, _size(trial), -_speed(trial)


def _that_learned(pool: list[Trial]) -> list[Trial]:
    """Where a loss is known, it must have fallen."""
    return [one for one in pool if one.loss is None or one.untrained_loss is None or one.loss < one.untrained_loss]


def _nearest_ideal(pool: list[Trial], objectives: Sequence[str], noise: Noise | None) -> Recommendation | None:
    """Of the front, the one nearest to the best of everything, each objective on its own scale from best to worst."""
    on_front = set(front(pool, objectives))
    known = [(trial, cost) for trial in pool if trial.number in on_front and (cost := costs(trial, objectives))]
    if not known:
        return None
    lows, highs = (tuple(map(f, zip(*(cost for _, cost in known), strict=True))) for f in (min, max))

    def distance(cost: tuple[float, ...]) -> float:
        spans = zip(cost, lows, highs, strict=True)
        return math.fsum(((value - low) / (high - low)) ** 2 for value, low, high in spans if high > low)

    best = min(known, key=lambda pair: distance(pair[1]))[0]
    return Recommendation(
        number=best.number, why=f"of the {len(known)} that nothing beats, the nearest to the best of every objective"
    )


_RULES: dict[Objective, Callable[[list[Trial], Sequence[str], Noise | None], Recommendation | None]] = {
    "loss": _least_loss,
    "memory": _least_memory,
    "speed": _most_speed,
    "pareto": _nearest_ideal,
}
