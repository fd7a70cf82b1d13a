"""Which GPUs CUDA_VISIBLE_DEVICES shows, and in which order, read as CUDA reads it.

The rules were seen on H200s and an H100 with driver 580.159.04 (tests/runners/test_visible.py has the table). torch's
own parser agrees but for four things: it wants a UUID's very letters and nothing behind a whole UUID, takes "GPU-" for
the only GPU, and counts a repetition behind the first invalid element. CUDA alone decides what a job gets.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"
_ORDINAL = re.compile(r"\s*([+-]?[0-9]{1,4000})", re.ASCII)
"""As for strtoul, what follows the digits does not count. (Python converts no more than 4,300 digits.)"""

Pick = tuple[int, int | None]
"""The position of a card, and of the MIG instance on it; None where the card is not in MIG mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardNames:
    """What a card, and each of its MIG instances, answers to. Cards stand in the order of CUDA's ordinals."""

    uuid: str | None
    instances: tuple[tuple[str, ...], ...] | None = None
    """One tuple of names an instance; None where the card is not in MIG mode."""

    def picks(self, position: int) -> list[Pick]:
        if self.instances is None:
            return [(position, None)]
        return [(position, number) for number in range(len(self.instances))]


def uses_ordinals(value: str | None) -> bool:
    """True where `value` names GPUs by ordinal, which depends on the order in which CUDA counts them."""
    return value is not None and _ORDINAL.match(value) is not None


def visible(value: str | None, cards: Sequence[CardNames]) -> list[Pick]:
    """The GPUs that a process with this CUDA_VISIBLE_DEVICES may use, in CUDA's order; None is an unset variable.

    The first element decides whether all are ordinals, GPU- or MIG- UUIDs; the first that names no GPU of that kind
    ends the list, and a GPU named twice before that empties it. An ordinal or UUID of a card in MIG mode means all its
    instances, each a target of its own, although one process gets only one of them.
    """
    if value is None:
        return [pick for position, card in enumerate(cards) for pick in card.picks(position)]
    chosen: list[Pick] = []
    for element in value.split(","):
        pick = _resolve(element, value[:4], cards)
        if pick is None:
            break
        if pick in chosen:
            return []
        chosen.append(pick)
    targets = [cards[place].picks(place) if number is None else [(place, number)] for place, number in chosen]
    return [pick for picks in targets for pick in picks]


def _resolve(element: str, kind: str, cards: Sequence[CardNames]) -> Pick | None:
    """The card or MIG instance that one element names, or None where that is nothing or more than one."""
    if kind not in ("GPU-", "MIG-"):
        match = _ORDINAL.match(element)
        ordinal = int(match[1]) if match else -1
        return (ordinal, None) if 0 <= ordinal < len(cards) else None
    if not element.startswith(kind):
        return None
    found: list[Pick]
    if kind == "GPU-":
        found = [(place, None) for place, card in enumerate(cards) if card.uuid and _names_card(element, card.uuid)]
    else:
        found = [
            (place, number)
            for place, card in enumerate(cards)
            for number, names in enumerate(card.instances or ())
            if any(name.lower().startswith(element.lower()) for name in names)
        ]
    return found[0] if len(found) == 1 else None


def _names_card(element: str, uuid: str) -> bool:
    """Whether the element's hexadecimal digits begin this UUID; hyphens and whatever follows all digits are free."""
    digits, named = (text[4:].replace("-", "").lower() for text in (uuid, element))
    return bool(named) and digits.startswith(named[: len(digits)])
