"""A machine with an empty cache, and a hub with one small model on it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from magistral_mlx.hub import partial, transfer
from tests.fake_hub import FakeHub, write_repo

REPO = "mistralai/Magistral-Small-2509"
CONFIG = {
    "model_type": "mistral3",
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 131072,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
    },
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}


def weights(size: int, seed: int = 0) -> bytes:
    """Bytes that stand for weights."""
    return random.Random(seed).randbytes(size)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache, no pauses between attempts, and segments that suit small files."""
    for name in (
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(transfer, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(partial, "SEGMENT", 100_000)
    return tmp_path / "hf"


@pytest.fixture
def model_files() -> dict[str, bytes | str]:
    """A repository as publishers make them: both layouts, and much that is not needed."""
    return {
        "config.json": json.dumps(CONFIG),
        "generation_config.json": "{}",
        "params.json": '{"dim": 64}',
        "tekken.json": '{"config": {}}',
        "SYSTEM_PROMPT.txt": "Think.",
        "README.md": "---\nlicense: apache-2.0\n---\n# Magistral\n",
        "model.safetensors.index.json": json.dumps(INDEX),
        SHARDS[0]: weights(350_000, 1),
        SHARDS[1]: weights(250_000, 2),
        "consolidated.safetensors": weights(600_000, 3),
        "tokenizer.json": "{}",
        "model-Q4_K_M.gguf": weights(1000, 4),
        "pytorch_model.bin": weights(1000, 5),
    }


@pytest.fixture
def hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_files: dict[str, bytes | str]
) -> Iterator[FakeHub]:
    """The hub, with HF_ENDPOINT pointing to it."""
    with FakeHub({REPO: write_repo(tmp_path / "published", model_files)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
