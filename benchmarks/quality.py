"""Quality of conversions: next-token distributions of a trained model against its original.

    python -m benchmarks.quality [--bits 4 3] [--targets 4.5] [--tokens 4096] [--full]
        [--methods plain calibrated self gptq mlx-lm mlx-lm-awq mlx-lm-gptq mlx-lm-dwq]

SmolLM2-135M (see `benchmarks.smollm2`) is converted by the converter itself, with and without
calibration and to a mean of bits, and by mlx-lm with its mixed recipes, AWQ, GPTQ (which packs 2, 4
or 8 bits only) and DWQ (which trains all scales in batches of four sequences, of which it takes 512
by default). All are calibrated on the same text, the one that ships, with its prompts in SmolLM2's
template; with `self` on text that the model itself writes to the prompts of `benchmarks/texts`.

Each result is read by the runtime, and its distributions on held-out documents and chats are
compared with those of the original: the mean Kullback-Leibler divergence in nats, and how often the
likeliest token is the same. The embedding, which is the head too, stays as it is: it is a fifth of
this model, and an eighteenth of Magistral.

Without --full it takes 2,000 tokens of each kind of text at most.
"""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, Record, arguments, console, show
from benchmarks.smollm2 import calibration_parts, chats, documents, smollm2
from benchmarks.speculation import written
from magistral_convert import ConvertOptions, convert
from magistral_convert.calibration import text
from magistral_convert.calibration.facts import Quality
from magistral_convert.calibration.quality import compare
from magistral_mlx.backend import mx, nn
from magistral_mlx.cache.scheme import FULL
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.model.magistral import MagistralModel

BUILT = ROOT / "build/quality"
RECIPES = ("mixed_3_4", "mixed_3_6", "mixed_4_6")
PACKED_BY_PEER = (2, 4, 8)  # bits
_DWQ_RATE = 1e-5


@dataclass(frozen=True)
class Method:
    """A way to convert."""

    label: str
    bits: float
    options: ConvertOptions | None = None  # of the converter; none for mlx-lm's methods


def methods(kinds: list[str], bits: list[int], targets: list[float], tokens: int) -> list[Method]:
    """Return the methods of these kinds, plain ones first."""
    found = []
    for n in bits:
        if "plain" in kinds:
            found.append(Method("plain", n, ConvertOptions(bits=n, calibration=("none",))))
        if "calibrated" in kinds:
            found.append(Method("calibrated", n, calibrated_options(n, tokens)))
        if "self" in kinds:
            own = replace(calibrated_options(n, tokens), calibration=(str(own_text(tokens)),))
            found.append(Method("calibrated on its own text", n, own))
        if "gptq" in kinds:
            compensated = replace(calibrated_options(n, tokens), method="gptq")
            found.append(Method("gptq", n, compensated))
        if "mlx-lm-awq" in kinds:
            found.append(Method("mlx-lm awq", n))
        if "mlx-lm-dwq" in kinds:
            found.append(Method("mlx-lm dwq", n))
        if "mlx-lm-gptq" in kinds and n in PACKED_BY_PEER:
            found.append(Method("mlx-lm gptq", n))
    for mean in targets:
        options = replace(calibrated_options(4, tokens), bits=None, target_bits=mean)
        found.append(Method("calibrated to a mean", mean, options))
    if "mlx-lm" in kinds:
        found += [Method(f"mlx-lm {name}", 0) for name in RECIPES]
    return found


def calibrated_options(bits: int, tokens: int) -> ConvertOptions:
    return ConvertOptions(bits=bits, calibration=("default",), calibration_tokens=tokens)


def own_text(tokens: int) -> Path:
    """Return a file of what SmolLM2 writes, of about so many tokens at least."""
    tokenizer = Tokenizer.load(smollm2())
    each = tokens // 8
    answers = [tokenizer.decode(text.answer) for text in written((0.7, 1.0), each)]
    path = BUILT / "own.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(answers), encoding="utf-8")
    return path


def build(source: Path, method: Method, tokens: int) -> tuple[Path, float]:
    """Convert; return the folder and the seconds."""
    target = BUILT / f"{method.label}-{method.bits:g}".replace(" ", "-")
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    if method.options:
        convert(source, target, method.options)
    else:
        _convert_in_mlx_lm(source, target, method, tokens)
    return target, time.monotonic() - start


def _convert_in_mlx_lm(source: Path, target: Path, method: Method, tokens: int) -> None:
    """Convert as mlx-lm's commands do, but for the text, which they fetch from the network."""
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.quant import awq, gptq
    from mlx_lm.utils import load_model as load_peer
    from mlx_lm.utils import quantize_model, save_config, save_model

    model, config = load_peer(source, lazy=True)
    compensate: Any = gptq.gptq_quantize  # it has no types
    name, bits = method.label.removeprefix("mlx-lm "), int(method.bits)
    if name in RECIPES:
        predicate: Any = mixed_quant_predicate_builder(name, model)
        model, config = quantize_model(model, config, 64, 4, quant_predicate=predicate)
    else:
        model.set_dtype(mx.float32)
        some = text.calibration_text((), source / "tekken.json", config["vocab_size"], tokens)
        data = mx.array(some.tokens)
        if name == "dwq":
            model, config = _train_in_mlx_lm(model, config, bits, some)
        elif name == "awq":
            known = awq.AWQ_MODEL_CONFIGS[config["model_type"]]
            awq.awq_quantize(model, data, known, 64, bits, embed_group_size=64, embed_bits=8)
            config = awq.update_config(model, config)
        else:
            model, scheme = compensate(model, data, bits, 64, 8, 64)
            config["quantization"] = scheme
    target.mkdir(parents=True)
    save_model(target, model)
    save_config(config, config_path=target / "config.json")


def _train_in_mlx_lm(
    model: Any, config: dict[str, Any], bits: int, some: text.CalibrationText
) -> tuple[Any, dict[str, Any]]:
    """mlx-lm's DWQ in its own batches, once through the calibration text.

    Of two rates tried, 1e-4 harms and 1e-5 helps; its default, 1e-6, is for many more batches.
    Weights are dequantized before each product, for which CPUs have BLAS: the same arithmetic.
    """
    from mlx.optimizers import Adam
    from mlx_lm.quant import dwq
    from mlx_lm.utils import quantize_model

    def product(layer: Any, x: mx.array) -> mx.array:
        scales, biases = layer["scales"], layer["biases"]
        weight = mx.dequantize(layer["weight"], scales, biases, layer.group_size, layer.bits)
        return x @ weight.T

    def chosen(path: str, layer: Any) -> bool:
        return hasattr(layer, "to_quantized") and "embed" not in path

    student, config = quantize_model(copy.deepcopy(model), config, 64, bits, quant_predicate=chosen)
    quantized: Any = nn.QuantizedLinear
    before = quantized.__call__
    quantized.__call__ = product
    train: Any = dwq.dwq_quantize  # it has no types
    batch = 4
    train(
        student,
        lambda tokens, number, split: model(tokens),
        Adam(learning_rate=_DWQ_RATE, bias_correction=True),
        [(ids.tolist(), 0) for ids in some.tokens],
        [(ids.tolist(), 0) for ids in some.tokens[:batch]],
        batch_size=batch,
        max_seq_length=some.tokens.shape[1],
        seed=123,
        dtype=mx.float32,
    )
    quantized.__call__ = before
    return student, config


def load(folder: Path) -> MagistralModel:
    return load_model(Checkpoint.open(folder), mx.float32)


def states(model: MagistralModel, texts: list[list[int]]) -> mx.array:
    """(T, D): the last hidden states of all texts."""
    found = []
    for ids in texts:
        h = model(model.embed(mx.array([ids])), model.make_caches(FULL))[0]
        mx.eval(h)
        found.append(h)
    return mx.concatenate(found)


def bits_per_weight(folder: Path) -> float:
    """Of the matrices of the layers, scales included."""
    checkpoint = Checkpoint.open(folder)
    size = weights = 0
    for name, scheme in checkpoint.quantized.items():
        if ".layers." in name:
            rows, columns = checkpoint.tensors[name].shape
            columns = columns * 32 // scheme.bits
            size += scheme.nbytes((rows, columns))
            weights += rows * columns
    return 8 * size / weights


def main() -> None:
    given = arguments(
        __doc__ or "",
        full=True,
        bits={"type": int, "nargs": "+", "default": [4, 3]},
        targets={
            "type": float,
            "nargs": "*",
            "default": [],
            "help": "means of bits, scales included",
        },
        tokens={"type": int, "default": 4096, "help": "of calibration text at most"},
        methods={"nargs": "+", "default": ["plain", "calibrated"]},
        length={"type": int, "default": 256, "help": "tokens of a text"},
        count={"type": int, "default": 8, "help": "documents, and chats at most"},
        sequence={"type": int, "default": text.SEQUENCE, "help": "tokens that calibrate at once"},
    )
    record = Record("quality")
    text.SEQUENCE = given.sequence
    text.shipped_parts = calibration_parts
    text.HELD_OUT = 1  # the converter's own figure is not what counts here
    source = smollm2()
    length, count = (512, 24) if given.full else (given.length, given.count)
    texts = {"documents": documents(length, count), "chats": chats(length)[:count]}
    original = load(source)
    head = original.language_model.model.embed_tokens.weight
    right = {kind: states(original, some) for kind, some in texts.items()}
    results: dict[str, Any] = {}
    rows = []
    for method in methods(given.methods, given.bits, given.targets, given.tokens):
        folder, seconds = build(source, method, given.tokens)
        model = load(folder)
        model.language_model.model.embed_tokens = original.language_model.model.embed_tokens
        found: dict[str, Quality] = {}
        for kind, some in texts.items():
            found[kind] = compare(right[kind], states(model, some), head, head)
        size = bits_per_weight(folder)
        label = f"{method.label}, {method.bits:g} bits" if method.bits else method.label
        results[label] = {
            "bits_per_weight": size,
            "seconds": seconds,
            **{kind: quality.as_dict() for kind, quality in found.items()},
        }
        rows.append(
            [
                label,
                f"{size:.2f}",
                *(f"{quality.divergence:.4f}" for quality in found.values()),
                *(f"{quality.same_top:.1%}" for quality in found.values()),
                f"{seconds:.0f}",
            ]
        )
        console.print(f"{label}: {results[label]}", style="dim", highlight=False)
        record.save(given.out, results=results, tokens=given.tokens, sizes=_sizes(texts))
    header = ["method", "bits a weight", *(f"KL, {kind}" for kind in texts)]
    header += [*(f"same top, {kind}" for kind in texts), "seconds"]
    show(f"SmolLM2-135M against its original, {_sizes(texts)} tokens", header, rows)


def _sizes(texts: dict[str, list[list[int]]]) -> dict[str, int]:
    return {kind: int(np.sum([len(ids) for ids in some])) for kind, some in texts.items()}


if __name__ == "__main__":
    main()
