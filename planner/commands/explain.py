"""`plan explain [TOPIC]`: what plan knows, in words."""

from collections.abc import Sequence

import click

from planner.commands.parameters import VERBOSE, Read, as_typed
from planner.report.paint import page_width, show


def _names() -> list[str]:
    from planner.glossary import topics
    from planner.rules import load_rules

    known = topics(load_rules())
    return [*(topic.name for topic in known), *(entry.name for topic in known for entry in topic.entries)]


def _run(topic: Sequence[str], rules_path: str | None, verbose: bool) -> int:
    from planner.glossary import Topic, look_up, topics
    from planner.report.explain import contents_page, entries_page, topic_page
    from planner.rules import load_rules

    known, width = topics(load_rules(rules_path)), page_width()
    if not topic:
        show(contents_page(known, width))
        return 0
    found = look_up(" ".join(topic), known)
    show(topic_page(found, width) if isinstance(found, Topic) else entries_page(found, width))
    return 0


command = click.Command(
    "explain",
    short_help="Explain methods, rules and the words of a report.",
    help="Explain what plan knows: methods, optimizers, rules, words such as budget. Without TOPIC, list the topics.",
    callback=_run,
    params=[
        click.Argument(["topic"], nargs=-1, type=Read(as_typed, "TOPIC", _names)),
        click.Option(["--rules", "rules_path"], type=Read(as_typed, "FILE"), help="Explain these rules instead."),
        VERBOSE,
    ],
)
