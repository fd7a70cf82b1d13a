"""What the page beside the files says of them: the learning rate, the data."""

from collections.abc import Sequence

from planner.emit.data import amount_of
from planner.emit.order import Order, Schedule
from planner.emit.yaml_read import parse

TOLD = ("learning_rate", "lr_scheduler", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "num_epochs",
        "num_train_epochs", "max_steps")  # fmt: skip
THEN = {
    "linear": "falling linearly from there",
    "cosine": "falling as a cosine from there",
    "constant": "staying there",
}


def rate_words(rate: float) -> str:
    """ "2e-4": as people write a learning rate."""
    digits, _, power = f"{rate:.6e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}" if rate else "0"


def rate_note(order: Order) -> tuple[str, ...]:
    """For whoever said no learning rate."""
    if order.rate_was_said:
        return ()
    rate = rate_words(order.recipe.learning_rate)
    return (f"learning rate {rate}, the usual one: yours to change, plan sweep finds it; memory does not hang on it",)


def _course(schedule: Schedule) -> str:
    steps = schedule.warm_up_steps
    counted = "the first step" if steps == 1 else f"the first {steps} steps"
    first = "the first tenth of the steps" if steps is None else counted
    return (f"rising over {first} and " if steps != 0 else "") + THEN[schedule.name]


def of_order(order: Order) -> Sequence[str]:
    """Of the files of a plan."""
    rate = rate_words(order.recipe.learning_rate)
    whose = "as was asked for" if order.rate_was_said else "the usual one: yours to change, plan sweep finds it"
    course = f"It is the highest one, {_course(order.schedule)}; memory and speed do not hang on it."
    lines = [f"Learning rate {rate}, {whose}. {course}"]
    if order.data is None:
        return [*lines, "No data were named: put your file's path in place of the one whose name says so."]
    amount = amount_of(order)
    return [*lines, f"Data: {order.data.path}{f' ({amount})' if amount else ''}."]


def of_file(name: str, text: str, changes: Sequence[str], *, changed: bool) -> Sequence[str]:
    """Of a user's own file as it was written, which keeps its schedule and its data."""
    table = parse(text, name).table
    told = [f"{key} {table[key]}" for key in TOLD if isinstance(table.get(key), str | int | float)]
    if changes:
        lines = [f"Changed so that it fits: {', '.join(changes)}."]
    else:
        lines = ["It fits: nothing needed changing" + (", but for what a new folder asks for." if changed else ".")]
    lines += [f"{name}.diff shows every line."] if changed else []
    return [*lines, f"Rate, schedule and data are those of {name}: {', '.join(told) or 'the defaults of its tool'}."]
