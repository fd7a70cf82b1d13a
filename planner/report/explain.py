"""Explanations as pages."""

from collections.abc import Sequence

from planner.glossary import Entry, Topic
from planner.report.figures import clean
from planner.report.page import BLANK, Line, labelled, paragraph, title


def contents_page(topics: Sequence[Topic], width: int) -> list[Line]:
    """The topics, and the names in each."""
    page: list[Line] = []
    for topic in topics:
        page += title(topic.name, topic.about, width)
        page += paragraph(", ".join(entry.name for entry in topic.entries), width, indent=2)
    return [*page[1:], BLANK, *paragraph("'plan explain NAME' says more about a topic or a name.", width, "dim")]


def topic_page(topic: Topic, width: int) -> list[Line]:
    """A topic's entries, a sentence each."""
    head: Line = ((topic.name, "title"), (f"  {topic.about}", "dim"))
    return [head, *labelled([(entry.name, clean(entry.summary)) for entry in topic.entries], width, "bold")]


def entries_page(entries: Sequence[Entry], width: int) -> list[Line]:
    """Everything about a name."""
    page: list[Line] = []
    for entry in entries:
        page += [BLANK, ((entry.name, "title"),), *paragraph(clean(entry.summary), width, indent=2)]
        for text in entry.details:
            page += [BLANK, *paragraph(clean(text), width, "dim", indent=2)]
    return page[1:]
