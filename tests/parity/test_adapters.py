"""Adapters of PEFT and of mlx-lm against those libraries, on random weights, in float32.

The tolerance everywhere: the largest difference of logits is at most 1e-4 of the largest logit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load as load_in_mlx_lm
from peft import LoraConfig, get_peft_model
from transformers import Mistral3ForConditionalGeneration

from magistral_convert import ConvertOptions, convert
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.adapters.load import load_adapter
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.model.magistral import MagistralModel
from tests.checkpoints import tiny_config, write_hf_checkpoint
from tests.parity.test_logits import (
    Pixels,
    assert_close,
    image_tokens,
    load,
    our_logits,
    reference_logits,
    some_image,
    some_text,
)

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EVERY = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "everything, vision and projector too": {
        "r": 8,
        "target_modules": [*EVERY, "linear_1", "linear_2", "merging_layer"],
    },
    "rslora": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": LANGUAGE},
    "patterns": {
        "r": 4,
        "target_modules": LANGUAGE,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 12},
        "alpha_pattern": {r"layers\.0\.self_attn\.\w+": 1, "down_proj": 32},
    },
    "dora": {"r": 4, "use_dora": True, "target_modules": EVERY},
    "head and embedding as a whole": {
        "r": 2,
        "target_modules": ["k_proj", "gate_proj"],
        "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "dora of the head": {"r": 3, "use_dora": True, "target_modules": ["lm_head", "v_proj"]},
    "factors of head and embedding": {
        "r": 6,
        "target_modules": ["lm_head", "embed_tokens", "o_proj"],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("tiny"), seed=5, names="new")


def trained(base: Path, folder: Path, config: dict[str, Any]) -> Any:
    """A PEFT model with random factors, saved to `folder`."""
    plain = Mistral3ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(plain, LoraConfig(**config))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter *= 1 + 0.2 * torch.rand_like(parameter)
            elif parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.05
    model.save_pretrained(str(folder))
    return model.eval()


def adapted_logits(
    model: MagistralModel, adapter: Path, tokens: list[int], images: list[Pixels]
) -> Pixels:
    loaded = load_adapter(StoredAdapter.open(adapter, model.config), model)
    return our_logits(model, tokens, images, adapter=loaded)


@pytest.mark.parametrize("name", CONFIGS)
def test_peft(folder: Path, tmp_path: Path, name: str) -> None:
    reference = trained(folder, tmp_path, CONFIGS[name])
    picture = some_image(56, 84)
    tokens = [*some_text(20), *image_tokens(picture), *some_text(9, seed=2)]
    wanted = reference_logits(reference, tokens, [picture])[-1]
    model = load(folder)
    assert_close(adapted_logits(model, tmp_path, tokens, [picture]), wanted)
    with pytest.raises(AssertionError):
        assert_close(our_logits(model, tokens, [picture]), wanted)


def test_peft_on_a_tied_head(tmp_path: Path) -> None:
    """The head changes, and the embedding that it is made of does not."""
    config = tiny_config(names="new", layers=1, tie_word_embeddings=True)
    config["tie_word_embeddings"] = True
    base = write_hf_checkpoint(tmp_path / "base", seed=6, names="new", config=config)
    reference = trained(base, tmp_path / "adapter", CONFIGS["dora of the head"])
    tokens = some_text(20)
    wanted = reference_logits(reference, tokens, [])[-1]
    model = load(base)
    assert model.config.text.tie_word_embeddings
    assert_close(adapted_logits(model, tmp_path / "adapter", tokens, []), wanted)
    with pytest.raises(AssertionError):
        assert_close(our_logits(model, tokens, []), wanted)


FINE_TUNES: dict[str, tuple[dict[str, Any], bool]] = {
    "lora": ({"rank": 8, "scale": 20.0, "dropout": 0.0}, False),
    "some keys": (
        {
            "rank": 4,
            "scale": 0.5,
            "dropout": 0.1,
            "keys": ["self_attn.q_proj", "mlp.down_proj"],
        },
        False,
    ),
    "dora": ({"rank": 2, "scale": 2.0, "dropout": 0.0}, True),
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", FINE_TUNES)
def test_mlx_lm(tmp_path: Path, name: str, quantized: bool) -> None:
    """Its own adapter, on the text part, over plain and over quantized weights."""
    parameters, is_dora = FINE_TUNES[name]
    base = write_hf_checkpoint(tmp_path / "base", seed=7, config=tiny_config(), dtype="float32")
    if quantized:
        base = convert(base, tmp_path / "quantized", ConvertOptions(bits=4))
    adapter = tmp_path / "adapter"
    write_mlx_adapter(base, adapter, parameters, is_dora)
    theirs, _ = load_in_mlx_lm(str(base), adapter_path=str(adapter))
    theirs.set_dtype(mx.float32)
    tokens = some_text(30)
    wanted = np.array(theirs(mx.array([tokens])))[0, -1]
    model = load_model(Checkpoint.open(base), mx.float32)
    assert_close(adapted_logits(model, adapter, tokens, []), wanted)


def write_mlx_adapter(base: Path, folder: Path, parameters: dict[str, Any], is_dora: bool) -> None:
    """What mlx_lm.lora leaves, with random factors."""
    model, _ = load_in_mlx_lm(str(base))
    model.freeze()
    linear_to_lora_layers(model, 2, parameters, use_dora=is_dora)
    mx.random.seed(4)
    weights = {
        name: value + 0.02 * mx.random.normal(value.shape)
        for name, value in tree_flatten(model.trainable_parameters())
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    config = {
        "fine_tune_type": "dora" if is_dora else "lora",
        "model": "some/base",
        "num_layers": 2,
        "lora_parameters": parameters,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
