"""/metrics, as Prometheus and the page read it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from magistral_mlx.server.settings import Limits, Settings
from tests.scripted import write_scripted_checkpoint
from tests.serving import CHAT, Server, live_server, wait_until, write_endless_checkpoint

SUM = "What is 37 + 85?"


@pytest.fixture
def fresh() -> Iterator[Server]:
    """A server that nobody has asked anything."""
    with live_server() as running:
        yield running


def test_the_document_is_prometheus_own_format(fresh: Server):
    fresh.ask(SUM)
    families = {family.name for family in text_string_to_metric_families(fresh.get("/metrics")[1])}
    assert {
        "magistral_requests",
        "magistral_answers",
        "magistral_tokens",
        "magistral_cache_hits",
        "magistral_loops",
        "magistral_time_to_first_token_seconds",
        "magistral_prefill_tokens_per_second",
        "magistral_decode_tokens_per_second",
        "magistral_running",
        "magistral_queue_length",
        "magistral_memory_bytes",
        "magistral_model_loaded",
    } <= families


def test_tokens_are_those_that_the_answers_tell(fresh: Server):
    usages = [fresh.ask(question)[1]["usage"] for question in (SUM, "What is 5 + 6?")]
    prompt = sum(usage["prompt_tokens"] for usage in usages)
    thinking = sum(usage["completion_tokens_details"]["reasoning_tokens"] for usage in usages)
    completion = sum(usage["completion_tokens"] for usage in usages)
    wait_until(lambda: fresh.metric("magistral_answers_total", reason="stop") == 2)
    assert fresh.metric("magistral_tokens_total", kind="prompt") == prompt
    assert fresh.metric("magistral_tokens_total", kind="thinking") == thinking > 0
    assert fresh.metric("magistral_tokens_total", kind="answer") == completion - thinking > 0


def test_a_prompt_that_begins_like_an_earlier_one_is_a_hit(fresh: Server):
    fresh.ask(SUM)
    assert fresh.metric("magistral_cache_hits_total") == 0
    usage = fresh.ask(SUM)[1]["usage"]
    assert fresh.metric("magistral_cache_hits_total") == 1
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert fresh.metric("magistral_tokens_total", kind="cached") == cached > 0


def test_requests_are_counted_by_endpoint_and_status(fresh: Server):
    fresh.ask(SUM)
    fresh.ask(SUM, temperature="hot")
    fresh.get("/v1/models/demo")
    for n in range(3):
        fresh.get(f"/no/such/thing/{n}")
    name = "magistral_requests_total"
    assert fresh.metric(name, endpoint=CHAT, status="200") == 1
    assert fresh.metric(name, endpoint=CHAT, status="400") == 1
    assert fresh.metric(name, endpoint="/v1/models/{id}", status="200") == 1
    assert fresh.metric(name, endpoint="other", status="404") == 3


def test_speeds_and_the_wait_for_the_first_token_are_measured_for_each_answer(fresh: Server):
    for n in range(3):
        fresh.ask(f"What is {n} + 85?")
    wait_until(lambda: fresh.metric("magistral_time_to_first_token_seconds_count") == 3)
    assert fresh.metric("magistral_time_to_first_token_seconds_sum") > 0
    assert fresh.metric("magistral_prefill_tokens_per_second_count") == 3
    assert fresh.metric("magistral_decode_tokens_per_second_count") == 3


def test_memory_is_told_by_kind(fresh: Server):
    def memory(kind: str) -> float:
        return fresh.metric("magistral_memory_bytes", kind=kind)

    weights = memory("weights")
    assert 5_000_000 < weights < memory("limit")
    assert memory("kv_cache") == 0
    fresh.ask(SUM)
    wait_until(lambda: memory("kept_cache") > 0)
    assert memory("peak") > weights
    image = base64.b64encode(Path("examples/circle.png").read_bytes()).decode()
    url = {"url": f"data:image/png;base64,{image}"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "What is it?"}]
    assert fresh.post(CHAT, {"messages": [{"role": "user", "content": content}]})[0] == 200
    assert memory("weights") > weights, "the vision tower came with the first image"


def test_what_runs_and_waits_is_told_while_it_does(tmp_path: Path):
    endless = write_endless_checkpoint(tmp_path / "endless")
    red = write_scripted_checkpoint(tmp_path / "red", ["[/INST]", "Red", "</s>"])
    settings = Settings(models=(str(endless), str(red)), limits=Limits(tokens=4000))
    with live_server(settings) as server, server.streaming("Go", model="endless") as first:
        next(first)
        with server.streaming("Go", model="endless") as second:
            for _ in range(20):
                next(second)
            assert server.metric("magistral_running") == 2
            assert server.metric("magistral_queue_length") == 0
            assert server.metric("magistral_memory_bytes", kind="kv_cache") > 0
        assert server.metric("magistral_model_loaded", model="endless") == 1
        assert server.metric("magistral_model_loaded", model="red") == 0
    assert server.service.queue.running == 0


def test_a_trace_that_was_closed_as_a_loop_is_counted(tmp_path: Path):
    words = " again and"
    folder = write_scripted_checkpoint(
        tmp_path / "circling", ["[/INST]", "[THINK]", words, words], context=4096
    )
    with live_server(Settings(models=(str(folder),))) as server:
        server.ask("Go", max_tokens=1500)
        assert server.metric("magistral_loops_total") == 1
