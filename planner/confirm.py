"""The confirmation: which recipes a dry run is asked about, in what order, and what its answers make of the choice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from estimators.errors import BadInput
from estimators.recipe import Recipe
from planner.best import best, choose, could_fit
from planner.goal import Goal
from planner.plan import Candidate
from planner.search import with_micro_batch
from planner.words import method_words, shortfall

Reprice = Callable[[Candidate], Candidate]
"""The candidate as a dry run prices it; raises BadInput where the recipe cannot be traced."""

FIRST = 3
"""So many of a rung are tried, the best first, for as long as none is found to fit."""

NEARLY_AS_FAST = 0.95
"""Of the speed by formula: what is slower than that will not turn out to be the fastest."""

DISAGREEMENT = 0.10
"""The formula's figure and the dry run's differ notably from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What came of the dry runs, and the choice."""

    candidates: tuple[Candidate, ...]
    """Those that were dry-run at their new price; of a rung where none was found to fit, no others that may."""
    chosen: Candidate | None
    doubt: str | None
    """Why no dry run stands behind the choice."""
    notes: tuple[str, ...]
    disagreements: tuple[tuple[Candidate, Candidate], ...]
    """By formula and by dry run, where they differ notably."""


@dataclass(slots=True)
class _Trials:
    """What is known of the candidates that were tried; one that cannot be traced stays what the formula says."""

    reprice: Reprice
    known: dict[Recipe, Candidate] = field(default_factory=dict)
    failures: dict[Recipe, str] = field(default_factory=dict)

    def of(self, candidate: Candidate) -> Candidate:
        recipe = candidate.recipe
        if recipe not in self.known:
            try:
                self.known[recipe] = self.reprice(candidate)
            except BadInput as error:
                self.known[recipe], self.failures[recipe] = candidate, str(error)
        return self.known[recipe]

    def hopeless(self, candidate: Candidate) -> bool:
        """Whether the same recipe was found not to fit with a smaller micro-batch (see choose.price_all)."""
        recipe = candidate.recipe
        common = (1, 1, recipe.padded, recipe.attention)
        alike = with_micro_batch(recipe, *common)
        return recipe.gradient_accumulation > 1 and any(
            tried.micro_batch < recipe.micro_batch and with_micro_batch(tried, *common) == alike
            for tried, found in self.known.items()
            if not found.price.fits
        )


def confirm(goal: Goal, candidates: Sequence[Candidate], reprice: Reprice) -> Confirmation:
    """Dry-run the finalists, best rung first, until one is found to fit."""
    trials, chosen = _Trials(reprice), None
    refuted: set[Recipe] = set()
    for rung in _rungs(goal, [one for one in candidates if could_fit(one.price)]):
        chosen = _best_of_rung(goal, rung, trials)
        if chosen is not None:
            break
        refuted.update(one.recipe for one in rung if one.recipe not in trials.known)
    pairs = [(one, found) for one in candidates if (found := trials.known.get(one.recipe))]
    disagreements = tuple(pair for pair in pairs if abs(_difference(*pair)) > DISAGREEMENT)
    return Confirmation(
        candidates=tuple(trials.known.get(one.recipe, one) for one in candidates if one.recipe not in refuted),
        chosen=chosen,
        doubt=trials.failures.get(chosen.recipe) if chosen else None,
        notes=tuple(_notes(choose(goal, candidates), chosen, trials, disagreements)),
        disagreements=disagreements,
    )


def _rungs(goal: Goal, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Candidates of equal worth: those of a rung, or all of them where quality is not the objective; offload last."""
    groups: dict[tuple[bool, int], list[Candidate]] = {}
    for one in candidates:
        place = one.rung if goal.objective == "quality" else 0
        groups.setdefault((bool(one.recipe.parallelism.offload), place), []).append(one)
    yield from (groups[key] for key in sorted(groups))


def _best_of_rung(goal: Goal, rung: Sequence[Candidate], trials: _Trials) -> Candidate | None:
    """The best of those found to fit among the finalists. Once one is found, only those are tried besides that the
    formula puts near it: a dry run may change their order."""
    fitting: list[Candidate] = []
    pace = 0.0
    for number, one in enumerate(_finalists(goal, rung, trials)):
        speed = one.price.tokens_per_second.value
        if fitting and (number >= FIRST or (goal.objective != "memory" and speed < NEARLY_AS_FAST * pace)):
            break
        found = trials.of(one)
        if found.price.fits:
            fitting.append(found)
            pace = max(pace, speed)
    return choose(goal, fitting)


def _finalists(goal: Goal, rung: Sequence[Candidate], trials: _Trials) -> Iterator[Candidate]:
    """In the order to try them: the best three, then what the formula would choose, then what leaves most room."""
    left, given = list(rung), 0
    while given < FIRST and (one := best(goal, left)) is not None:
        left = [other for other in left if other is not one]
        if not trials.hopeless(one):
            given += 1
            yield one
    if (one := choose(goal, left)) is not None:
        yield one
    if left:
        yield max(left, key=lambda other: other.price.tightest.spare_bytes)


def _difference(formula: Candidate, found: Candidate) -> float:
    """What the formula's figure is above the dry run's, as a share of the latter."""
    return formula.price.process.value / found.price.process.value - 1


def _notes(
    formula: Candidate | None,
    chosen: Candidate | None,
    trials: _Trials,
    disagreements: Sequence[tuple[Candidate, Candidate]],
) -> Iterator[str]:
    if chosen is not None and (formula is None or formula.recipe != chosen.recipe):
        yield _changed(formula, chosen, trials)
    elif formula is not None and chosen is None:
        yield f"by formula {_called(formula)} would fit; no dry run confirms it"
    worst: dict[str, tuple[Candidate, Candidate]] = {}
    for pair in sorted(disagreements, key=lambda pair: abs(_difference(*pair))):
        worst[pair[0].method] = pair
    for name, pair in worst.items():
        share = _difference(*pair) * 100
        yield f"the formula's figure for {name} is {abs(share):.0f} % {'above' if share > 0 else 'below'} the dry run's"
    unknown = {why: None for recipe, why in trials.failures.items() if chosen is None or recipe != chosen.recipe}
    yield from (f"judged by formula alone: {why}" for why in unknown)


def _changed(formula: Candidate | None, chosen: Candidate, trials: _Trials) -> str:
    """How the dry run came to another choice than the formula."""
    if formula is None:
        return "by formula nothing is sure to fit: the dry run, which knows better, decided"
    found = trials.known.get(formula.recipe)
    if found is not None and found.price.fits and found.rung == chosen.rung:
        slower = found.price.tokens_per_second.value < chosen.price.tokens_per_second.value
        how = "slower" if slower else "larger"
        return f"by formula it would be {_called(formula)}: by dry run it is {how} than {_batches(chosen)}"
    if found is None or found.price.fits:
        return f"by formula it would be {_called(formula)}: the dry run shows that something better fits"
    return f"by formula it would be {_called(formula)}: the dry run shows that it {shortfall(found)}"


def _called(candidate: Candidate) -> str:
    return f"{method_words(candidate.method)} in {_batches(candidate)}"


def _batches(candidate: Candidate) -> str:
    recipe = candidate.recipe
    return f"batches of {recipe.micro_batch} {'with' if recipe.gradient_checkpointing else 'without'} checkpointing"
