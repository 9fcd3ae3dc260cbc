"""Many at once: nothing lost, nothing mixed up, memory back to where it was."""

from __future__ import annotations

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.server.settings import Settings
from tests.serving import live_server, wait_until
from tests.soaking import alone, questions, soak

CLIENTS, REQUESTS, DISTINCT = 64, 128, 16


def test_64_clients_some_of_whom_hang_up_get_what_they_would_get_alone():
    asks = questions(REQUESTS, DISTINCT, seed=3)
    with live_server(Settings(models=("demo",), load=LoadOptions(parallel=16))) as server:
        expected = alone(server.port, asks)
        outcome = soak(server.port, asks, CLIENTS, expected)
        wait_until(lambda: server.service.queue.running + server.service.queue.waiting == 0)
        assert outcome.mistakes == []
        assert outcome.counts["whole"] >= sum(ask.leave_after is None for ask in asks)
        assert outcome.counts["left"] > 10
        resident = server.service.pool.resident
        assert resident is not None
        wait_until(lambda: resident.activity.running == 0)
        activity = resident.activity
        assert (activity.waiting, activity.memory.caches) == (0, 0)
