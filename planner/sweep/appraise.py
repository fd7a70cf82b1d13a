"""How a configuration can be run on the GPUs at hand: its mechanics, best first, each priced before anything starts."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from estimators.calibration import Calibration
from estimators.errors import BadInput
from estimators.hardware import Cluster
from estimators.legality import objections
from estimators.model import ModelSpec
from estimators.placement import used_cluster
from estimators.price import Price
from estimators.recipe import ALL_LINEAR, Adapter, Recipe
from estimators.size import Tracer
from estimators.trainable import default_targets
from estimators.units import format_bytes
from planner.best import could_fit
from planner.goal import Goal
from planner.quote import quote
from planner.rules import Rules
from planner.search import Choice, choices
from planner.sweep.result import Passed
from planner.sweep.space import Configuration, Terms

MOST_DRY_RUNS = 6
"""Of one configuration: the formula is seldom wrong by more than a step of the micro-batch."""
NO_LESS = "it asks for no less than what ran out of memory"
ON_CPU = {"weights": "float32", "compute": "float32", "optimizer": "adamw_torch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to run a configuration, and its price; None where nothing can be said, as on a CPU."""

    recipe: Recipe
    price: Price | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why there is no way, or none any more."""

    kind: Passed
    reason: str


Skip = Callable[[Recipe], bool]
Appraiser = Callable[[Configuration, Skip], Option | Refusal]
"""The best way to run a configuration among those that are not to be skipped."""


class OnGpus:
    """Prices by formula, and asks a dry run where there is one. A change of `calibration` holds for what follows."""

    def __init__(
        self, goal: Goal, model: ModelSpec, cluster: Cluster, rules: Rules, terms: Terms, tracer: Tracer | None
    ) -> None:
        self._goal, self._model, self._rules, self._terms, self._tracer = goal, model, rules, terms, tracer
        smallest = min(cluster.gpus, key=lambda gpu: gpu.free_bytes or gpu.device.usable_bytes)
        one = replace(cluster, gpus=(smallest,), nodes=1, peer_link=None, node_link=None)
        self._cluster = one if terms.devices == 1 else used_cluster(cluster, terms.devices)

    def recalibrated(self, calibration: Calibration) -> None:
        self._goal = replace(self._goal, calibration=calibration)

    def __call__(self, configuration: Configuration, skip: Skip) -> Option | Refusal:
        goal = _narrowed(self._goal, configuration, self._terms)
        try:
            found = self._by_formula(goal, configuration)
        except BadInput as error:
            return Refusal(kind="illegal", reason=str(error))
        left = [option for option in found if not skip(option.recipe)]
        if not left:
            return Refusal(kind="dominated", reason=NO_LESS)
        for option in left[:MOST_DRY_RUNS]:
            nearest = self._confirmed(goal, option)
            if nearest.price is not None and nearest.price.fits:
                return nearest
        return Refusal(kind="estimate", reason=_shortfall(nearest.price) if nearest.price else "it has no price")

    def foresee(self, configuration: Configuration) -> Recipe | None:
        """How it would be run by formula alone, which is known at once; None: it hardly can be."""
        with suppress(BadInput):
            first = self._by_formula(_narrowed(self._goal, configuration, self._terms), configuration)[0]
            return first.recipe if _possible(first) else None
        return None

    def _by_formula(self, goal: Goal, configuration: Configuration) -> list[Option]:
        """Every way that could fit, largest micro-batch first, and those of the fastest choice before the others';
        where none could, the nearest miss.

        Raises:
            BadInput: no way is legal, with the reasons.
        """
        groups: list[list[Option]] = []
        reasons: list[str] = []
        for choice in self._choices(goal):
            if refused := objections(self._model, choice.recipe, self._cluster):
                reasons += refused
                continue
            recipes = [replace(recipe, seed=self._terms.seed) for recipe in choice.recipes()]
            groups.append([Option(recipe=r, price=quote(goal, self._model, r, self._cluster)) for r in recipes])
        if not groups:
            raise BadInput(reasons[0] if reasons else "no recipe is known for it")
        possible = [[option for option in reversed(group) if _possible(option)] for group in groups]
        ranked = sorted((group for group in possible if group), key=_speed, reverse=True)
        every = [option for group in groups for option in group]
        return [option for group in ranked for option in group] or [max(every, key=_spare)]

    def _choices(self, goal: Goal) -> Iterator[Choice]:
        """Of one optimizer: another one would change what is learned."""
        first = None
        for choice in choices(goal, self._model, self._cluster, self._rules):
            first = first or choice.recipe.optimizer
            if choice.recipe.parallelism.devices == self._terms.devices and choice.recipe.optimizer == first:
                yield choice

    def _confirmed(self, goal: Goal, option: Option) -> Option:
        """As a dry run has it; as the formula, where the recipe cannot be traced."""
        if self._tracer is None:
            return option
        try:
            price = quote(goal, self._model, option.recipe, self._cluster, self._tracer)
        except BadInput:
            return option
        return replace(option, price=price)


class OnCpu:
    """Nothing is priced: loss and time are measured, and memory is not asked for."""

    def __init__(self, goal: Goal, model: ModelSpec, rules: Rules, terms: Terms) -> None:
        self._goal, self._model, self._rules, self._terms = goal, model, rules, terms

    def __call__(self, configuration: Configuration, skip: Skip) -> Option | Refusal:
        rung = self._rules.rungs((configuration.method,))[0]
        if rung.quantization != "none":
            return Refusal(kind="illegal", reason=f"{configuration.method} quantises the base, which needs a GPU")
        batch = self._terms.global_batch
        micro_batch = configuration.micro_batch or self._goal.micro_batch or batch
        if batch % micro_batch:
            return Refusal(kind="illegal", reason=f"micro-batch {micro_batch} does not divide {batch}")
        recipe = Recipe(
            model=self._goal.model,
            adapter=_adapter(configuration, self._model, rung.adapter),
            gradient_checkpointing=bool(configuration.gradient_checkpointing),
            loss=configuration.loss or "plain",
            attention=self._goal.attention or "sdpa",
            micro_batch=micro_batch,
            gradient_accumulation=batch // micro_batch,
            sequence_length=self._terms.sequence_length,
            padded=self._goal.padded,
            packing=self._goal.packing,
            learning_rate=configuration.learning_rate,
            seed=self._terms.seed,
            **ON_CPU,  # type: ignore[arg-type]
        )
        if skip(recipe):
            return Refusal(kind="dominated", reason=NO_LESS)
        return Option(recipe=recipe, price=None)

    def foresee(self, configuration: Configuration) -> Recipe | None:
        found = self(configuration, lambda recipe: False)
        return found.recipe if isinstance(found, Option) else None


def _narrowed(goal: Goal, configuration: Configuration, terms: Terms) -> Goal:
    """The goal with what the configuration fixes; what it leaves open stays as the user has it."""
    targets = configuration.targets
    return replace(
        goal,
        methods=(configuration.method,),
        rank=configuration.rank or None,
        alpha=configuration.alpha or None,
        targets=goal.targets if targets is None else _targets(targets),
        dropout=configuration.dropout,
        micro_batch=configuration.micro_batch or goal.micro_batch,
        loss=configuration.loss or goal.loss,
        gradient_checkpointing=goal.gradient_checkpointing
        if configuration.gradient_checkpointing is None
        else configuration.gradient_checkpointing,
        sequence_length=terms.sequence_length,
        global_batch=terms.global_batch,
        learning_rate=configuration.learning_rate,
        varying=terms.data is not None,
        offload="never",
    )


def _targets(targets: tuple[str, ...]) -> tuple[str, ...] | str:
    return ALL_LINEAR if targets == (ALL_LINEAR,) else targets


def _adapter(configuration: Configuration, model: ModelSpec, method: str) -> Adapter:
    if method == "full":
        return Adapter(method=method)
    targets = default_targets(model) if configuration.targets is None else _targets(configuration.targets)
    return Adapter(
        method=method,
        rank=configuration.rank,
        alpha=configuration.alpha,
        dropout=configuration.dropout,
        targets=targets,
    )


def _possible(option: Option) -> bool:
    return option.price is not None and could_fit(option.price)


def _speed(group: list[Option]) -> tuple[bool, float]:
    """Of a choice: whether its largest fits for sure, and how fast the largest that does is."""
    sure = [option.price for option in group if option.price and option.price.fits]
    first = (sure or [option.price for option in group if option.price])[0]
    return bool(sure), first.tokens_per_second.value


def _spare(option: Option) -> float:
    return option.price.tightest.spare_bytes if option.price else 0.0


def _shortfall(price: Price) -> str:
    share = price.tightest
    need, room = share.worst_phase.high + share.headroom_bytes, share.budget_bytes
    return f"needs up to {format_bytes(round(need))} of {format_bytes(room)} by {price.evidence}"
