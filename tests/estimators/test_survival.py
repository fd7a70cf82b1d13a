"""Survival under a cap: the forked replay says what replaying at every step says."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators.allocator import Event, replay
from estimators.survival import STEP_BYTES, survives
from estimators.units import MIB


def job(seed: int, length: int) -> list[Event]:
    """Tensors that come and go: sizes of few kinds, as in training, so that fragments are met again."""
    order = random.Random(seed)
    kinds = [order.randrange(1, 40 * MIB) for _ in range(5)] + [order.randrange(1, MIB)]
    events, live = [], []
    for key in range(length):
        events.append(Event("allocate", key, order.choice(kinds)))
        live.append(key)
        while live and order.random() < 0.45:
            events.append(Event("free", live.pop(order.randrange(len(live)))))
    return events


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(0.8, 1.1), st.integers(0, 12), st.booleans(), st.booleans())
def test_it_is_what_a_replay_at_every_step_says(
    seed: int, share: float, steps: int, expandable: bool, loads: bool
) -> None:
    events = job(seed, 60)
    start = 10 if loads else 0
    cap = int(replay(events, expandable=expandable).peak_reserved_bytes * share)
    low = max(1, cap - steps * STEP_BYTES - 5 * MIB)
    ended = survives(events, cap, low, expandable, start)
    found = {at: replay(events, at, expandable, start) for at in {low, *range(cap, low, -STEP_BYTES)}}
    assert ended.survives == all(one.survives for one in found.values())
    assert ended.retries == found[cap].retries
    assert ended.tight == (ended.survives and found[cap].retries > 0)
    if ended.deadly_bytes is not None:
        assert not found[ended.deadly_bytes].survives
        assert (ended.deadly_bytes == cap) == (not found[cap].survives)


def test_a_lower_cap_may_live_where_a_higher_one_dies() -> None:
    """A flush comes earlier under the lower cap, while what fragments memory later is still free to be placed."""
    for seed in range(2000):
        events = job(seed, 40)
        top = replay(events).peak_reserved_bytes
        lives = [replay(events, cap).survives for cap in range(top, top // 2, -2 * MIB)]
        if any(not higher and lower for higher, lower in pairwise(lives)):
            return
    pytest.fail("survival was monotone in every job: it need not be asked at every step")


def test_a_generous_cap_needs_no_retry_and_an_impossible_one_dies() -> None:
    events = job(1, 50)
    peak = replay(events)
    roomy = survives(events, peak.peak_reserved_bytes + MIB, peak.peak_reserved_bytes)
    assert (roomy.survives, roomy.retries, roomy.tight) == (True, 0, False)
    dead = survives(events, peak.peak_allocated_bytes - 1, peak.peak_allocated_bytes - 40 * MIB)
    assert (dead.survives, dead.deadly_bytes) == (False, peak.peak_allocated_bytes - 1)
