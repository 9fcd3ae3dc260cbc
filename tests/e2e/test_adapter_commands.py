"""`--adapter` of `bench` and `chat`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from magistral_mlx.chat.tokenizer import Tokenizer
from tests.adapter_files import write_adapter, write_peft_adapter
from tests.checkpoints import write_hf_checkpoint
from tests.e2e.test_bench import bench
from tests.e2e.test_chat import ANSWER, ask, start
from tests.scripted import VOCAB, ids_of, separable_tokens, write_scripted_checkpoint
from tests.terminal import Terminal

HEAD = "base_model.model.language_model.lm_head"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "talker"
    return write_scripted_checkpoint(folder, ["[/INST]", ANSWER, "</s>"])


@pytest.fixture(scope="module")
def word(talker: Path) -> str:
    """A token that is no part of `ANSWER`."""
    tokenizer = Tokenizer.load(talker)
    words = (tokenizer.decode([id]) for id in separable_tokens(talker / "tekken.json"))
    return next(word for word in words if len(word) > 3 and word.isalpha() and word not in ANSWER)


@pytest.fixture(scope="module")
def adapter(talker: Path, word: str) -> Path:
    """Makes `word` the whole answer: what follows the end of the prompt, with a larger logit."""
    tokenizer = Tokenizer.load(talker)
    (prompt_end,), (answer,) = ids_of(["[/INST]"], tokenizer), tokenizer.encode(word)
    a, b = np.zeros((1, VOCAB), np.float32), np.zeros((VOCAB, 1), np.float32)
    a[0, prompt_end], b[answer, 0] = 1, 5
    tensors = {f"{HEAD}.lora_A.weight": a, f"{HEAD}.lora_B.weight": b}
    return write_adapter(talker.parent / "mine", tensors, r=1, lora_alpha=1)


def test_chat_answers_with_the_adapter(talker: Path, adapter: Path, word: str, tmp_path: Path):
    with start(talker, tmp_path, "--adapter", str(adapter)) as terminal:
        ask(terminal, "Hi", word)
        assert ANSWER not in terminal.everything
    with start(talker, tmp_path) as terminal:
        ask(terminal, "Hi", ANSWER)
        assert word not in terminal.everything


def test_chat_refuses_an_adapter_of_another_model(talker: Path, tmp_path: Path):
    other = write_peft_adapter(tmp_path / "other")
    home = {"MAGISTRAL_MLX_HOME": str(tmp_path)}
    for source, told in ((str(other), "does not have"), ("/no/where", "there is no folder")):
        words = ("chat", "--model", str(talker), "--adapter", source)
        with Terminal(*words, env=home, columns=400) as terminal:
            terminal.wait_for(told)
            assert terminal.end() == 2
            assert "Traceback" not in terminal.everything


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def test_bench_measures_a_model_with_its_adapter(tiny: Path, tmp_path: Path):
    adapter = write_peft_adapter(tmp_path / "adapter", rank=1024)
    options = ("--model", tiny, "--context", 16, "--tokens", 4, "--rounds", 1, "--json")
    peaks = []
    for more in ((), ("--adapter", adapter)):
        result = bench(*options, *more)
        assert result.returncode == 0, result.stderr
        (speed,) = json.loads(result.stdout)["speeds"]
        assert speed["label"] == "magistral-mlx" and speed["decode"]["median"] > 0
        peaks.append(speed["peak"])
    numbers = (adapter / "adapter_model.safetensors").stat().st_size // 4
    assert peaks[1] - peaks[0] > 0.95 * 2 * numbers  # bytes of its numbers, in 16 bits or more


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--adapter", "/no/where"), "there is no folder /no/where"),
        (("--adapter", "x/y", "--against", "mlx-lm"), "--adapter measures this runtime alone"),
    ],
)
def test_bench_refuses_in_one_line(tiny: Path, options: tuple[str, ...], complaint: str):
    result = bench("--model", tiny, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert complaint in result.stderr and len(result.stderr.splitlines()) == 1
