"""The peers that count as alive: a process judges them only by the heartbeats that it has seen."""

from services.allocation.lease import LEASE_SECONDS, Peer, Peers

HEARTBEAT_SECONDS = 0.25


def watch_heartbeats(peers: Peers, start: float, seconds: float, **beats: bool) -> float:
    """Look at every heartbeat for this long, while only the named peers beat. Return the time at the end."""
    end = start + seconds
    now = start
    while now < end:
        now += HEARTBEAT_SECONDS
        peers.look([Peer(name, int(now * 1000) if beats_ else 1, True) for name, beats_ in beats.items()], now)
    return now


def test_a_peer_with_heartbeats_is_alive() -> None:
    peers = Peers()
    watch_heartbeats(peers, 0, 3 * LEASE_SECONDS, me=True, other=True)
    assert peers.stale == []
    assert peers.alive == 2


def test_a_stopped_peer_is_stale_after_the_lease_and_not_before() -> None:
    peers = Peers()
    now = watch_heartbeats(peers, 0, LEASE_SECONDS, me=True, other=False)
    assert peers.stale == []
    watch_heartbeats(peers, now, 2 * HEARTBEAT_SECONDS, me=True, other=False)
    assert peers.stale == ["other"]
    assert peers.alive == 1


def test_a_stale_peer_with_a_new_heartbeat_is_alive() -> None:
    peers = Peers()
    now = watch_heartbeats(peers, 0, 2 * LEASE_SECONDS, me=True, other=False)
    assert peers.stale == ["other"]
    watch_heartbeats(peers, now, HEARTBEAT_SECONDS, me=True, other=True)
    assert peers.stale == []


def test_no_peer_becomes_stale_while_the_database_is_unavailable() -> None:
    peers = Peers()
    now = watch_heartbeats(peers, 0, 1, me=True, other=True)
    last = int(now * 1000)
    for stalled in (10.0, 60.0, 3600.0):
        now += stalled
        peers.look([Peer("me", int(now * 1000), True), Peer("other", last, True)], now)
        assert peers.stale == []
        now += HEARTBEAT_SECONDS
        last = int(now * 1000)
        peers.look([Peer("me", last, True), Peer("other", last, True)], now)


def test_a_peer_without_a_session_is_neither_counted_nor_stale() -> None:
    peers = Peers()
    now = watch_heartbeats(peers, 0, 2 * LEASE_SECONDS, me=True, other=False)
    peers.look([Peer("me", int(now * 2000), True), Peer("other", 1, False)], now + HEARTBEAT_SECONDS)
    assert peers.stale == []
    assert peers.alive == 1
