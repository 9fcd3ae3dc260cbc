"""Addresses as people write them into apps."""

from __future__ import annotations

import pytest

from magistral_mlx.server.paths import forgiven


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/models/org/name", "/v1/models/org/name"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/api/chat", "/api/chat"),
        ("/v1/v1/api/tags", "/api/tags"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/health", "/health"),
        ("/models/", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/api/v0/models//", "/api/v0/models"),
    ],
)
def test_v1_may_be_left_out_or_come_twice_and_a_slash_at_the_end(written: str, meant: str):
    assert forgiven(written) == meant


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/v1", "/v1/chat/completions", "/v1/models/v1", "/static/app.js"),
        *("/modelsx", "/v1v1/models", "/v1/messages", "/tokenize", "/health", "/v1/v2/models"),
    ],
)
def test_other_addresses_stay_as_they_are(path: str):
    assert forgiven(path) == path
