"""Looking models up as people type them, and refusing hostile files in one line, quickly and without torch."""

import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import estimators
from estimators import models
from estimators.config_json import parse_config
from estimators.errors import BadInput, UnknownName
from estimators.model import ModelSpec
from estimators.models import aliases, build, load_config, load_model, names

LLAMA = dict(load_config("llama-2-7b").fields)


def write(folder: Path, config: object, name: str = "config.json") -> Path:
    path = folder / name
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return path


def refusal(folder: Path, config: object) -> str:
    """The one line that a config.json is refused with."""
    with pytest.raises(BadInput) as caught:
        load_model(str(write(folder, config)))
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("llama-7b", "llama-7b"),
        ("huggyllama/llama-7b", "llama-7b"),
        ("meta-llama/Llama-3.2-1B", "llama-3.2-1b"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("META-LLAMA/META-LLAMA-3.1-8B-INSTRUCT", "llama-3.1-8b"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b-v0.1"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("google/gemma-3-4b-it", "gemma-3-4b"),
        ("gpt2", "gpt2"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("EleutherAI/pythia-2.8b-deduped", "pythia-2.8b"),
        ("tinyllama", "tinyllama-1.1b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek-r1-distill-qwen-7b"),
    ],
)
def test_names_resolve_as_people_type_them(typed: str, name: str) -> None:
    assert load_model(typed).name == name


def test_every_name_and_alias_loads() -> None:
    for name in names():
        assert isinstance(load_model(name), ModelSpec)
    for alias, name in aliases().items():
        assert load_model(alias) is load_model(name)


def test_a_name_of_its_own_is_found_fast() -> None:
    load_model("llama-13b")  # opens the catalogue once
    seconds = []
    for name in ("llama-30b", "opt-66b", "llama-3.1-405b"):  # a busy machine may slow one down
        models._profile.cache_clear()
        models._catalogued.cache_clear()
        start = time.process_time()
        load_model(name)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.002
    assert models._profile.cache_info().currsize == 1  # no other file was read


def test_paths_and_folders_load_as_their_config_says(tmp_path: Path) -> None:
    folder = tmp_path / "my-finetune"
    folder.mkdir()
    path = write(folder, {**LLAMA, "num_hidden_layers": 3, "auto_map": {"AutoModel": "evil.Model"}})
    for typed in (str(path), str(folder)):
        model = load_model(typed)
        assert model.name == "my-finetune"
        assert len(model.layers) == 3
    assert load_model(str(write(tmp_path, LLAMA, "other.json"))).parameters == load_model("llama-2-7b").parameters


def test_a_folder_called_like_a_catalogued_model_is_reached_by_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-7b").mkdir()
    write(tmp_path / "llama-7b", {**LLAMA, "num_hidden_layers": 3})
    assert len(load_model("llama-7b").layers) == 32
    assert len(load_model("./llama-7b").layers) == 3


def test_hub_ids_are_fetched_only_where_the_catalogue_and_the_disk_have_none() -> None:
    asked: list[str] = []

    def fetch(hub_id: str) -> Mapping[str, object]:
        asked.append(hub_id)
        return LLAMA

    assert load_model("someone/my-llama", fetch).name == "someone/my-llama"
    load_model("meta-llama/Llama-2-7b-hf", fetch)
    with pytest.raises(UnknownName):
        load_model("not a hub id", fetch)
    with pytest.raises(UnknownName):
        load_model("../etc", fetch)
    assert asked == ["someone/my-llama"]


def test_unknown_names_are_refused_with_their_neighbours() -> None:
    with pytest.raises(UnknownName, match=r"unknown model 'lama-3.1-8b'; did you mean llama-3.1-8b"):
        load_model("lama-3.1-8b")
    for odd in ("", "\0", "x" * 5000, "nobody/nothing", "~/no-such-folder", "/no/such/config.json", "\udcff"):
        with pytest.raises(UnknownName):
            load_model(odd)


def test_a_path_without_a_config_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no config\.json in this folder"):
        load_model(str(tmp_path))
    with pytest.raises(BadInput, match="not a regular file"):
        load_model("/dev/zero")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": None}, "hidden_size is null"),
        ({"hidden_size": True}, "hidden_size must be a whole number, not true"),
        ({"hidden_size": 4096.0}, "hidden_size must be a whole number, not 4096.0"),
        ({"hidden_size": "4096"}, "hidden_size must be a whole number, not '4096'"),
        ({"hidden_size": 0}, "hidden_size must be between 1 and 1,000,000, not 0"),
        ({"hidden_size": 1_000_064}, "hidden_size must be between"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be between 1 and 10,000, not -1"),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers must be between"),
        ({"vocab_size": 10**8 + 1}, "vocab_size must be between"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings must be a whole number"),
        ({"num_attention_heads": 33}, "num_attention_heads of 33 does not divide hidden_size of 4096"),
        ({"num_key_value_heads": 5}, "num_key_value_heads of 5 does not divide num_attention_heads of 32"),
        ({"num_key_value_heads": 64}, "num_key_value_heads of 64 does not divide"),
        ({"head_dim": 127}, "head_dim gives heads of odd size 127"),
        ({"hidden_size": 4064, "num_attention_heads": 32}, "heads of odd size 127"),
        ({"hidden_act": "exec"}, "hidden_act must be one of"),
        ({"attention_dropout": 1.5}, "attention_dropout must be a number from 0 to 1"),
        ({"attention_dropout": True}, "attention_dropout must be a number from 0 to 1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"attention_bias": 1}, "attention_bias must be true or false, not 1"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder must be false"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised by 'gptq'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is there (the weights are quantised)"),
        ({"quantization_config": "int4"}, "quantization_config is there"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": 7}, "model_type must be a text"),
    ],
)
def test_wrong_fields_are_refused_by_name(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    assert expected in refusal(tmp_path, {**LLAMA, **changes})


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
def test_geometry_is_never_defaulted(tmp_path: Path, field: str) -> None:
    config = {key: value for key, value in LLAMA.items() if key != field}
    assert f"{field} is missing" in refusal(tmp_path, config)


def test_a_field_that_old_checkpoints_omit_follows_transformers(tmp_path: Path) -> None:
    old = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert load_model(str(write(tmp_path, old))).layers[0].attention.key_value_heads == 32


def test_unknown_families_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    line = refusal(tmp_path, {**LLAMA, "model_type": "t5"})
    assert "'t5'" in line
    assert "llama" in line
    assert "qwen3_moe" in line


def test_a_text_model_inside_a_larger_one_is_used_only_where_its_family_is_known(tmp_path: Path) -> None:
    # The released Gemma 3 4B names four sizes in its text_config and leaves the others to transformers.
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}
    assert load_model(str(write(tmp_path, whole))).parameters == load_model("gemma-3-4b").parameters
    assert "text_config has model_type 'clip_text'" in refusal(
        tmp_path, {**whole, "text_config": {**text, "model_type": "clip_text"}}
    )
    quantised = {**whole, "quantization_config": {"quant_method": "awq"}}
    assert "the weights are quantised by 'awq'" in refusal(tmp_path, quantised)
    assert "text_config must be a mapping" in refusal(tmp_path, {**whole, "text_config": ["llama"]})
    # Outside that wrapper nothing is filled in.
    assert "num_attention_heads is missing" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not JSON"),
        ("[]", "must hold one JSON object, not a list of 0"),
        ("null", "must hold one JSON object, not null"),
        ('{"hidden_size": NaN}', "NaN is not JSON"),
        ('{"hidden_size": -Infinity}', "-Infinity is not JSON"),
        ('{"hidden_size": 1e999}', "out of range"),
        ('{"hidden_size": 1' + "0" * 5000 + "}", "a number of 5001 digits"),
        ('{"hidden_size": 1, "hidden_size": 2}', "'hidden_size' occurs 2 times"),
        ('{"a": {"b": 1, "b": 2}}', "'b' occurs 2 times"),
        ('{"a": ' * 21 + "1" + "}" * 21, "nested deeper than 20 levels"),
        ("[" * 400_000, "nested deeper than 20 levels"),
        ('{"a": "' + "x" * 1_000_001 + '"}', "larger than 1,000,000 bytes"),
        ('{"a": "\x01"}', "not JSON"),
        ("{'hidden_size': 1}", "not JSON"),
        ('{"hidden_size": 1} trailing', "not JSON"),
    ],
)
def test_text_that_is_not_one_plain_json_object_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    start = time.process_time()
    assert expected in refusal(tmp_path, text)
    assert time.process_time() - start < 1


def test_large_files_are_refused_within_a_second(tmp_path: Path) -> None:
    keys = ", ".join(f'"{number}": 1' for number in range(60_000))
    assert "'7' occurs 2 times" in refusal(tmp_path, "{" + keys + ', "7": 1}')
    for text in ('{"a": [' + "[]," * 300_000 + "[]]}", '{"a": "' + "\\u0000" * 150_000 + '"}'):
        # As the command does, which collects no garbage while it plans: this process holds far more than a plan's.
        gc.collect()
        gc.disable()
        start = time.process_time()
        refusal(tmp_path, text)
        seconds = time.process_time() - start
        gc.enable()
        assert seconds < 1


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadInput, match="not JSON"):
        load_model(str(tmp_path))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\ 0123456789eE+-.truefalsn', max_size=60))
def test_any_bytes_give_an_object_or_a_refusal(junk: bytes | str) -> None:
    text = junk if isinstance(junk, bytes) else junk.encode()
    try:
        assert isinstance(parse_config(text, "junk"), dict)
    except BadInput as error:
        assert "\n" not in str(error)


JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-2, max_value=300)
    | st.sampled_from([10**4, 10**6, 10**8, 10**12, 10**5000])
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(-3, 50) | st.sampled_from(["full_attention", "sliding_attention", "x"]), max_size=40)
    | st.dictionaries(st.sampled_from(["partial_rotary_factor", "rope_theta"]), st.floats() | st.none(), max_size=2)
)
ONE_OF_EACH = {str(load_config(name).fields["model_type"]): name for name in names()}
EVERY_FIELD = sorted({field for name in names() for field in load_config(name).fields} | {"layer_types", "head_dim"})


@settings(deadline=None, max_examples=600)
@given(st.data())
def test_any_change_of_a_good_config_gives_a_model_or_a_refusal(data: st.DataObject) -> None:
    config = load_config(data.draw(st.sampled_from(sorted(ONE_OF_EACH.values()))))
    fields = dict(config.fields)
    own = st.sampled_from(sorted(fields))
    for field in data.draw(st.lists(own | st.sampled_from(EVERY_FIELD), min_size=1, max_size=3)):
        if data.draw(st.integers(0, 4)) == 0:
            fields.pop(field, None)
        else:
            fields[field] = data.draw(JUNK)
    start = time.process_time()
    try:
        model = build(type(config)(name="mutant", source="mutant", fields=fields))
    except BadInput as error:
        assert "\n" not in str(error)
    else:
        assert model.parameters > 0
        assert 0 < model.active_parameters <= model.parameters
    assert time.process_time() - start < 1


def test_reading_configs_imports_no_torch_and_runs_no_code() -> None:
    code = "import sys; from estimators.models import load_model; load_model('qwen3-30b-a3b'); print(*sys.modules)"
    root = str(Path(estimators.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": root}, capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"torch", "transformers", "urllib.request", "socket"} & set(done.stdout.split())
