"""The report as a value: the question, the set-ups, the decisions, and what stands behind them."""

from dataclasses import dataclass
from datetime import date

from planner.capacity.decision import Decision
from planner.capacity.history import History
from planner.capacity.prices import Sheet
from planner.capacity.question import Question
from planner.capacity.setups import Refused, Setup
from planner.capacity.swept import Swept


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that any of the formats says."""

    question: Question
    setups: tuple[Setup, ...]
    decisions: tuple[Decision, ...]
    refused: tuple[Refused, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    history: History | None
    swept: Swept | None
    today: date
    command: str
    """To make the report again."""
    versions: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0; 3 where nothing fits for any of the models."""
        return 0 if any(one.chosen for one in self.decisions) else 3


def age_words(sheet: Sheet, today: date) -> str:
    """ "of 28 August 2026, 86 days old", "of an unknown day"."""
    age = sheet.age_days(today)
    if sheet.date is None or age is None:
        return "of an unknown day"
    return f"of {sheet.date.day} {sheet.date:%B %Y}, {age:,} {'day' if age == 1 else 'days'} old"
