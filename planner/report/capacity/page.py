"""A capacity report as one HTML file that needs nothing else: no network, no other file, and no trust in any name."""

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

from estimators.errors import BadInput
from planner.capacity.report import Report, age_words
from planner.capacity.words import length_words, ranges, verdict
from planner.report.capacity import sections
from planner.report.capacity.cells import best_first, headings, row
from planner.report.capacity.charts import chart_data
from planner.report.figures import duration

INSTALL = "pip install 'finetune-plan[report]'"
MOST_ROWS = 500
"""Of the table of set-ups; a page of 6 MB has room for no more beside its charts."""


def page_text(report: Report) -> str:
    """The page.

    Raises:
        BadInput: jinja2 or plotly is not installed.
    """
    try:
        import jinja2

        library = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except ImportError as error:
        raise BadInput(f"--format html needs {error.name}: {INSTALL} (markdown, json and csv need nothing)") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True, loader=jinja2.FunctionLoader(_own))  # fmt: skip
    return environment.get_template("page.html.txt").render(**_values(report, library))


def _values(report: Report, library: str) -> dict[str, Any]:
    question = report.question
    several = len(report.decisions) > 1
    ordered = best_first(report.setups, question)
    shown = ordered[:MOST_ROWS]
    script = _own("page.js.txt")
    return {
        "title": _title(report),
        "job": _job(report),
        "decisions": [_decision(report, one) for one in report.decisions],
        "report": report,
        "question": question,
        "several": several,
        "headings": headings(question, several_models=several),
        "rows": [(one, row(question, one, several_models=several)) for one in shown],
        "left_out": len(ordered) - len(shown),
        "choices": _choices(report),
        "sweep": (sections.sweep_words(report, report.swept), sections.sweep_table(report.swept))
        if report.swept
        else None,
        "measured": _measured(report),
        "prices": sections.prices_table(report),
        "sources": list(sections.sources(report)),
        "sheets": [age_words(sheet, report.today) for sheet in question.sheets],
        "data": _embedded(chart_data(report, shown)),
        "style": _own("page.css.txt"),
        "script": script,
        "library": library,
        "policy": _policy(script, library),
    }


def _decision(report: Report, decision: Any) -> dict[str, Any]:
    question = report.question
    setup = decision.chosen or next(iter(decision.options), None)
    memory = sections.memory_setups(decision, report.setups, setup.method) if setup else []
    lengths = decision.work.lengths
    return {
        "model": decision.work.model.name,
        "fits": decision.chosen is not None,
        "verdict": verdict(question, decision),
        "ranges": ranges(question, decision),
        "figures": sections.figures_of(question, decision),
        "options": sections.options_table(question, decision),
        "memory": sections.memory_table(memory),
        "lengths": lengths,
        "length_table": sections.lengths_table(lengths) if lengths else None,
        "padding": sections.padding_table(report, decision),
    }


def _title(report: Report) -> str:
    names = [one.work.model.name for one in report.decisions]
    return f"Capacity plan: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _job(report: Report) -> list[str]:
    question = report.question
    deadline = [f"done within {duration(question.deadline_seconds)}"] if question.deadline_seconds else []
    chosen = f"decided by {question.objective}"
    return [length_words(question), *deadline, chosen, f"made on {report.today.isoformat()}"]


def _choices(report: Report) -> dict[str, list[str]]:
    """What the filters offer."""
    setups = report.setups
    return {
        "model": list(dict.fromkeys(one.model.name for one in setups)),
        "method": list(dict.fromkeys(one.method for one in setups)),
        "gpu": list(dict.fromkeys(one.machine.device.name for one in setups)),
        "count": [str(one) for one in sorted({one.gpus for one in setups})],
        "length": [str(one) for one in sorted({one.sequence_length for one in setups})],
    }


def _measured(report: Report) -> Any:
    if report.history is None or not report.history.runs:
        return None
    return sections.history_words(report.history), sections.history_table(report.history)


def _embedded(data: Any) -> str:
    """JSON that ends no script element and begins no comment in one."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(*scripts: str) -> str:
    """Only these scripts run, by what is in them; nothing is fetched from anywhere."""
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in digests)
    more = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {more}"


@cache
def _own(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
