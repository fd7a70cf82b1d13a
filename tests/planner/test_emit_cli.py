"""`plan --emit` and `plan --from` as people type them: files, commands, exit codes."""

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from estimators.units import format_bytes
from planner.__main__ import main
from planner.emit.data import PLACEHOLDER

LORA = ("--model", "llama-3.2-1b", "--gpus", "rtx-4090", "--fast")
QLORA = """\
base_model: meta-llama/Llama-3.2-1B
adapter: lora
lora_r: 16
lora_alpha: 64
lora_target_modules: [q_proj, v_proj]
sequence_len: {length}
micro_batch_size: {batch}
learning_rate: 1e-4
mystery: 1
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        code = main(words)
        return (code, *capsys.readouterr())

    return run


def test_a_job_over_data_is_priced_with_their_padding(plan: Run, tmp_path: Path) -> None:
    """Rows differ in length: what is written must not be a job that takes more than the plan said."""
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')

    def written(*more: str) -> tuple[dict[str, Any], str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        common = ("--micro-batch", "4", "--seq-len", "512", "--gpus", "h200", "--emit", str(folder), "--fast")
        code, out, _ = plan("--model", "llama-3.2-1b", "--method", "lora", *common, *more)
        assert code == 0
        return json.loads((folder / "plan.json").read_text())["chosen"], out

    (plain, _), (varying, said) = written(), written("--data", str(data))
    packed, _ = written("--data", str(data), "--packing")
    names = ("padded", "expandable_segments", "attention", "packing")
    assert [plain["recipe"][name] for name in names] == [False, False, "sdpa", False]
    assert [varying["recipe"][name] for name in names] == [True, True, "sdpa_no_cudnn", False]
    assert [packed["recipe"][name] for name in names] == [False, False, "sdpa", True]
    assert "TORCH_CUDNN_SDPA_DEPRIORITIZED=1 accelerate launch" in said.splitlines()[-1]
    assert "rows of --data differ in length" in " ".join(said.split())
    _, long = written("--data", str(data), "--seq-len", "8192")
    assert "plans anew for every width" in " ".join(long.split())
    assert "plans anew" not in said and "SDPA" not in long


def test_a_plan_is_written_and_says_how_to_start(plan: Run, tmp_path: Path) -> None:
    folder = tmp_path / "a b" / "job"
    data = tmp_path / "mine.jsonl"
    data.write_text('\n{"prompt": "a", "completion": "b"}\n')
    code, out, _ = plan(*LORA, "--samples", "1000", "--emit", str(folder), "--data", str(data))
    assert code == 0
    assert {path.name for path in folder.iterdir()} == {"train.py", "accelerate.yaml", "plan.json", "README.md"}
    settings = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"  # rows of data differ in length
    start = f"cd {shlex.quote(str(folder))} && {settings} accelerate launch --config_file accelerate.yaml train.py"
    assert out.splitlines()[-1] == start
    digest = hashlib.sha256((folder / "plan.json").read_bytes()).hexdigest()
    script = (folder / "train.py").read_text()
    assert digest in script.splitlines()[0] and digest in (folder / "README.md").read_text()
    assert f"DATA = {str(data)!r}" in script and "'max_steps': 63" in script
    assert json.loads((folder / "plan.json").read_text())["chosen"]["recipe"]["model"] == "llama-3.2-1b"
    assert "transformers 5." in script and "Memory: " in script


def test_what_a_sweep_found_is_in_the_files(plan: Run, tmp_path: Path) -> None:
    found = ("--method", "lora", "--learning-rate", "0.0003", "--expandable-segments")
    code, out, _ = plan(*LORA, *found, "--emit", str(tmp_path / "job"))
    assert code == 0
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True accelerate launch " in out.splitlines()[-1]
    assert "'learning_rate': 0.0003" in (tmp_path / "job" / "train.py").read_text()


def test_other_trainers_files_say_that_nobody_measured_them(plan: Run, tmp_path: Path) -> None:
    code, out, _ = plan(*LORA, "--method", "lora", "--emit", str(tmp_path / "job"), "--for", "axolotl,trl")
    assert code == 0
    for name in ("axolotl.yaml", "train.yaml"):
        assert "# Memory not verified under" in (tmp_path / "job" / name).read_text()
    assert "not verified under axolotl" in " ".join(out.split())
    code, out, _ = plan(*LORA, "--trainer", "trl", "--emit", str(tmp_path / "trl"), "--json")
    assert code == 0
    assert "# Memory: " in (tmp_path / "trl" / "train.yaml").read_text()
    assert [note[:18] for note in json.loads(out)["emitted"]["notes"]] == ["learning rate 2e-5"]


def test_what_nobody_said_is_the_usual_rate_and_is_said(plan: Run, tmp_path: Path) -> None:
    for method, rate in (("lora", 2e-4), ("full", 2e-5)):
        folder = tmp_path / method
        code, out, _ = plan(*LORA, "--method", method, "--trainer", "trl", "--emit", str(folder))
        assert code == 0
        found = yaml.safe_load((folder / "train.yaml").read_text())
        assert (found["learning_rate"], found["warmup_steps"]) == (rate, 0.1)
        assert json.loads((folder / "plan.json").read_text())["chosen"]["recipe"]["learning_rate"] == rate
        said = f"learning rate {rate:.0e}".replace("e-0", "e-")
        assert f"{said}, the usual one: yours to change, plan sweep finds it" in " ".join(out.split())
        page = (folder / "README.md").read_text()
        assert said.capitalize() in page and "plan sweep finds it" in page
        assert "\npip install trl==1.16.0 transformers==5.23.0 " in page
    code, out, _ = plan(*LORA, "--method", "lora", "--learning-rate", "3e-5", "--emit", str(tmp_path / "said"))
    assert code == 0 and "the usual one" not in out


def test_schedule_and_seed_are_written_as_they_were_said(plan: Run, tmp_path: Path) -> None:
    said = ("--schedule", "cosine", "--warm-up-steps", "5", "--seed", "7")
    for tools, file, warm_up in (
        ("trl", "train.yaml", "lr_scheduler_type"),
        ("axolotl", "axolotl.yaml", "lr_scheduler"),
    ):
        folder = tmp_path / tools
        code, _, _ = plan(*LORA, "--method", "lora", *said, "--emit", str(folder), "--for", tools, "--json")
        found = yaml.safe_load((folder / file).read_text())
        assert code == 0 and (found[warm_up], found["warmup_steps"], found["seed"]) == ("cosine", 5, 7)
        assert "warmup_ratio" not in found
        assert json.loads((folder / "plan.json").read_text())["chosen"]["recipe"]["seed"] == 7
        page = " ".join((folder / "README.md").read_text().split())
        assert "rising over the first 5 steps and falling as a cosine from there" in page


def test_a_job_script_for_another_trainer_says_what_it_starts(plan: Run, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    words = ("--method", "lora", "--emit", str(folder), "--for")
    code, out, _ = plan(*LORA, *words, "axolotl,slurm,skypilot", "--json")
    assert code == 0 and not (folder / "train.py").exists()
    assert "--module axolotl.cli.train axolotl.yaml" in (folder / "job.sbatch").read_text()
    setup = yaml.safe_load((folder / "sky.yaml").read_text())["setup"]
    assert "axolotl==" in setup and "trl" not in setup
    notes = json.loads(out)["emitted"]["notes"]
    assert sum("which starts axolotl" in note for note in notes) == 2
    code, _, err = plan(*LORA, "--method", "lora", "--emit", str(tmp_path / "n"), "--for", "unsloth,slurm")
    assert code == 2 and "slurm cannot express a job of 'unsloth'" in err and "leave slurm out of --for" in err
    code, _, err = plan(
        *LORA, "--method", "full", "--precision", "amp", "--emit", str(tmp_path / "n"), "--for", "axolotl,slurm"
    )
    assert code == 2 and err.count("axolotl cannot express") == 1 and "leave slurm out" not in err
    code, _, err = plan(*LORA, "--seed", "4294967296", "--emit", str(tmp_path / "n"))
    assert code == 2 and "--seed" in err


def test_schedule_and_seed_belong_to_written_files(plan: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(QLORA.format(length=512, batch=1))
    for option, value in (("--schedule", "cosine"), ("--warm-up-steps", "0"), ("--seed", "0")):
        code, _, err = plan(*LORA, option, value)
        assert code == 2 and f"{option} says what to write, and --emit where: it is missing" in err
        code, _, err = plan("--from", str(tmp_path / "mine.yaml"), "--gpus", "rtx-4090", "--fast", option, value)
        assert code == 2 and "--from says what is trained and how" in err


def test_files_for_trl_come_of_a_plan_for_trl(plan: Run, tmp_path: Path) -> None:
    code, out, err = plan(*LORA, "--emit", str(tmp_path / "trl"), "--for", "trl,slurm", "--json")
    assert code == 0 and "--trainer trl" in err
    assert json.loads(out)["chosen"]["recipe"]["trainer"] == "trl"
    assert "not verified" not in out
    assert "# Memory: " in (tmp_path / "trl" / "train.yaml").read_text()
    script = (tmp_path / "trl" / "job.sbatch").read_text()
    assert "trl.scripts.sft" in script and "\n##SBATCH --time=" in script and "\n##SBATCH --partition=" in script
    assert any("job.sbatch runs trl" in note for note in json.loads(out)["emitted"]["notes"])
    words = ("--emit", str(tmp_path / "own"), "--for", "trl", "--trainer", "transformers", "--json")
    code, out, _ = plan(*LORA, "--method", "lora", *words)
    assert code == 0 and json.loads(out)["chosen"]["recipe"]["trainer"] == "transformers"


def test_what_tools_cannot_say_is_told_before_any_dry_run(
    plan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: object) -> None:
        raise AssertionError("a dry run was made")

    monkeypatch.setattr("planner.dry.tracer_of", never)
    words = ("--model", "llama-3.2-1b", "--gpus", "rtx-4090", "--emit", str(tmp_path / "n"))
    code, out, err = plan(*words, "--method", "full", "--for", "trl,deepspeed,axolotl")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "leave deepspeed out of --for" in err and "axolotl cannot express" in err and "--precision bf16 would" in err
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "d.jsonl:2"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', "d.jsonl:2: not JSON"),
        ('{"prompt": "a", "completion": "b"}\n{"messages": [{"role": "user", "content": "x"}]}\n', "both"),
        ('{"messages": [{"role": "user"}]}\n', "d.jsonl:1"),
    ],
)
def test_every_example_is_checked(plan: Run, tmp_path: Path, lines: str, named: str) -> None:
    (tmp_path / "d.jsonl").write_text(lines)
    code, out, err = plan(*LORA, "--emit", str(tmp_path / "n"), "--data", str(tmp_path / "d.jsonl"))
    assert (code, out) == (2, "") and named in err and not (tmp_path / "n").exists()


def test_notes_say_where_paths_must_be_and_what_a_template_lacks(plan: Run, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    folder = tmp_path / "job"
    words = ("--method", "lora", "--emit", str(folder), "--data", str(data), "--for")
    code, out, _ = plan(*LORA, *words, "slurm,skypilot,llamafactory,axolotl", "--json")
    assert code == 0
    notes = json.loads(out)["emitted"]["notes"]
    page = (folder / "README.md").read_text()
    for words_of_it in ("every node must find it", "from where it is uploaded", "no end of text"):
        assert sum(words_of_it in note for note in notes) == 1 and words_of_it in page
    places = [
        yaml.safe_load((folder / f"{tool}.yaml").read_text())["output_dir"] for tool in ("axolotl", "llamafactory")
    ]
    assert places == ["trained-axolotl", "trained-llamafactory"]


def test_without_data_the_files_name_a_file_that_explains_itself(plan: Run, tmp_path: Path) -> None:
    assert plan(*LORA, "--trainer", "trl", "--emit", str(tmp_path / "job"))[0] == 0
    found = yaml.safe_load((tmp_path / "job" / "train.yaml").read_text())
    assert found["datasets"][0]["data_files"] == PLACEHOLDER


def test_nothing_is_overwritten_and_nothing_half_written(plan: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    code, out, err = plan(*LORA, "--emit", str(tmp_path))
    assert (code, out) == (2, "") and "not empty" in err
    code, _, err = plan(*LORA, "--emit", str(tmp_path / "mine.txt"))
    assert code == 2 and "not a folder" in err
    there = ("--emit", str(tmp_path / "n"))
    code, _, err = plan(*LORA, "--attention", "eager", "--method", "lora", *there, "--for", "trl,unsloth")
    assert code == 2 and "unsloth cannot express the attention 'eager'" in err
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--for", "trl"), "--emit"),
        (("--data", "x.jsonl"), "--emit"),
        (("--accelerate-config", "x"), "--from"),
        (("--emit", "{}/new", "--for", "trll"), "did you mean trl"),
        (("--emit", "{}/new", "--data", "{}/none.jsonl"), "none.jsonl"),
        (("--emit", "{}/new", "--data", "{}/bad.jsonl"), "prompt"),
    ],
)
def test_options_that_make_no_sense_are_refused(plan: Run, tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n')
    code, out, err = plan(*LORA, *(word.format(tmp_path) for word in words))
    assert (code, out) == (2, "") and named in err and len(err.splitlines()) == 1


def test_a_plan_that_does_not_fit_writes_nothing(plan: Run, tmp_path: Path) -> None:
    code, _, _ = plan("--model", "llama-2-70b", "--gpus", "t4", "--fast", "--emit", str(tmp_path / "job"))
    assert code == 3 and not (tmp_path / "job").exists()


def test_a_configuration_that_fits(plan: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(QLORA.format(length=512, batch=1))
    code, out, _ = plan("--from", str(path), "--gpus", "rtx-4090", "--fast")
    assert code == 0 and out.startswith(str(path)[:40])
    assert "fits:" in " ".join(out.split()) and "tokens/s" in out
    assert "Not understood" in out and "mystery" in out


def test_one_that_does_not_fit_is_corrected(plan: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(QLORA.format(length=8192, batch=8))
    folder = tmp_path / "better"
    code, out, _ = plan("--from", str(path), "--gpus", "rtx-4090", "--fast", "--json", "--emit", str(folder))
    assert code == 3
    correction = json.loads(out)["from"]["correction"]
    assert correction["changes"] and not correction["changes_learning"]
    assert correction["recipe"]["micro_batch"] < 8 <= correction["recipe"]["gradient_accumulation"]
    code, _, _ = plan("--from", str(folder / "mine.yaml"), "--gpus", "rtx-4090", "--fast", "-q")
    assert code == 0
    assert "-micro_batch_size: 8\n+micro_batch_size: " in (folder / "mine.yaml.diff").read_text()
    assert "mystery: 1\n" in (folder / "mine.yaml").read_text()
    assert json.loads(out)["emitted"]["commands"][0].startswith(
        "axolotl preprocess mine.yaml && axolotl train mine.yaml "
    )


def test_from_takes_no_goal_beside_it(plan: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(QLORA.format(length=512, batch=1))
    code, _, err = plan("--from", str(path), "--gpus", "rtx-4090", "--rank", "8")
    assert code == 2 and "rank" in err
    code, _, err = plan("--from", str(tmp_path / "none.yaml"), "--gpus", "rtx-4090")
    assert code == 2 and "none.yaml" in err


def test_keys_that_are_not_understood_are_shown_harmless_with_what_was_meant(plan: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = QLORA.replace("lora_alpha: 64", "lora_alpha: 64\nlora_dropuot: 0.1").replace("sequence_len: {length}\n", "")
    path.write_text(text.format(batch=1) + '"\\e[31mred": 1\n')
    code, out, _ = plan("--from", str(path), "--gpus", "rtx-4090", "--fast")
    assert code == 0 and "\x1b" not in out and "?[31mred" in out
    assert "lora_dropuot (did you mean lora_dropout?)" in " ".join(out.split())
    assert "sequence_len 512, which is axolotl's default" in " ".join(out.split())


def test_a_formula_that_cannot_tell_says_so(plan: Run, tmp_path: Path) -> None:
    """A file that a dry run found to fit must not be refused flatly by the wider bar of the formula."""
    path = tmp_path / "mine.yaml"
    path.write_text(QLORA.format(length=512, batch=1))
    words = ("--from", str(path), "--gpus", "rtx-4090", "--fast")
    process = json.loads(plan(*words, "--json")[1])["chosen"]["price"]["interval_95"]["process_bytes"]
    middle = round(sum(process) / 2 / 2**20)
    code, out, _ = plan(*words, "--vram-budget", f"{middle}MiB", "--headroom", "0")
    said = " ".join(out.split())
    assert code == 3 and "by formula it may not fit (" in said and "a dry run decides: leave --fast out" in said


def test_a_file_in_a_new_folder_finds_its_data_and_leaves_secrets(
    plan: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data.jsonl").write_text("{}")
    more = (
        "datasets:\n  - path: my data.jsonl  # mine\n    type: alpaca\n  - path: tatsu-lab/alpaca\n"
        "  - {{path: json, data_files: [gone.jsonl]}}\n"
        "hf_token: hf_SECRET1\nenv: {{WANDB_API_KEY: SECRET2, A: b}}\nspecial_tokens:\n  pad_token: <pad>\n"
        "lr_scheduler: cosine\nwarmup_ratio: 0.03\n"
    )
    (tmp_path / "mine.yaml").write_text((QLORA + more).format(length=8192, batch=8))
    code, out, _ = plan("--from", "mine.yaml", "--gpus", "rtx-4090", "--fast", "--emit", "better", "--json")
    assert code == 3
    folder = tmp_path / "better"
    for path in folder.iterdir():
        assert "SECRET" not in path.read_text(), path.name
    assert "SECRET" not in out
    found = yaml.safe_load((folder / "mine.yaml").read_text())
    paths = [one["path"] for one in found["datasets"]]
    assert paths == [str(tmp_path.resolve() / "my data.jsonl"), "tatsu-lab/alpaca", "json"]
    assert (found["hf_token"], found["env"]) == (None, {"WANDB_API_KEY": None, "A": "b"})
    assert found["special_tokens"] == {"pad_token": "<pad>"}
    assert "# mine\n" in (folder / "mine.yaml").read_text()
    notes = " ".join(json.loads(out)["emitted"]["notes"])
    assert "hf_token is a secret" in notes and "WANDB_API_KEY is a secret" in notes and "gone.jsonl" in notes
    page = (folder / "README.md").read_text()
    assert "learning_rate 1e-4, lr_scheduler cosine, warmup_ratio 0.03" in page and "hf_token is a secret" in page
    assert "Changed so that it fits: micro-batches" in page and "No data were named" not in page


def test_a_file_that_needs_no_change_is_told_so(plan: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(QLORA.format(length=512, batch=1))
    folder = tmp_path / "same"
    code, _, _ = plan("--from", str(path), "--gpus", "rtx-4090", "--fast", "--emit", str(folder))
    assert code == 0 and (folder / "mine.yaml").read_text() == path.read_text()
    assert "nothing needed changing." in (folder / "README.md").read_text()
    assert not (folder / "mine.yaml.diff").exists()


def test_where_nothing_helps_the_page_says_so(plan: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(QLORA.format(length=512, batch=1).replace("Llama-3.2-1B", "Llama-3.1-405B"))
    folder = tmp_path / "same"
    code, out, _ = plan("--from", str(path), "--gpus", "rtx-4090", "--fast", "--emit", str(folder))
    assert code == 3 and "nothing that was tried makes it fit" in " ".join(out.split())
    assert out.splitlines()[-1].startswith("nothing was written") and not folder.exists()
    assert "Start" not in out and "axolotl train" not in out
    code, out, _ = plan("--from", str(path), "--gpus", "rtx-4090", "--fast", "--emit", str(folder), "--json")
    assert code == 3 and "emitted" not in json.loads(out) and not folder.exists()


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_written_of_a_file_has_the_price_that_was_shown(plan: Run, tmp_path: Path, fast: bool) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(QLORA.format(length=512, batch=1))
    folder = tmp_path / "same"
    more = ("--fast",) if fast else ()
    code, out, _ = plan("--from", str(path), "--gpus", "rtx-4090", "--emit", str(folder), *more)
    assert code == 0
    found = json.loads((folder / "plan.json").read_text())
    evidence = found["chosen"]["price"]["evidence"]
    assert evidence == ("formula" if fast else "dry run") and ("confirmed: dry run" in out) is not fast
    most = format_bytes(found["chosen"]["price"]["interval_95"]["process_bytes"][1])
    page = (folder / "README.md").read_text()
    assert f"at most {most}, by {evidence}" in page and f"at most {most}" in " ".join(out.split())
    assert page.count(", by ") == 1
