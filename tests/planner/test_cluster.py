"""Which GPUs NVLink joins: equal cards only, no more than a bridge holds, and on a live machine what the driver saw."""

import pytest

from estimators.catalogue import find_device
from estimators.hardware import Cluster, Gpu, Host, Link
from estimators.placement import used_cluster
from planner.cluster import cluster_of, hypothetical_cluster
from runners.probe import Probe


def described(*names: str, nodes: int = 1, link: Link | None = None) -> Cluster:
    return hypothetical_cluster([find_device(name) for name in names], nodes, Host(), link)


def live(name: str, *peers: str) -> Cluster:
    """GPUs "0", "1", ... of one kind; `peers` are the digits of those that each sees."""
    device = find_device(name)
    gpus = tuple(
        Gpu(device=device, total_bytes=device.total_bytes, uuid=str(at), nvlink_peers=tuple(seen))
        for at, seen in enumerate(peers)
    )
    return cluster_of(Probe(gpus=gpus, hidden=0, host=Host(), driver_version=None, absent=None), 1, Host(), None)


@pytest.mark.parametrize("card", ["rtx-a6000", "rtx-3090", "a100-pcie-80gb", "h100-nvl", "a40"])
def test_a_bridge_joins_two_equal_cards_only(card: str) -> None:
    assert described(card, card).peer_link == find_device(card).peer_link is not None
    assert described(*[card] * 4).peer_link is None
    assert used_cluster(described(*[card] * 4), 2).peer_link == find_device(card).peer_link


def test_switches_join_all_cards_of_a_node() -> None:
    assert described(*["h100"] * 8).peer_link == find_device("h100").peer_link


def test_different_cards_are_never_joined() -> None:
    assert described("rtx-3090", "a100-80gb").peer_link is None
    assert described("a100-80gb", "h100").peer_link is None


def test_the_link_that_the_user_describes_is_taken() -> None:
    link = Link(name="mine", bytes_per_second=1e9)
    one, two = described(*["rtx-4090"] * 2, link=link), described(*["rtx-4090"] * 2, nodes=2, link=link)
    assert (one.peer_link, one.node_link) == (link, None)
    assert (two.peer_link, two.node_link) == (None, link)


def test_a_live_machine_is_joined_where_its_gpus_see_each_other() -> None:
    assert live("h100", "1", "0").peer_link is not None
    assert live("h100", "", "").peer_link is None
    assert live("h100", "123", "023", "013", "012").peer_link is not None


def test_two_bridged_pairs_are_not_joined_to_each_other() -> None:
    pairs = live("v100-sxm2-16gb", "1", "0", "3", "2")
    assert pairs.peer_link is None
    assert used_cluster(pairs, 2).peer_link is not None


def test_some_other_peer_is_not_enough() -> None:
    """GPUs 0 and 1 each have a peer, but not among those that the job uses."""
    assert live("h100", "7", "8").peer_link is None


def test_a_job_within_one_node_has_no_link_between_nodes() -> None:
    cluster = described("h100", "h100", nodes=2)
    assert used_cluster(cluster, 2).node_link is None
    assert used_cluster(cluster, 4).node_link is not None
    assert (used_cluster(cluster, 4).size, used_cluster(cluster, 1).size) == (4, 1)
