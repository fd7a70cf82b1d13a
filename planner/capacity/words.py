"""The sentences of a capacity report: its verdicts, what it assumes, and what to be warned of."""

from collections.abc import Iterator, Sequence
from datetime import date

from estimators.calibration import DEFAULT
from estimators.hardware import Device
from estimators.units import format_bytes
from planner.capacity.decision import Decision, InTime, cost_of, in_time
from planner.capacity.prices import STALE_DAYS, Sheet
from planner.capacity.question import Question
from planner.capacity.report import age_words
from planner.capacity.setups import Setup
from planner.report.figures import count, duration
from planner.rules import Rules
from planner.words import method_words

TIMES: dict[InTime, str] = {
    "in time": "in time even at the upper end of the error bar",
    "perhaps in time": "in time by estimate, too late at the upper end of the error bar",
    "too late": "after the deadline",
    "no deadline": "",
}


def money(amount: float, currency: str) -> str:
    """ "$9.44", "EUR 1,204": as exact as anyone wants."""
    sign = "$" if currency == "USD" else f"{currency} "
    if amount >= 100:
        return f"{sign}{amount:,.0f}"
    return f"{sign}{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{sign}{amount:.2g}"


def verdict(question: Question, decision: Decision) -> str:
    """One sentence: what to take, how long it runs and what it costs."""
    chosen, name = decision.chosen, decision.work.model.name
    if chosen is None:
        return f"{name} fits on none of these machines, by none of these methods."
    parts = [f"Fine-tune {name} with {method_words(chosen.candidate.method)} on {chosen.name}"]
    if chosen.seconds is not None:
        parts.append(f"about {duration(chosen.seconds.value)}")
    cost = cost_of(question, chosen)
    if cost is not None:
        unit = "" if chosen.seconds is not None else " a million tokens"
        parts.append(f"about {money(cost.value, question.currency)}{unit} {question.basis}")
    late = TIMES[in_time(question, chosen)]
    return f"{parts[0]}: {', '.join(parts[1:])}{f'; {late}' if late else ''}." if parts[1:] else f"{parts[0]}."


def ranges(question: Question, decision: Decision) -> str:
    """Beneath the verdict: the ranges of its figures, and what it is not told from."""
    chosen = decision.chosen
    if chosen is None:
        nearest = max(decision.options, key=lambda one: one.price.tightest.spare_bytes, default=None)
        if nearest is None:
            return "No recipe can run there: the reasons are below."
        missing = format_bytes(max(0.0, -nearest.price.tightest.spare_bytes))
        return f"Nearest: {method_words(nearest.candidate.method)} on {nearest.name}, {missing} short on each GPU."
    parts = []
    if chosen.seconds is not None:
        parts.append(f"{duration(chosen.seconds.low)} and {duration(chosen.seconds.high)}")
    if cost := cost_of(question, chosen):
        parts.append(f"{money(cost.low, question.currency)} and {money(cost.high, question.currency)}")
    text = f"In 19 cases of 20 between {', and between '.join(parts)}." if parts else ""
    if decision.alike:
        others = "another set-up" if decision.alike == 1 else f"{decision.alike} other set-ups"
        text += f" On other cards, {others} cannot be told from it by cost: the ranges overlap."
    return text.strip()


def assumptions(question: Question, setups: Sequence[Setup], rules: Rules) -> Iterator[str]:
    """What the figures rest on."""
    goal = question.works[0].goal
    taken = [
        text
        for said, text in (
            (goal.global_batch, f"{rules.defaults.global_batch} sequences an optimizer step"),
            (goal.rank, f"rank {rules.defaults.rank}, alpha {rules.defaults.rank * rules.defaults.alpha_per_rank}"),
            (goal.targets, "adapters on queries and values"),
        )
        if said is None
    ]
    if taken:
        yield f"Taken because not said: {', '.join(taken)}."
    yield ("Each row is the fastest recipe of its method that fits at the upper end of its error bar: micro-batch, "
           "checkpointing and sharding are searched.")  # fmt: skip
    yield "Time and money are of the training steps: starting, downloading, evaluating and saving come on top."
    yield "The GPUs are idle and in one machine; a job on fewer GPUs than a machine has pays for the whole machine."
    if any(work.lengths for work in question.works):
        yield "Examples come in batches padded to their longest, in the file's order, unless packing is named."
    elif question.tokens is not None:
        yield "Every sequence is full, so no token is padding; with --data the padding is counted."
    if question.host.memory_bytes is None:
        yield "No offload was considered, for nothing is known of the hosts: say --host-memory."
    yield from _of_owners(question)
    unseen = _unseen([setup.machine.device for setup in setups])
    if unseen:
        shown = ", ".join(unseen[:6]) + (f" and {len(unseen) - 6} more" if len(unseen) > 6 else "")
        yield f"Speed on {shown} is scaled by the data sheet from other cards; nothing was measured there."


def _of_owners(question: Question) -> Iterator[str]:
    if (own := question.ownership) is None:
        return
    bought = ""
    if own.purchase_price_per_gpu:
        price = money(own.purchase_price_per_gpu, question.currency)
        bought = f" and {price} a GPU over {own.years:g} years of use around the clock"
    price = money(own.power_price_per_kwh, question.currency)
    yield (f"Owned GPUs draw what their data sheet allows, at {price} a kWh and a PUE of {own.pue:g}{bought}; "
           "the rest of the machine, space and people are not counted.")  # fmt: skip


def _unseen(devices: Sequence[Device]) -> list[str]:
    return sorted({device.name for device in devices} - set(DEFAULT.seen_devices))


def warnings(question: Question, today: date) -> Iterator[str]:
    """What a reader must know before the figures are used."""
    if not question.sheets and question.ownership is None:
        yield "No price was given, so no cost is shown: GPU-hours decide. Give --prices FILE, or --power-price."
    for sheet in question.sheets:
        yield from _of_sheet(sheet, today)
    yield from _unpriced(question)
    for work in question.works:
        if work.lengths is not None and not work.lengths.counted:
            yield f"Token lengths for {work.model.name} are {work.lengths.counted_by}."


def _unpriced(question: Question) -> Iterator[str]:
    """Cards without a price take no part where prices decide."""
    if question.basis not in ("on demand", "spot"):
        return
    priced = {offer.device for offer in question.offers}
    names = [one.device.name for one in question.machines if one.device.name not in priced]
    if names:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        yield f"No price for {shown}: such cards come last where cost decides, however cheap they may be."


def _of_sheet(sheet: Sheet, today: date) -> Iterator[str]:
    if sheet.sample:
        yield f"The prices in {sheet.path} are a sample, {age_words(sheet, today)}: use your own before deciding."
    elif sheet.date is None:
        yield f"Nobody knows how old the prices in {sheet.path} are: say --prices-date, or a line # date: in the file."
    elif sheet.is_stale(today):
        yield f"The prices in {sheet.path} are {age_words(sheet, today)}: more than {STALE_DAYS} days."


def length_words(question: Question) -> str:
    """How long the job is, in words."""
    lengths = next((work.lengths for work in question.works if work.lengths), None)
    if lengths is not None:
        times = "" if question.epochs == 1 else f", {question.epochs} times"
        return f"{lengths.examples:,} examples of {lengths.path}{times}"
    return f"{count(question.tokens)} tokens" if question.tokens else "a job of any length"
