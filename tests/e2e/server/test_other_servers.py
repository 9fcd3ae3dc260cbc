"""Endpoints of vLLM and llama-server, and those that this model has nothing for."""

from __future__ import annotations

from typing import Any

import pytest

from magistral_mlx.chat.messages import RawPrompt
from tests.serving import CHAT, Server

SUM = [{"role": "user", "content": "What is 37 + 85?"}]


def test_text_becomes_tokens_and_text_again(server: Server):
    for text in ("What is 37 + 85?", "Grüße, 世界 🙂", " [INST] ", ""):
        told = server.post("/tokenize", {"content": text})[1]
        assert told["count"] == len(told["tokens"]) and told["max_model_len"] == 8192
        status, back = server.post("/detokenize", {"tokens": told["tokens"]})
        assert (status, back) == (200, {"content": text, "prompt": text})


def test_tokens_are_those_that_the_model_gets(server: Server):
    magistral = server.service.registry.first.magistral
    assert magistral is not None
    raw = magistral.prompt(RawPrompt("2 + 2 =")).tokens.tolist()
    assert server.post("/tokenize", {"prompt": "2 + 2 ="})[1]["tokens"] == raw
    assert server.post("/tokenize", {"content": "2 + 2 =", "add_special": True})[1]["tokens"] == raw
    bare = server.post("/tokenize", {"prompt": "2 + 2 =", "add_special_tokens": False})[1]
    assert bare["tokens"] == raw[1:]
    usage = server.post(CHAT, {"messages": SUM, "max_tokens": 1})[1]["usage"]
    assert server.post("/tokenize", {"messages": SUM})[1]["count"] == usage["prompt_tokens"]


def test_each_token_can_be_told_with_its_text(server: Server):
    told = server.post("/tokenize", {"content": "a🙂", "with_pieces": True})[1]["tokens"]
    data = [piece["piece"] for piece in told]
    assert b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in data) == "a🙂".encode()
    told = server.post("/tokenize", {"prompt": "a b", "return_token_strs": True})[1]
    assert "".join(told["token_strs"]).endswith("a b")


def test_a_conversation_is_shown_as_the_model_gets_it(server: Server):
    status, told = server.post("/apply-template", {"messages": SUM})
    assert status == 200
    assert told["prompt"].startswith("<s>[SYSTEM_PROMPT]")
    assert told["prompt"].endswith("[INST]What is 37 + 85?[/INST]")


def test_properties_are_told(server: Server):
    status, told = server.get("/props")
    assert status == 200
    assert told["default_generation_settings"]["n_ctx"] == 8192
    assert told["modalities"] == {"vision": True, "audio": False}
    assert (told["bos_token"], told["eos_token"]) == ("<s>", "</s>")
    assert server.get("/version")[0] == 200


def test_models_are_listed_as_lm_studio_does(server: Server):
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    status, told = server.get("/api/v0/models")
    [model] = told["data"]
    assert (status, told["object"]) == (200, "list")
    assert (model["id"], model["type"], model["state"]) == ("demo", "vlm", "loaded")
    assert model["max_context_length"] == model["loaded_context_length"] == 8192
    assert (model["compatibility_type"], model["publisher"]) == ("mlx", "")
    assert server.get("/api/v0/models/demo") == (200, model)
    assert server.get("/api/v0/models/other")[0] == 404


def test_lm_studios_answers_have_its_statistics(server: Server):
    for path, body in {
        "/api/v0/chat/completions": {"messages": SUM},
        "/api/v0/completions": {"prompt": "2 + 2 ="},
    }.items():
        asked = {"temperature": 0, "seed": 1, "max_tokens": 4, **body}
        status, told = server.post(path, asked)
        plain = server.post(path.replace("/api/v0", "/v1"), asked)[1]
        assert status == 200
        assert told["choices"][0].get("text") == plain["choices"][0].get("text")
        assert told["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"] == 4
        stats, info = told["stats"], told["model_info"]
        assert stats["stop_reason"] == "maxPredictedTokensReached"
        assert stats["tokens_per_second"] > 0 and stats["generation_time"] > 0
        assert (info["arch"], info["format"], info["context_length"]) == ("mistral3", "mlx", 8192)
        status, refused = server.post(path, asked | {"temperature": "hot"})
        assert status == 400 and "temperature" in refused["error"]


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/tokenize", {}, "give one of content, prompt and messages"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "give one of"),
        ("/tokenize", {"content": 5}, "content"),
        ("/detokenize", {"tokens": [-1]}, "tokens holds -1"),
        ("/detokenize", {"tokens": [10**9]}, "tokens holds 1000000000"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/v1/embeddings", {"input": "a"}, "it has no embeddings"),
        ("/v1/rerank", {"query": "a", "documents": []}, "it ranks nothing"),
        ("/api/v0/embeddings", {"input": "a"}, "it has no embeddings"),
        ("/infill", {"input_prefix": "a"}, "fill in a middle"),
        ("/v1/audio/speech", {}, "neither hears nor speaks"),
        ("/v1/images/generations", {}, "it makes no images"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(
    server: Server, path: str, body: dict[str, Any], told: str
):
    status, answer = server.post(path, body)
    assert status == 400
    error = answer["error"] if path.startswith("/api/") else answer["error"]["message"]
    assert told in error and error.count(". ") <= 1


def test_an_address_without_v1_or_with_two_is_forgiven(server: Server):
    body = {"messages": SUM, "max_tokens": 2}
    for path in ("/chat/completions", "/v1/v1/chat/completions", "/v1/chat/completions/"):
        assert server.post(path, body)[0] == 200
    for path in ("/models", "/v1/models/", "/api/v0/models/"):
        assert server.get(path)[1]["data"][0]["id"] == "demo"
    assert server.get("/v1/api/tags")[1]["models"][0]["name"] == "demo:latest"
    assert server.get("/static/")[0] == server.get("/static")[0] == 404
    status, answer = server.post("/v2/chat/completions", body)
    assert status == 404 and "/v1" in answer["error"]["message"]
    assert server.metric("magistral_requests_total", endpoint=CHAT, status="200") >= 2


def test_token_ids_come_if_asked_for(server: Server):
    magistral = server.service.registry.first.magistral
    assert magistral is not None
    asked: dict[str, Any] = {"messages": SUM, "temperature": 0, "return_token_ids": True}
    whole = server.post(CHAT, asked)[1]
    count = whole["usage"]
    assert len(whole["prompt_token_ids"]) == count["prompt_tokens"]
    ids = whole["choices"][0]["token_ids"]
    assert len(ids) == count["completion_tokens"]
    assert magistral.tokenizer.decode(ids).endswith("122")
    assert whole["choices"][0]["logprobs"] is None
    fields = {name: asked[name] for name in asked if name != "messages"}
    with server.streaming(SUM[0]["content"], **fields) as chunks:
        sent = list(chunks)
    assert sent[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert [id for chunk in sent for id in chunk["choices"][0]["token_ids"]] == ids
    assert "token_ids" not in server.ask("Hi", max_tokens=2)[1]["choices"][0]


def test_timings_come_in_the_words_of_llama_server(server: Server):
    body = server.post(CHAT, {"messages": SUM, "max_tokens": 9})[1]
    told, usage = body["timings"], body["usage"]
    assert told["predicted_n"] == usage["completion_tokens"] == 9
    assert told["prompt_n"] + told["cache_n"] == usage["prompt_tokens"]
    with server.streaming("Hi", max_tokens=3) as chunks:
        assert list(chunks)[-1]["timings"]["predicted_n"] == 3
    text = server.post("/v1/completions", {"prompt": "2 +", "max_tokens": 4})[1]
    assert text["timings"]["predicted_n"] == 4


def test_a_model_is_described_in_everybodys_words(server: Server):
    (card,) = server.get("/v1/models")[1]["data"]
    lengths = ("context_length", "max_context_length", "max_model_len")
    assert {card[name] for name in lengths} == {card["meta"]["n_ctx"]} == {8192}
    assert card["meta"]["n_params"] > 2_000_000 and card["capabilities"]["vision"]
