"""The command line as its user meets it: answers on stdout, one line on stderr where it is wrong, and exit codes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import planner.dry
import runners.probe
from estimators.catalogue import find_device
from estimators.errors import NoUsableGpu
from estimators.hardware import Gpu, Host
from estimators.pricing import price as real_price
from planner import __main__ as entry
from planner.__main__ import main
from planner.cli import VERBS, command
from runners.probe import Probe

ROOT = Path(__file__).parents[2]
RECIPE = {"model": "llama-7b", "adapter": {"method": "lora", "rank": 8, "alpha": 32, "targets": ["q_proj"]}}
NOTHING = Probe(gpus=(), hidden=0, host=Host(), driver_version=None, absent="no NVIDIA driver")
PRICE_KEYS = {
    "schema_version", "evidence", "peak_allocated_bytes", "peak_reserved_bytes", "process_bytes", "host_bytes",
    "disk_bytes", "step_seconds", "tokens_per_second", "interval_95", "fits", "verdict", "terms", "phases", "per_gpu",
    "versions",
}  # fmt: skip


class Answer:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = Callable[..., Answer]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `plan` in this process, on a machine without a GPU and without the libraries of a dry run."""
    monkeypatch.setattr(runners.probe, "probe", lambda: NOTHING)
    monkeypatch.setattr(planner.dry, "what_is_missing", lambda: "no torch here")

    def run(*words: str) -> Answer:
        code = main(words)
        return Answer(code, *capsys.readouterr())

    return run


def found(*names: str, **fields: object) -> Probe:
    """A probe that found these cards, with 1 GiB of each in use."""
    devices = [find_device(name) for name in names]
    gpus = [
        Gpu(device=device, total_bytes=device.total_bytes, free_bytes=device.usable_bytes - (1 << 30), index=index)
        for index, device in enumerate(devices)
    ]
    gpus[0] = replace(gpus[0], **fields)  # type: ignore[arg-type]
    return Probe(gpus=tuple(gpus), hidden=0, host=Host(memory_bytes=64 << 30), driver_version="580.1", absent=None)


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `plan` as its own process, its output a pipe."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CUDA"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "planner", *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        env={**keep, "PYTHONPATH": str(ROOT), **environment},
    )


def test_a_described_card_gets_a_plan(plan: Run) -> None:
    answer = plan("--model", "llama-7b", "--gpus", "1xrtx-4090", "--fast")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out.startswith("Fine-tune llama-7b with LoRA")
    assert answer.out.rstrip().splitlines()[-1].startswith("plan --model llama-7b --gpus 1xrtx-4090")


def test_without_a_gpu_the_catalogue_answers(plan: Run) -> None:
    answer = plan("--model", "llama-7b", "--gpus", "auto")
    assert answer.code == 0
    assert answer.err == "no GPU here (no NVIDIA driver): showing what fits on the catalogue's cards instead\n"
    for card in ("rtx-4090", "a100-sxm4-80gb", "h200-sxm"):
        assert re.search(rf"^  {card} ", answer.out, re.M)


def test_what_the_table_cannot_use_is_said(plan: Run) -> None:
    assert "--nodes, --host-memory not used" in plan("--model", "gpt2", "--nodes", "2", "--host-memory", "1TB").err


def test_auto_plans_for_what_the_probe_found(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = replace(
        found("rtx-4090", notes=("a desktop\x1b[31m holds 1.00 GiB",)), lost=("NVIDIA T4: fell off the bus",)
    )
    monkeypatch.setattr(runners.probe, "probe", lambda: probe)
    answer = plan("--model", "llama-7b", "--json")
    assert answer.code == 0
    document = json.loads(answer.out)
    assert document["cluster"]["hypothetical"] is False
    assert document["chosen"]["price"]["per_gpu"][0]["budget_bytes"] == probe.gpus[0].free_bytes
    assert "fell off the bus" in answer.err
    assert "GPU 0: a desktop?[31m holds" in answer.err


def test_a_broken_driver_is_exit_4_with_the_cause(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Probe:
        raise NoUsableGpu("no usable GPU: driver and library versions differ")

    monkeypatch.setattr(runners.probe, "probe", broken)
    answer = plan("--model", "llama-7b")
    assert (answer.code, answer.out) == (4, "")
    assert answer.err == "error: no usable GPU: driver and library versions differ\n"


def test_nothing_fits_is_exit_3_with_the_nearest(plan: Run) -> None:
    answer = plan("--model", "llama-2-70b", "--gpus", "t4")
    assert answer.code == 3
    assert answer.out.startswith("Nothing fits")
    assert "GiB more" in answer.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model llama-7b --gpus rtx-4091", "rtx-4090"),
        ("--model llama-7b --gpus 2xa100:3", "--gpus"),
        ("--model llama-7c", "llama-7b"),
        ("--model nobody/nothing --offline", "nobody/nothing"),
        ("--model llama-7b --gpus t4 --seq-len -5", "--seq-len"),
        ("--model llama-7b --gpus t4 --rank 0", "--rank"),
        ("--model llama-7b --gpus t4 --micro-batch 7 --global-batch 16", "not divisible by --micro-batch 7"),
        ("--model llama-7b --gpus t4 --micro-batch 7", "micro-batch 7"),
        ("--model llama-7b --gpus t4 --tokens 5 --samples 5", "not both"),
        ("--model llama-7b --gpus t4 --optimizer adamw8bit", "adamw_8bit"),
        ("--model llama-7b --gpus t4 --method lorra", "lora"),
        ("--model llama-7b --gpus t4 --targets banana", "banana"),
        ("--model llama-7b --gpus t4 --vram-budget lots", "--vram-budget"),
        ("--model llama-7b --gpus t4 --vram-budget 1GiB --headroom 2GiB", "--headroom"),
        ("--model llama-7b --gpus t4 --rules /no/such/file", "/no/such/file"),
        ("--model llama-7b --gpus", "--gpus"),
        ("--modle llama-7b", "--model"),
        ("--gpus t4", "--model"),
        ("llama-7b", "--model llama-7b"),
        ("expalin", "explain"),
        ("--model llama-7b probe", "--model belongs to plan itself"),
        ("estimate", "FILE"),
        ("estimate /no/such/file --gpus t4", "/no/such/file"),
        ("explain nonsense", "topics"),
        ("gpus rtx-4091", "rtx-4090"),
        ("models llama-7c", "llama-7b"),
        ("completion csh", "bash"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(plan: Run, words: str, said: str) -> None:
    answer = plan(*words.split())
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert said in answer.err


def test_quiet_is_short(plan: Run) -> None:
    answer = plan("--model", "llama-7b", "--gpus", "rtx-4090", "--quiet")
    assert "Memory" not in answer.out
    assert len(answer.out.splitlines()) <= 6


def test_verbose_tells_more_beside_the_result(plan: Run) -> None:
    answer = plan("--model", "llama-7b", "--gpus", "rtx-4090", "--verbose")
    assert re.fullmatch(r"priced \d+ recipes in \d+\.\d+ s\n", answer.err)
    assert "Time of a step" in answer.out


def test_json_is_one_document(plan: Run) -> None:
    answer = plan("--model", "llama-7b", "--gpus", "rtx-4090", "--method", "lora,qlora", "--method", "full", "--json")
    document = json.loads(answer.out)
    assert document["schema_version"] == 1
    assert document["goal"]["methods"] == ["lora", "qlora", "full"]
    assert set(document["chosen"]["price"]) == PRICE_KEYS


def test_options_reach_the_recipe(plan: Run) -> None:
    words = (
        "--model llama-7b --gpus h200 --method lora --rank 8 --alpha 16 --targets k_proj --seq-len 512 --dropout 0.1"
    )
    more = "--global-batch 8 --micro-batch 2 --no-checkpointing --loss liger --trainer transformers --padded --json"
    more += " --learning-rate 3e-4 --expandable-segments"
    recipe = json.loads(plan(*f"{words} {more}".split()).out)["chosen"]["recipe"]
    assert recipe["adapter"] == {"method": "lora", "rank": 8, "alpha": 16, "dropout": 0.1, "targets": ["k_proj"]}
    assert (recipe["sequence_length"], recipe["micro_batch"], recipe["gradient_accumulation"]) == (512, 2, 4)
    assert (recipe["gradient_checkpointing"], recipe["loss"], recipe["padded"]) == (False, "liger", True)
    assert (recipe["learning_rate"], recipe["expandable_segments"]) == (3e-4, True)


def test_the_budget_is_obeyed(plan: Run) -> None:
    answer = plan("--model", "llama-7b", "--gpus", "h200", "--vram-budget", "24GiB", "--headroom", "0", "--json")
    share = json.loads(answer.out)["chosen"]["price"]["per_gpu"][0]
    assert (share["budget_bytes"], share["headroom_bytes"]) == (24 << 30, 0)
    assert share["process_bytes"] <= 24 << 30


def test_rules_can_be_replaced(plan: Run, tmp_path: Path) -> None:
    text = (ROOT / "profiles/rules/default.toml").read_text(encoding="utf-8")
    rules = tmp_path / "rules.toml"
    rules.write_text(text.replace("sequence_length = 2048", "sequence_length = 256"), encoding="utf-8")
    answer = plan("--model", "llama-7b", "--gpus", "rtx-4090", "--rules", str(rules), "--json")
    assert json.loads(answer.out)["chosen"]["recipe"]["sequence_length"] == 256


def test_bare_plan_shows_its_help(plan: Run) -> None:
    answer = plan()
    assert answer.code == 0
    for word in ("--model", "--gpus", *VERBS):
        assert word in answer.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(plan: Run, verb: str) -> None:
    answer = plan(verb, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: plan {verb}")


def test_version(plan: Run) -> None:
    assert re.fullmatch(r"plan \S.*\n", plan("--version").out)


def recipes(tmp_path: Path, *lines: object) -> str:
    file = tmp_path / "recipes.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(file)


def test_estimate_answers_a_line_a_recipe_in_order(plan: Run, tmp_path: Path) -> None:
    unknown, impossible = (
        {**RECIPE, "model": "llama-9b"},
        {**RECIPE, "quantization": "nf4", "adapter": {"method": "full"}},
    )
    huge = {**RECIPE, "model": "llama-2-70b"}
    file = recipes(tmp_path, RECIPE, unknown, "not json", "", impossible, huge, {**RECIPE, "colour": "red"})
    answer = plan("estimate", file, "--gpus", "1xrtx-4090", "--json")
    assert (answer.code, answer.err) == (0, "")
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert [line.get("fits", "error") for line in lines] == [True, "error", "error", "error", False, "error"]
    assert all(set(line) in ({"schema_version", "error"}, PRICE_KEYS) for line in lines)
    assert "llama-9b" in lines[1]["error"]
    assert "recipes.jsonl:3" not in lines[2]["error"].removeprefix(f"{file}:3")
    assert "colour" in lines[5]["error"]


def test_estimate_prices_as_promised(plan: Run, tmp_path: Path) -> None:
    price = json.loads(plan("estimate", recipes(tmp_path, RECIPE), "--gpus", "1xh200", "--json").out)
    assert set(price) == PRICE_KEYS
    sizes = [name for name in PRICE_KEYS if name.endswith("_bytes")]
    assert set(price["interval_95"]) == {*sizes, "step_seconds", "tokens_per_second"}
    for name, (low, high) in price["interval_95"].items():
        assert low <= price[name] <= high
    assert all(type(price[name]) is int for name in sizes)
    assert sum(price["terms"].values()) == price["process_bytes"]
    assert set(price["per_gpu"][0]) == {"name", "index", "budget_bytes", "headroom_bytes", "process_bytes", "verdict"}
    assert set(price["versions"]) == {"plan", "python"}


def test_estimate_reads_lists_several_files_and_standard_input(tmp_path: Path) -> None:
    first, second = tmp_path / "list.json", tmp_path / "one.json"
    first.write_text(json.dumps([RECIPE, RECIPE]))
    second.write_text(json.dumps(RECIPE, indent=2))
    result = CliRunner().invoke(
        command,
        ["estimate", str(first), "-", str(second), "--gpus", "h200", "--json", "--evidence", "formula"],
        input=json.dumps(RECIPE),
        standalone_mode=False,
    )
    assert result.return_value == 0
    assert len(result.output.splitlines()) == 4


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"no recipe", b"[]", b"{", b"\n\n"])
def test_a_file_that_holds_no_recipe_is_bad_input(plan: Run, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.json"
    file.write_bytes(content)
    answer = plan("estimate", str(file), "--gpus", "t4", "--json")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("\n") == 1


def test_estimate_without_json_is_a_table(plan: Run, tmp_path: Path) -> None:
    file = recipes(tmp_path, RECIPE, {**RECIPE, "model": "llama-9b"})
    answer = plan("estimate", file, "--gpus", "rtx-4090")
    assert answer.code == 0
    assert re.search(r"llama-7b +\d+\.\d .*fits$", answer.out, re.M)
    assert "unknown model 'llama-9b'" in answer.out


def test_estimate_needs_a_gpu(plan: Run, tmp_path: Path) -> None:
    answer = plan("estimate", recipes(tmp_path, RECIPE))
    assert answer.code == 4
    assert "--gpus" in answer.err


def test_one_broken_price_costs_the_others_nothing(plan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(model, recipe, cluster, **limits):  # type: ignore[no-untyped-def]
        if recipe.seed == 13:
            raise ZeroDivisionError("by zero")
        return real_price(model, recipe, cluster, **limits)

    monkeypatch.setattr("planner.answer.price", fragile)
    file = recipes(tmp_path, RECIPE, {**RECIPE, "seed": 13}, RECIPE)
    answer = plan("estimate", file, "--gpus", "rtx-4090", "--json")
    assert answer.code == 1
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, False]
    assert "this is a bug in plan" in lines[1]["error"]


def test_a_bug_is_owned_up_to_in_one_line(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Probe:
        raise RuntimeError("oh\nno")

    monkeypatch.setattr(runners.probe, "probe", broken)
    answer = plan("probe")
    assert answer.code == 1
    assert answer.err.startswith("error: RuntimeError: oh no: this is a bug in plan, please report it")
    assert answer.err.count("\n") == 1
    assert "Traceback" in plan("probe", "--verbose").err


def test_an_interrupt_is_exit_130(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Probe:
        raise KeyboardInterrupt

    monkeypatch.setattr(runners.probe, "probe", interrupted)
    answer = plan("probe")
    assert (answer.code, answer.out, answer.err) == (130, "", "interrupted\n")


def test_probe_shows_the_machine(plan: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan("probe").out.startswith("No GPU here: no NVIDIA driver")
    monkeypatch.setattr(runners.probe, "probe", lambda: found("rtx-4090", "t4", power_limit_watts=300.0))
    text = plan("probe").out
    assert text.startswith("2 GPUs, driver 580.1")
    assert re.search(r"power limit +300 W", text)
    document = json.loads(plan("probe", "--json").out)
    assert [gpu["device"] for gpu in document["gpus"]] == ["rtx-4090", "t4"]
    assert document["schema_version"] == 1


def test_gpus_lists_the_catalogue_and_gives_sources(plan: Run) -> None:
    assert re.search(r"^  t4 ", plan("gpus").out, re.M)
    assert len(json.loads(plan("gpus", "--json").out)["gpus"]) >= 55
    text = plan("gpus", "4090").out
    assert re.search(r"memory bandwidth +1,008 GB/s +\S", text)
    assert "no source" not in text
    assert json.loads(plan("gpus", "4090", "--json").out)["sources"]["power_watts"]


def test_models_lists_the_catalogue_and_describes_one(plan: Run, tmp_path: Path) -> None:
    assert re.search(r"^  llama-7b +6.74 B", plan("models").out, re.M)
    assert len(json.loads(plan("models", "--json").out)["models"]) >= 60
    text = plan("models", "llama-7b").out
    assert re.search(r"parameters +6,738,415,616", text)
    assert "arXiv 2302.13971" in text
    assert "q_proj and v_proj" in text
    profile = json.loads((ROOT / "profiles/models/llama-7b.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(profile["config"]))
    assert re.search(r"published +unverified", plan("models", str(tmp_path)).out)


def test_every_technique_can_be_explained(plan: Run) -> None:
    from estimators import techniques

    contents = plan("explain").out
    axes = (techniques.ADAPTERS, techniques.QUANTIZATIONS, techniques.OPTIMIZERS, techniques.PARALLELISMS,
            techniques.ATTENTIONS, techniques.LOSSES)  # fmt: skip
    for name in (name for axis in axes for name in axis):
        assert name in contents
        assert len(plan("explain", name).out.split()) > 8, name


@pytest.mark.parametrize("word", ["budget", "fits", "tight", "ladder", "rules", "defaults", "methods", "error bar"])
def test_words_of_the_report_can_be_explained(plan: Run, word: str) -> None:
    answer = plan("explain", *word.split())
    assert answer.code == 0
    assert len(answer.out.split()) > 8


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_plan_itself(plan: Run, name: str) -> None:
    script = plan("completion", name).out
    assert f"_PLAN_COMPLETE={name}_complete" in script


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("--gpus rtx-40", "rtx-4090"), ("--gpus t4,2xh2", "t4,2xh200-sxm"), ("--model llama-7", "llama-7b"),
     ("--method q", "qlora"), ("--optimizer adamw_8", "adamw_8bit"), ("expl", "explain"), ("gpus a10", "a10g")],
)  # fmt: skip
def test_the_shell_completes_names(plan: Run, monkeypatch: pytest.MonkeyPatch, typed: str, offered: str) -> None:
    monkeypatch.setenv(entry.COMPLETION, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", f"plan {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    assert f"plain,{offered}" in plan().out.splitlines()


def test_a_process_of_its_own_keeps_result_and_noise_apart() -> None:
    ended = shell("--model", "llama-7b", "--gpus", "rtx-4090", "--verbose", "--fast")
    assert ended.returncode == 0
    assert ended.stdout.startswith("Fine-tune llama-7b")
    assert "\x1b" not in ended.stdout + ended.stderr
    assert max(len(line) for line in ended.stdout.rstrip().splitlines()[:-1]) <= 100
    assert ended.stderr.startswith("priced ")


def test_a_process_of_its_own_refuses_in_one_line() -> None:
    ended = shell("--model", "llama-7b", "--gpus", "nonsense", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    words = [sys.executable, "-P", "-m", "planner", "gpus"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(60) == entry.BROKEN_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "planner", "gpus"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert ended.returncode == 1
    assert ended.stderr == "error: cannot write the result: No space left on device\n"


def test_planning_imports_neither_rich_nor_torch_nor_the_network() -> None:
    program = (
        "import sys; from planner.__main__ import main\n"
        "code = main(['--model', 'llama-7b', '--gpus', 'rtx-4090', '--fast'])\n"
        "heavy = {'rich', 'torch', 'transformers', 'http.client', 'pynvml', 'importlib.metadata', 'traceback'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.stderr == "0 []\n"
