"""The rules file: documented, replaceable, and refused by name where it is wrong."""

from pathlib import Path

import pytest

import profiles
from estimators.errors import PlanError
from planner.rules import load_rules

GOOD = profiles.read("rules", "default.toml")


def test_the_products_own_rules_are_the_documented_ones() -> None:
    rules = load_rules()
    assert [rung.method for rung in rules.ladder] == ["full", "lora", "qlora"]
    assert (rules.defaults.sequence_length, rules.defaults.global_batch, rules.defaults.rank) == (2048, 16, 16)
    assert rules.defaults.alpha_per_rank == 4
    assert [rule.method for rule in rules.vram_rules] == ["qlora", "lora", "full", "lora"]


def test_a_file_of_ones_own_replaces_them(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(GOOD.replace("rank = 16", "rank = 64"))
    assert load_rules(str(file)).defaults.rank == 64


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("rank = 16", "rank = -1", "rank"),
        ("rank = 16", 'rank = "16"', "rank"),
        ("rank = 16", "rnak = 16", "rnak"),
        ("rank = 16\n", "", "rank"),
        ('adapter = "dora"', 'adapter = "dra"', "dra"),
        ('"adamw_8bit"', '"adamw_9bit"', "adamw_9bit"),
        ('weights = "float32"', 'weights = "float64"', "float64"),
        ("[[ladder]]", "[[lader]]", "lader"),
        ('method = "full"\n\n[[vram_rules]]', 'method = "fool"\n\n[[vram_rules]]', "fool"),
        ("[defaults]", "[defaults", "TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in GOOD
    file = tmp_path / "rules.toml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(PlanError) as refusal:
        load_rules(str(file))
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_a_missing_file_is_named() -> None:
    with pytest.raises(PlanError, match=r"nowhere\.toml"):
        load_rules("nowhere.toml")
