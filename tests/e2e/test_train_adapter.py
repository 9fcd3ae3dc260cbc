"""An adapter that mlx-lm trains on a 4-bit conversion of ours, from the data to its answer here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from magistral_convert import ConvertOptions, convert
from magistral_mlx import Magistral
from tests.checkpoints import tiny_config, write_hf_checkpoint

SCRIPT = Path(__file__).parents[2] / "examples" / "train_adapter.py"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "thinking": "off"}


def test_the_loss_falls_and_the_answer_changes(tmp_path: Path) -> None:
    config = tiny_config(vision=False, layers=2)
    base = write_hf_checkpoint(tmp_path / "base", seed=3, config=config)
    base = convert(base, tmp_path / "4bit", ConvertOptions(bits=4))
    data, adapter = tmp_path / "data", tmp_path / "mine"
    data.mkdir()
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "no no no no"},
    ]
    for name in ("train.jsonl", "valid.jsonl"):
        (data / name).write_text((json.dumps({"messages": messages}) + "\n") * 2)
    losses = train(base, data, adapter)
    assert losses[-1] < losses[0] / 2
    with Magistral.load(base, adapter=adapter, context=256) as magistral:
        before = magistral.generate("Hi", adapter="base", **GREEDY).text
        after = magistral.generate("Hi", **GREEDY).text
    assert "no no" in after
    assert "no no" not in before


def train(model: Path, data: Path, adapter: Path) -> list[float]:
    """A few steps -> the loss every fourth one."""
    options = {
        "model": model,
        "data": data,
        "adapter-path": adapter,
        "iters": 12,
        "batch-size": 1,
        "num-layers": 2,
        "learning-rate": 1e-3,
        "steps-per-report": 4,
        "steps-per-eval": 1000,
        "val-batches": 1,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--train", *words], capture_output=True, text=True, check=True
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    return [float(loss) for loss in re.findall(r"^\s*\d+\s+(\d+\.\d+) ", plain, re.MULTILINE)]
