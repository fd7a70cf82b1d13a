"""Device profiles on disk: one for each card in each machine, and a damaged one costs a line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import profiles
from estimators.device_profile import DeviceProfile, profile_document, profile_from_document
from estimators.errors import BadInput
from runners.calibrations import CannotKeepError, find, folder_of, keep
from tests.entries import machine

BOX, OTHER = machine("box"), machine("other")


@pytest.fixture
def profile() -> DeviceProfile:
    shipped = profile_from_document(json.loads(profiles.read("calibrations", "h200.json")))
    return replace(shipped, machine=BOX, seconds_since_epoch=1000.0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def test_a_machine_has_one_profile_for_each_kind_of_card(profile: DeviceProfile, store: Path) -> None:
    first = keep(profile, store)
    newer = replace(profile, seconds_since_epoch=2000.0, figures={"copy": 4e12})
    assert keep(newer, store) == first
    keep(replace(profile, machine=OTHER), store)
    keep(replace(profile, gpu="rtx-4090"), store)
    found = find("h200-sxm", BOX, store)
    assert found is not None
    assert (found, found.figures) == (newer, newer.figures)
    assert len(list(folder_of(store).iterdir())) == 3


def test_another_machine_has_none(profile: DeviceProfile, store: Path) -> None:
    keep(profile, store)
    assert find("h200-sxm", OTHER, store) is None
    assert find("rtx-4090", BOX, store) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"schema_version": 1', '"schema_version": 7'),
        lambda text: text.replace('"gpu": "h200-sxm"', '"gpu": "rtx-4090"'),
        lambda text: "[" * 100_000,
    ],
    ids=["cut", "another schema", "another card", "nested"],
)
def test_a_profile_that_cannot_be_used_costs_a_line(profile: DeviceProfile, store: Path, damage: object) -> None:
    assert callable(damage)
    path = keep(profile, store)
    path.write_text(damage(path.read_text()))
    lines: list[str] = []
    assert find("h200-sxm", BOX, store, lines.append) is None
    assert len(lines) == 1
    assert str(path) in lines[0]


def test_a_profile_that_cannot_be_kept_says_so_and_leaves_the_one_before(profile: DeviceProfile, store: Path) -> None:
    folder_of(store).parent.mkdir(parents=True, exist_ok=True)
    folder_of(store).write_text("in the way")
    with pytest.raises(CannotKeepError, match="cannot keep the device profile"):
        keep(profile, store)
    assert folder_of(store).read_text() == "in the way"


def test_the_document_is_whole(profile: DeviceProfile, store: Path) -> None:
    path = keep(profile, store)
    assert json.loads(path.read_text()) == profile_document(profile)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_card_whose_name_begins_like_another_is_another(profile: DeviceProfile, store: Path) -> None:
    for name in ("rtx-4070", "rtx-4070-ti", "rtx-4070-mig-1g"):
        keep(replace(profile, gpu=name), store)
    lines: list[str] = []
    found = find("rtx-4070", BOX, store, lines.append)
    assert found is not None and found.gpu == "rtx-4070"
    assert lines == []


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), 0.0])
def test_a_profile_that_nobody_could_read_again_is_not_kept(profile: DeviceProfile, store: Path, figure: float) -> None:
    path = keep(profile, store)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="copy"):
        keep(replace(profile, figures={"copy": figure}), store)
    assert path.read_bytes() == before
