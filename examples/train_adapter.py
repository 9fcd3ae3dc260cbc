"""Train a LoRA adapter with mlx-lm on a conversion of ours: mlx_lm.lora, with its own options.

    python examples/train_adapter.py --model DIR --train --data FOLDER --adapter-path my-adapter

FOLDER holds train.jsonl and valid.jsonl, a line {"messages": [...]} each. mlx-lm alone encodes
conversations as for an answer, which mistral-common refuses where the answer is there already; here
they are encoded as for training: with the answer, and the token that ends it.
"""

from typing import Any

import mlx_lm.lora
from mlx_lm import load


def load_for_training(path: str, tokenizer_config: Any = None, **options: Any) -> Any:
    """mlx-lm's own, with the tokenizer in the mode for training."""
    config = {**(tokenizer_config or {}), "mode": "finetuning"}
    return load(path, tokenizer_config=config, **options)


if __name__ == "__main__":
    mlx_lm.lora.load = load_for_training
    mlx_lm.lora.main()
