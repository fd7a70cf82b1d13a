"""Every format of the capacity report says the same, parses as what it is, and takes nobody's name for markup."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from estimators.models import load_model
from planner.__main__ import main
from planner.capacity.cost import Ownership
from planner.capacity.history import history_of
from planner.capacity.lengths import Lengths
from planner.capacity.prices import Sheet
from planner.capacity.question import Question, Work
from planner.capacity.report import Report
from planner.capacity.swept import Swept
from planner.report.capacity.document import report_document
from planner.report.capacity.flat import csv_text, safe
from planner.report.capacity.markdown import markdown_text
from planner.report.capacity.page import page_text
from planner.report.json import dump
from tests.entries import entry, expected
from tests.planner.capacity import question, report, sheet
from tests.planner.test_report_sweep import trial

HOSTILE = "<script>alert(1)</script><b>x</b>\"'|`&=[x](javascript:y) \x1b[31m"
Texts = dict[str, str]


def full_report(folder: Path, **changes: Any) -> Report:
    """A report with every part."""
    some = Lengths(path="data.jsonl", tokens=((100,) * 9 + (900,)) * 500, counted_by="a test", counted=True)
    asked = question(("llama-3.2-1b", "gpt2"), ("h100", "rtx-4090", "t4"), counts=(1, 8), lengths=some,
                     sheets=(sheet(folder),), ownership=Ownership(power_price_per_kwh=0.2, purchase_price_per_gpu=9000),
                     deadline_seconds=7200.0, sequence_lengths=(1024, 512))  # fmt: skip
    trials = [
        trial(number, 8, loss, job="one", vram_bytes=(12 + number) << 30)
        for number, loss in enumerate((1.5, 1.4, 1.45))
    ]
    swept = Swept(path="sweep", trials=tuple(trials), recommended=1, why="least")
    return report(replace(asked, **changes), swept=swept, history=history_of("store", 1, [expected(entry("one"))]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return full_report(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def texts(made: Report) -> Texts:
    return {"html": page_text(made), "markdown": markdown_text(made), "json": dump(report_document(made)),
            "csv": csv_text(made)}  # fmt: skip


def hostile_report(folder: Path) -> Report:
    """Every name that comes from outside is an attack."""
    plain = full_report(folder)
    asked: Question = plain.question
    model = replace(load_model("gpt2"), name=HOSTILE)
    offers = tuple(replace(one, provider=HOSTILE, instance=HOSTILE, region=HOSTILE) for one in asked.offers)
    evil: Sheet = replace(asked.sheets[0], path=HOSTILE, source=HOSTILE, offers=offers)
    lengths = replace(asked.works[0].lengths, path=HOSTILE, counted_by=HOSTILE)  # type: ignore[type-var]
    work = Work(model=model, goal=replace(asked.works[0].goal, model=HOSTILE), lengths=lengths)
    swept = Swept(path=HOSTILE, trials=(trial(0, 8, 1.5, hopeless=HOSTILE), trial(1, 16, 1.4, notes=(HOSTILE,))),
                  recommended=None, why=HOSTILE)  # fmt: skip
    run = expected(entry("one"))
    run = replace(run, recipe=replace(run.recipe, model=HOSTILE), gpu=HOSTILE)
    again = report(replace(asked, works=(work,), sheets=(evil,)), swept=swept, history=history_of(HOSTILE, 1, [run]))
    return replace(again, command=f"plan report --model '{HOSTILE}'")


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._raw else data


def test_the_document_has_every_figure(made: Report, texts: Texts) -> None:
    document = json.loads(texts["json"])
    assert document["schema_version"] == 1
    assert len(document["setups"]) == len(made.setups)
    chosen = document["verdicts"][0]["chosen"]
    assert chosen["price"]["process_bytes"] > 0 and chosen["seconds"]["value"] > 0
    assert [one["kind"] for one in document["setups"][0]["bills"]] == ["on demand", "spot", "owned"]
    assert document["prices"][0] | {"offers": 0} == {
        "file": made.question.sheets[0].path, "source": "a test", "date": "2026-11-20", "age_days": 2, "stale": False,
        "sample": False, "currency": "USD", "offers": 0, "rows_passed_over": 0,
    }  # fmt: skip
    assert document["data"][0]["percentiles"] == {"50": 100, "90": 100, "95": 900, "99": 900, "100": 900}
    assert document["sweep"]["front"] == [0, 1] and document["measured"]["errors"]["step"]["of"] == 1


def test_the_table_of_figures_is_whole_and_says_no_price(made: Report, texts: Texts) -> None:
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert len(rows) == len(made.setups)
    by_gpu = {(row["gpu"], row["gpus"]): row for row in rows}
    assert by_gpu["t4", "1"]["on_demand_a_run"] == "no price" and float(by_gpu["h100-sxm", "1"]["on_demand_a_run"]) > 0
    assert by_gpu["rtx-4090", "1"]["spot_an_hour"] == "no price"
    first = made.setups[0]
    assert float(rows[0]["seconds"]) == pytest.approx(first.seconds.value if first.seconds else 0)
    assert int(rows[0]["memory_bytes_a_gpu"]) == round(first.price.process.value)


def test_a_cell_that_a_spreadsheet_would_run_is_made_text() -> None:
    for text in ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1"):
        assert safe(text) == f"'{text}"
    assert [safe(value) for value in ("lora", -1.5, None, "")] == ["lora", -1.5, None, ""]


def test_markdown_says_the_verdict_first_and_its_tables_are_tables(texts: Texts) -> None:
    lines = texts["markdown"].splitlines()
    assert next(line for line in lines if line.startswith("**")).startswith("**Fine-tune llama-3.2-1b with ")
    for heading in ("To know first", "What if", "The sweep", "Measured against predicted", "Prices", "Data for gpt2",
                    "What the figures rest on"):  # fmt: skip
        assert f"## {heading}" in lines, heading
    tables = re.findall(r"(?:^\|.*\n)+", texts["markdown"], re.MULTILINE)
    assert len(tables) >= 12
    for one in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in one.splitlines()}) == 1


def test_the_page_needs_nothing_from_anywhere(texts: Texts) -> None:
    page = Elements(texts["html"])
    assert len(texts["html"].encode()) < 6_000_000
    assert not [tag for tag, attrs in page.found if attrs.keys() & {"src", "srcset", "action", "data", "background"}]
    assert all(attrs["href"].startswith("#") for tag, attrs in page.found if attrs.get("href"))  # type: ignore[union-attr]
    assert not {tag for tag, _ in page.found} & {"link", "img", "iframe", "object", "embed", "base"}
    assert not any(name.startswith("on") for _, attrs in page.found for name in attrs)
    policy = next(attrs["content"] for tag, attrs in page.found if attrs.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-eval" not in policy
    style = texts["html"].split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_the_page_says_what_the_other_formats_say(made: Report, texts: Texts) -> None:
    text = Elements(texts["html"]).text
    document = json.loads(texts["json"])
    for one in document["verdicts"]:
        assert one["verdict"] in text and one["ranges"] in text
    for line in (*made.warnings, *made.assumptions):
        assert line in text
    assert "no price" in text and "on the front" in text and "in the median" in text


@pytest.mark.parametrize("fmt", [page_text, markdown_text, csv_text, lambda one: dump(report_document(one))])
def test_names_from_outside_stay_text(tmp_path: Path, fmt: Callable[[Report], str]) -> None:
    text = fmt(hostile_report(tmp_path))
    if text.lstrip().startswith("<!doctype"):
        page = Elements(text)
        assert [tag for tag, _ in page.found].count("script") == 3
        assert "<script>alert(1)</script>" in page.text
        data = text.split('id="data">')[1].split("</script>")[0]
        assert "alert(1)" in data and json.loads(data)["points"]
        assert not set(data) & set("<>&")
    elif text.startswith("{"):
        assert HOSTILE in {one["model"] for one in json.loads(text)["setups"]}
    elif text.startswith("model,"):
        assert {row["model"] for row in csv.DictReader(io.StringIO(text))} == {HOSTILE}
    else:
        body = text.split("\nAgain:\n")[0]
        assert "<script" not in body.replace("\\<", "") and "](javascript" not in body.replace("\\]", "")
        assert "\x1b" not in text


def test_the_command_writes_what_the_name_of_the_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = sheet(tmp_path).path
    asked = ["report", "--model", "llama-3.2-1b,gpt2", "--gpus", "h100,2xrtx-4090", "--tokens", "10M", "--fast",
             "--method", "lora", "--prices", prices, "--deadline", "24h", "--power-price", "0.2"]  # fmt: skip
    for suffix, start in (("html", "<!doctype html>"), ("md", "# Capacity plan"), ("json", "{"), ("csv", "model,")):
        path = tmp_path / f"plan.{suffix}"
        assert main([*asked, "-o", str(path)]) == 0
        assert path.read_text().lstrip().startswith(start)
        assert "wrote" in capsys.readouterr().err
    assert main([*asked, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"].startswith("plan report --model llama-3.2-1b,gpt2 --gpus h100,2xrtx-4090")
    assert document["question"]["gpus"] == {"h100-sxm": [1, 2, 4, 8], "rtx-4090": [2]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "h100"], "--model is missing"),
        (["--model", "gpt2", "--gpus", "h1000000"], "unknown GPU"),
        (["--model", "gpt2", "--tokens", "1M", "--data", "x"], "not both"),
        (["--model", "gpt2", "--pue", "1.2"], "--pue says nothing without --power-price"),
        (["--model", "gpt2", "--pue", "0.5", "--power-price", "1"], "--pue must be a number from 1 to 5"),
        (["--model", "gpt2", "--prices", "nowhere.csv"], "No such file"),
        (["--model", "gpt2", "--store", "nowhere.sqlite"], "no such file"),
        (["--model", "gpt2", "--sweep", "nowhere"], "No such file"),
        (["--model", "gpt2", "--gpus", "t4", "--fast", "-o", "nowhere/plan.md"], "--output nowhere"),
        (["--model", "gpt2", "--gpu-counts", "1,0"], "whole number"),
        (["--model", "gpt2", "--format", "pdf"], "known: html, markdown, json, csv"),
    ],
)
def test_wrong_options_are_refused_by_name(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err


def test_nothing_fits_is_said_and_exits_with_three(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--model", "llama-2-70b", "--gpus", "t4", "--gpu-counts", "1", "--fast"]) == 3
    out = capsys.readouterr().out
    assert "fits on none of these machines" in out and "short on each GPU" in out


def test_the_recommended_set_up_is_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    """What a dry run finds replaces what the formula said, and the decision is made anew."""
    words = ["report", "--model", "gpt2", "--gpus", "t4", "--gpu-counts", "1", "--method", "lora", "--format", "json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdicts"][0]["chosen"]["price"]["evidence"] == "dry run"
    assert "torch" in document["versions"] and not any("formula alone" in text for text in document["warnings"])
