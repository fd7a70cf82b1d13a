"""CUDA_VISIBLE_DEVICES is read as CUDA reads it: a table seen on real GPUs, and torch's parser as a second opinion."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.visible import CardNames, uses_ordinals, visible

A, B = "GPU-e754821e-fb3b-fd7b-0fc7-ba6a00a6ff2a", "GPU-83a4e07b-29b9-8045-f391-4ea2952c8f96"
TWO = [CardNames(uuid=A), CardNames(uuid=B)]
SHOWN = {"": [], "A": [(0, None)], "B": [(1, None)], "AB": [(0, None), (1, None)], "BA": [(1, None), (0, None)]}

SEEN = [
    # What cuInit and cuDeviceGetUuid answered on two H200s, driver 580.159.04 (2026-11-22).
    (None, "AB"), ("", ""), ("0", "A"), ("1", "B"), ("1,0", "BA"), ("0,1", "AB"), ("0,1,1", ""), ("0,0", ""),
    ("1gpu,0", "BA"), (" 1", "B"), ("1 ", "B"), ("+1", "B"), ("+", ""), ("-", ""), ("-1", ""), ("0,-1,1", "A"),
    ("-1,0", ""), ("00", "A"), ("01", "B"), ("0x1", "A"), ("-0", "A"), ("1 0", "B"), ("0, 1", "AB"), ("0,,1", "A"),
    (",1", ""), ("1,", "B"), ("0,99,1", "A"), ("99,0", ""), ("0,99,99", "A"), ("0,99,0", "A"), ("0,-1,0", "A"),
    ("0,a,0", "A"), ("0,1,2,0", "AB"), ("2147483648", ""), ("99999999999999999999", ""), ("0,-0", ""), ("1,01", ""),
    ("a", ""), ("NoDevFiles", ""), ("all", ""), ("0:0", "A"), ("1.0", "B"), ("0;1", "A"), ("1e0", "B"), ("١", ""),
    ("\t1", "B"), ("1\n", "B"), ("0,\n1", "AB"),
    (A, "A"), (f"{B},{A}", "BA"), (f"{A},{A}", ""), (A[:12], "A"), (B[:5], "B"), (f"{A},{B},{A}", ""), ("GPU-", ""),
    ("GPU", ""), (f"gpu-{A[4:]}", ""), (f"GPU-{A[4:].upper()}", "A"), (A[4:], ""), (f"{A},1", "A"), (f"1,{A}", "B"),
    (f"{A},GPU-zzz,{B}", "A"), (f"{A},GPU-zzz,{A}", "A"), (f"{A}, {B}", "A"), (f" {A}", ""), (f"{A} ", "A"),
    (f"{A}x", "A"), (f"{A[:12]}z", ""), (f"{A[:12]} ", ""), (f"{A[:-1]}z", ""), (f"{A}0", "A"), (f"{A[:-1]}", "A"),
    (f"{A},{A[:10]}", ""), (f"{A[:12]},{A[:12].upper()}", ""), (f"{A},{A}x", ""), ("GPU-e754-821e", "A"),
    (f"GPU-{A[4:].replace('-', '')}", "A"), ("GPU-e754821e--", "A"), (f"{B}:0", "B"), (f"MIG-{A}", ""), ("MIG-", ""),
    (f"{A},MIG-x", "A"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "shown"), SEEN)
def test_reads_the_variable_as_cuda_did(value: str | None, shown: str) -> None:
    assert visible(value, TWO) == SHOWN[shown]


def test_a_prefix_without_a_digit_names_not_even_the_only_gpu() -> None:
    """As seen on one H100, driver 580.159.04 (2026-11-22)."""
    assert visible("GPU-", TWO[:1]) == []
    assert visible("GPU-e", TWO[:1]) == SHOWN["A"]


MIG = CardNames(uuid=A, instances=(("MIG-11aa-0", f"MIG-{A}/1/0"), ("MIG-22bb-0", f"MIG-{A}/2/0")))


@pytest.mark.parametrize(
    ("value", "picks"),
    [
        (None, [(0, 0), (0, 1), (1, None)]),
        ("MIG-22bb-0", [(0, 1)]),
        ("MIG-22bb-0,MIG-11aa-0", [(0, 1), (0, 0)]),
        ("MIG-22", [(0, 1)]),
        (f"MIG-{A}/2/0", [(0, 1)]),
        ("MIG-22bb-0,MIG-22bb-0", []),
        (f"MIG-22bb-0,MIG-{A}/2/0", []),
        ("MIG-", []),
        ("MIG-22bb-0,MIG-zz,MIG-11aa-0", [(0, 1)]),
        (f"MIG-22bb-0,{B}", [(0, 1)]),
        ("MIG-22bb-0,1", [(0, 1)]),
        (A, [(0, 0), (0, 1)]),
        ("1,0", [(1, None), (0, 0), (0, 1)]),
    ],
)
def test_an_instance_is_a_target_of_its_own(value: str | None, picks: list[tuple[int, int | None]]) -> None:
    assert visible(value, [MIG, CardNames(uuid=B)]) == picks


def test_two_cards_in_mig_mode_without_instances_are_no_repetition() -> None:
    empty = [CardNames(uuid=A, instances=()), CardNames(uuid=B, instances=())]
    assert visible("0,1", [*empty, CardNames(uuid="GPU-33")]) == []
    assert visible("0,1,2", [*empty, CardNames(uuid="GPU-33")]) == [(2, None)]


def test_a_card_without_a_uuid_is_reached_by_ordinal_only() -> None:
    assert visible("0", [CardNames(uuid=None)]) == [(0, None)]
    assert visible("GPU-", [CardNames(uuid=None)]) == []


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), ("", False), (A, False), ("MIG-1", False), ("0", True), (" +1x", True)]
)
def test_knows_whether_the_order_of_cards_matters(value: str | None, expected: bool) -> None:
    assert uses_ordinals(value) is expected


CARDS = 12
UUIDS = [f"GPU-{'0123456789ab'[number] * 2}{number:02d}ffff-0000-0000-0000-000000000000" for number in range(CARDS)]


def _ordinal(number: int) -> st.SearchStrategy[str]:
    return st.sampled_from(
        [f"{number}", f" {number}", f"+{number}", f"0{number}", f"{number}x", f"{number} 3", f"{number}-"]
    )


def _uuid(number: int) -> st.SearchStrategy[str]:
    return st.integers(5, len(UUIDS[number])).map(lambda length: UUIDS[number][:length])


ENDS = ["", "-1", "-7x", "a", "99", "12", " ", "GPU-zz", "GPU-", "gpu-00", "MIG-00", "x1", "GPU", ";"]


@st.composite
def _values(draw: st.DrawFn) -> str:
    """Elements that name cards, perhaps some twice; then at most one of each element that names none.

    torch and CUDA differ where something is repeated behind that, which the table above covers.
    """
    named = st.integers(0, CARDS - 1).flatmap(draw(st.sampled_from([_ordinal, _uuid])))
    head = draw(st.lists(named, max_size=6))
    return ",".join([*head, *draw(st.lists(st.sampled_from(ENDS), unique=True, max_size=4))])


def _as_torch_says(cuda: Any, value: str, patch: pytest.MonkeyPatch) -> list[int]:
    patch.setenv("CUDA_VISIBLE_DEVICES", value)
    parsed = cuda._parse_visible_devices()
    if parsed and isinstance(parsed[0], str):
        return list(cuda._transform_uuid_to_ordinals(parsed, UUIDS))
    count = next((place for place, ordinal in enumerate(parsed) if ordinal >= CARDS), len(parsed))
    return list(parsed[:count])


@pytest.fixture(scope="module")
def cuda() -> Any:
    module = pytest.importorskip("torch.cuda", reason="torch is not installed")
    if not hasattr(module, "_parse_visible_devices") or not hasattr(module, "_transform_uuid_to_ordinals"):
        pytest.skip("this torch has no parser to compare with")
    return module


@settings(max_examples=400, deadline=None)
@given(value=_values())
def test_agrees_with_torch(cuda: Any, value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        expected = _as_torch_says(cuda, value, patch)
    shown = visible(value, [CardNames(uuid=uuid) for uuid in UUIDS])
    assert [place for place, _ in shown] == expected


@settings(max_examples=300, deadline=None)
@given(value=st.text(st.sampled_from("0123456789+-,GPUMIGabcdef \t\n/٣²"), max_size=40))
def test_any_text_gives_each_card_at_most_once(value: str) -> None:
    shown = visible(value, [MIG, *(CardNames(uuid=uuid) for uuid in UUIDS)])
    assert len(set(shown)) == len(shown)
    assert all(place <= CARDS for place, _ in shown)


def test_a_number_too_long_to_convert_names_no_card() -> None:
    assert visible("9" * 5000 + ",0", TWO) == []
