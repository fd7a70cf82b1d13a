"""Reports: the verdict first, every figure with its error bar, nothing that breaks a narrow or a plain terminal."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace

import pytest

from estimators.catalogue import find_device
from estimators.hardware import Host
from estimators.models import load_model
from estimators.price import Interval, exactly
from planner.choose import make_matrix, make_plan
from planner.cluster import hypothetical_cluster
from planner.goal import Goal
from planner.plan import Plan, Refusal, RulePick
from planner.report import figures, page, paint
from planner.report.json import dump, matrix_document, plan_document
from planner.report.matrix import matrix_page
from planner.report.terminal import TERMS, plan_page, quiet_page

VERSIONS = {"plan": "1.2.3", "python": "3.11.0"}


def planned(goal: Goal, *gpus: str, host: Host | None = None) -> Plan:
    devices = [find_device(name) for name in gpus]
    return make_plan(goal, load_model(goal.model), hypothetical_cluster(devices, 1, host or Host(), None))


@pytest.fixture(scope="module")
def plan() -> Plan:
    """LoRA on one card, with alternatives that lost."""
    return planned(Goal(model="llama-7b", tokens=10_000_000), "rtx-4090")


@pytest.fixture(scope="module")
def impossible() -> Plan:
    return planned(Goal(model="llama-2-70b"), "t4")


def text_of(lines: list[page.Line]) -> str:
    return "\n".join(page.plain(line) for line in lines)


def test_verdict_comes_first_and_the_command_last(plan: Plan) -> None:
    text = text_of(plan_page(plan, 200))
    assert text.splitlines()[0] == plan.verdict
    assert text.splitlines()[-1] == plan.next_command


def test_every_term_is_shown_and_they_make_up_the_total(plan: Plan) -> None:
    assert plan.chosen is not None
    price = plan.chosen.price
    text = text_of(plan_page(plan, 100))
    shown = {name for name, title in TERMS.items() if re.search(rf"^  {re.escape(title)} +[\d.]+ [KMG]iB", text, re.M)}
    assert shown == {name for name, size in price.terms.items() if size}
    assert sum(price.terms.values()) == price.process.value
    assert re.search(r"^  total +14\.\d\d GiB  .*%", text, re.M)
    assert re.search(r"^  budget +23\.51 GiB", text, re.M)
    assert re.search(r"^  kept as headroom +481 MiB", text, re.M)


def test_speed_and_the_length_of_the_job_have_error_bars(plan: Plan) -> None:
    text = text_of(plan_page(plan, 100))
    for label in ("tokens/s", "step", "10 M tokens", "GPU-hours"):
        assert re.search(rf"^  {label} +[\d.,]+.*\d+ %", text, re.M), label


def test_losers_say_why_in_numbers(plan: Plan) -> None:
    text = " ".join(text_of(plan_page(plan, 100)).split())
    assert plan.alternatives
    for other in plan.alternatives:
        assert other.why in text
        assert re.search(r"\d", other.why)


def test_top_limits_the_alternatives(plan: Plan) -> None:
    shorter = replace(plan, goal=replace(plan.goal, top=0))
    assert plan.alternatives[0].why not in text_of(plan_page(shorter, 100))


def test_host_memory_is_shown_only_where_offload_needs_it(plan: Plan) -> None:
    assert "host memory" not in text_of(plan_page(plan, 100))
    host = Host(memory_bytes=256 << 30)
    offloaded = planned(Goal(model="llama-2-13b", offload="required", methods=("lora",)), "rtx-3090", host=host)
    assert offloaded.chosen is not None
    assert re.search(r"^  host memory +[\d.]+ GiB .*fits", text_of(plan_page(offloaded, 100)), re.M)


def test_rule_refusals_change_and_doubt_are_spoken(plan: Plan) -> None:
    full = replace(
        plan,
        rule=RulePick(method="lora", rule="up to 24 GB: lora", confirmed=False, comment="full fits with 8-bit AdamW"),
        refusals=(Refusal(method="zero3", reason="needs two GPUs"),),
        cheapest_change="full fits at --seq-len 512",
    )
    text = text_of(plan_page(full, 100))
    assert "VRAM rule        up to 24 GB: lora; overruled: full fits with 8-bit AdamW" in text
    assert "zero3  needs two GPUs" in text
    assert "Cheapest change  full fits at --seq-len 512" in text
    assert "unconfirmed: formula only" in text
    assert "unconfirmed" not in text_of(plan_page(replace(full, confirmed=True), 100))


def test_nothing_fits_shows_the_nearest_misses(impossible: Plan) -> None:
    text = text_of(plan_page(impossible, 100))
    assert impossible.exit_code == 3
    assert text.startswith(impossible.verdict[:60])
    assert "Nearest misses" in text
    assert re.search(r"needs [\d.,]+ GiB more", text)
    assert "Memory of one GPU" not in text


def test_quiet_is_the_verdict_and_the_command(plan: Plan) -> None:
    assert text_of(quiet_page(plan, 200)).split("\n") == [plan.verdict, "", "Next", plan.next_command]


@pytest.mark.parametrize("width", [72, 80, 100, 120])
def test_no_line_but_the_command_is_wider_than_the_page(plan: Plan, impossible: Plan, width: int) -> None:
    pages = [plan_page(plan, width, verbose=True), plan_page(impossible, width, verbose=True)]
    pages.append(plan_page(planned(Goal(model="llama-3.1-8b"), "a100-80gb", "a100-80gb"), width))
    for lines in pages:
        body = [page.plain(line) for line in lines][:-1]
        assert [line for line in body if len(line) > width] == []


def test_names_from_outside_cannot_steer_the_terminal(plan: Plan) -> None:
    assert plan.chosen is not None
    evil = "\x1b[2J\x07\u202egnp\u200b\n"
    gpu = plan.cluster.gpus[0]
    cluster = replace(plan.cluster, gpus=(replace(gpu, device=replace(gpu.device, title=evil)),))
    adapter = replace(plan.chosen.recipe.adapter, targets=(evil, "v_proj"))
    chosen = replace(plan.chosen, recipe=replace(plan.chosen.recipe, adapter=adapter))
    hostile = replace(plan, cluster=cluster, chosen=chosen, verdict=evil, next_command=evil, assumptions=(evil,))
    text = text_of(plan_page(hostile, 100, verbose=True))
    assert not set(text) & set("\x1b\x07\u202e\u200b")


def test_figures_and_units_stay_together() -> None:
    assert page.wrap("a total of 12.5 GiB ± 30 % now", 14) == ["a total of", "12.5 GiB", "± 30 % now"]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(value=100, low=95, high=105), "± 5 %"),
        (Interval(value=100, low=70, high=145), "−30 % +45 %"),
        (Interval(value=1000, low=996, high=1004), "± 0.4 %"),
        (exactly(7), ""),
        (exactly(0), ""),
    ],
)
def test_error_bars(interval: Interval, expected: str) -> None:
    assert figures.error_bar(interval) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(768, "768"), (6_738_415_616, "6.74 B"), (10**7, "10 M"), (124_439_808, "124 M"), (10**12, "1 T")],
)
def test_counts_in_words(number: int, expected: str) -> None:
    assert figures.count(number) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0123, "12 ms"), (17.42, "17.4 s"), (197, "3.3 min"), (1900, "32 min"), (8000, "2.2 h")]
)
def test_durations_in_words(seconds: float, expected: str) -> None:
    assert figures.duration(seconds) == expected


def test_a_table_drops_what_is_not_vital_before_it_breaks() -> None:
    columns = (page.Column(title="name"), page.Column(title="extra", vital=False), page.Column(title="why", flows=True))
    rows = [("a" * 20, "b" * 20, "running text that goes on for a while")]
    assert "b" in text_of(page.table(columns, rows, 80))
    narrow = text_of(page.table(columns, rows, 40))
    assert "b" not in narrow.replace("name", "").split("\n")[1].strip("a ")
    assert max(map(len, narrow.split("\n"))) <= 40


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def test_a_terminal_gets_colours(terminal: Terminal, plan: Plan) -> None:
    with redirect_stdout(terminal):
        paint.show(plan_page(plan, 100))
    assert "\x1b[" in terminal.text()
    assert re.sub(r"\x1b\[[\d;]*m", "", terminal.text()).startswith("Fine-tune llama-7b")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_declined(
    terminal: Terminal, plan: Plan, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with redirect_stdout(terminal):
        paint.show(plan_page(plan, 100))
    assert terminal.text()
    assert "\x1b" not in terminal.text()


def test_an_output_without_our_letters_gets_ascii(plan: Plan) -> None:
    stream = Terminal("ascii")
    with redirect_stdout(stream):
        paint.show(plan_page(plan, 100))
    assert "1 x NVIDIA GeForce RTX 4090" in stream.text()
    assert "?" not in stream.text()


def test_width_follows_the_terminal_within_reason(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in (("80", 80), ("20", 40), ("300", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        assert paint.page_width(terminal) == width
    assert paint.page_width(io.StringIO()) == 100


def test_plan_as_json_has_every_part_and_whole_bytes(plan: Plan) -> None:
    document = json.loads(dump(plan_document(plan, VERSIONS)))
    assert document["schema_version"] == 1
    assert {"goal", "model", "cluster", "chosen", "alternatives", "refusals", "rule", "verdict", "cheapest_change",
            "assumptions", "next_command", "evidence"} <= set(document)  # fmt: skip
    assert document["goal"]["model"] == "llama-7b"
    assert document["cluster"]["gpus"][0]["device"] == "rtx-4090"
    assert {"recipe", "price"} <= set(document["chosen"])
    assert document["chosen"]["recipe"]["schema_version"] == 1
    assert document["chosen"]["job_seconds"]["value"] > 0
    assert all(other["why"] for other in document["alternatives"])
    assert [value for name, value in sizes_in(document) if type(value) is not int] == []


def sizes_in(node: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every value whose key says that it is in bytes."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from sizes_in(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from sizes_in(value, name)
    elif name.endswith("_bytes") and node is not None:
        yield name, node


def test_a_plan_without_a_recipe_is_json_too(impossible: Plan) -> None:
    document = json.loads(dump(plan_document(impossible, VERSIONS)))
    assert document["chosen"] is None
    assert document["alternatives"]


def test_matrix_names_the_smallest_cards_and_every_recipe() -> None:
    devices = [find_device(name) for name in ("rtx-4060", "rtx-4090", "h200")]
    matrix = make_matrix(Goal(model="llama-7b"), load_model("llama-7b"), devices)
    text = text_of(matrix_page(matrix, 100))
    sentence = " ".join(text.split("\n\n")[0].split())
    assert sentence.startswith("llama-7b (6.74 B parameters): the smallest card is for full h200")
    assert "for lora rtx-4090 (24.0 GiB)" in sentence
    assert "Nothing fits on rtx-4060." in text
    assert re.search(r"^  rtx-4090 .*lora, batch \d+ × \d+", text, re.M)
    document = json.loads(dump(matrix_document(matrix, VERSIONS, "no driver")))
    assert [card["device"] for card in document["cards"]] == ["rtx-4060", "rtx-4090", "h200-sxm"]
    assert document["cards"][0]["best"] is None
    assert document["cards"][1]["methods"]["lora"]["price"]["fits"] is True
