"""Writes a trained model as a checkpoint folder in the Hugging Face layout, in bfloat16."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Mistral3ForConditionalGeneration

from training.model import RANKS
from training.prompts import system_prompt_text
from training.tekken import write_tekken


def write_checkpoint(model: Mistral3ForConditionalGeneration, folder: Path) -> None:
    """Write the whole folder beside `folder` first, then put it in that place.

    Weights are rounded to bfloat16; `model` itself is left as it is. transformers saves the
    tensors under the names of the official checkpoint (`language_model.model...`).
    """
    partial, old = (folder.with_name(folder.name + end) for end in (".partial", ".old"))
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    rounded = Mistral3ForConditionalGeneration(model.config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.save_pretrained(partial)
    (partial / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    config = partial / "config.json"
    write_json(config, official_form(json.loads(config.read_text(encoding="utf-8"))))
    ids = {
        name: getattr(model.config.text_config, name) for name in ("bos_token_id", "eos_token_id")
    }
    write_json(partial / "generation_config.json", {**ids, "do_sample": False})
    write_tekken(partial / "tekken.json", RANKS)
    (partial / "SYSTEM_PROMPT.txt").write_text(system_prompt_text(), encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def official_form(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with `rope_theta` also in the flat form that the official checkpoint has."""
    for part in ("text_config", "vision_config"):
        inner = config[part]
        inner["rope_theta"] = inner["rope_parameters"]["rope_theta"]
        config[part] = dict(sorted(inner.items()))
    return config


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
