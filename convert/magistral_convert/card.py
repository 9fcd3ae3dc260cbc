"""The model card of a conversion: origin, size, and how to run it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from magistral_convert.calibration.facts import CalibrationFacts
from magistral_convert.options import ConvertOptions
from magistral_convert.plan import ConversionPlan, TensorConversion
from magistral_mlx import __version__
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import ModelConfig
from magistral_mlx.files import user_path
from magistral_mlx.quantization import Quantization

_LICENSE = "apache-2.0"  # of every model of this architecture that Mistral has published


def model_card(
    base_model: str | None,
    name: str,
    config: ModelConfig,
    options: ConvertOptions,
    plan: ConversionPlan,
    facts: CalibrationFacts | None = None,
) -> str:
    """Build README.md with the front matter that the hub reads.

    Args:
        base_model: the converted repository, where it is known.
        name: the model's name in the title and the commands.
        facts: of the calibration, where there was one.
    """
    task = "image-text-to-text" if config.vision else "text-generation"
    tags = ["mlx", "mistral-common", "magistral-mlx", *(["vision"] if config.vision else [])]
    front = [f"license: {_LICENSE}", "library_name: mlx", f"pipeline_tag: {task}"]
    if base_model:
        front.append(f"base_model: {base_model}")
        if any(tensor.scheme for tensor in plan.tensors):
            front.append("base_model_relation: quantized")
    front += ["tags:", *(f"- {tag}" for tag in tags)]
    origin = (
        f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "A checkpoint"
    )
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {name}",
        "",
        f"{origin}, converted to MLX format with magistral-mlx {__version__}.",
        "",
        *_adapter_lines(options),
        "| | |",
        "|---|---|",
        *_weight_rows(plan, options),
        f"| average | {plan.bits_per_weight:.2f} bits a weight |",
        f"| size | {plan.output_bytes / 1e9:.2f} GB |",
        f"| parameters | {plan.parameters / 1e9:.2f} billion |",
        *_calibration_rows(facts),
        "",
        "## Run it",
        "",
        "With magistral-mlx installed, as its README says:",
        "",
        "```",
        f'magistral-mlx generate --model {name} "What is 37 + 85?"',
        *([f'magistral-mlx generate --model {name} --image cat.jpg "What is in the picture?"']
          if config.vision else []),
        "```",
        "",
        "It also loads in mlx-lm (text)" + (" and mlx-vlm." if config.vision else "."),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _adapter_lines(options: ConvertOptions) -> list[str]:
    if options.adapter is None:
        return []
    folder = user_path(options.adapter)  # whose place on this machine concerns nobody
    name = Path(os.path.abspath(folder)).name if folder.exists() else options.adapter
    return [f"The adapter {name} is part of its weights.", ""]


def _weight_rows(plan: ConversionPlan, options: ConvertOptions) -> list[str]:
    """Tell how the weights of the decoder, and of vision tower and projector, are stored."""
    decoder = [tensor for tensor in plan.tensors if tensor.name.startswith(LANGUAGE)]
    vision = [tensor for tensor in plan.tensors if not tensor.name.startswith(LANGUAGE)]
    rows = [f"| decoder | {_stored(decoder, _mixture(options))} |"]
    return rows + ([f"| vision tower and projector | {_stored(vision)} |"] if vision else [])


def _stored(tensors: Sequence[TensorConversion], mixture: str = "") -> str:
    """Describe how matrices are stored.

    Args:
        mixture: of what is quantized here, where naming its schemes would not tell enough.
    """
    kinds = dict.fromkeys(tensor.source.dtype for tensor in tensors if tensor.is_laid_out)
    schemes = dict.fromkeys(t.scheme for t in tensors if t.scheme and t.is_quantized_here)
    parts = [f"{', '.join(kinds)} of a GGUF file, laid out for MLX"] if kinds else []
    if schemes:
        parts.append(mixture or " and ".join(map(_describe, schemes)))
    return "; others in ".join(parts) or "bfloat16"


def _calibration_rows(facts: CalibrationFacts | None) -> list[str]:
    if facts is None:
        return []
    own = "text that ships with the converter" if facts.is_default_text else "text of its maker"
    how = ", errors compensated (GPTQ)" if facts.method == "gptq" else ""
    columns = f", columns weighted by {facts.imatrix}" if facts.imatrix else ""
    return [
        f"| scales | searched{how}, with {facts.tokens:,} tokens of {own}{columns} |",
        f"| quality | {facts.quality.describe()} |",
    ]


def _mixture(options: ConvertOptions) -> str:
    """Describe the options that mix bits in the decoder; empty for others."""
    scheme = options.scheme
    if scheme and options.has_target:
        return f"2 to 8 bits, chosen for each matrix; groups of {scheme.group_size}"
    if scheme and options.recipe == "4bit-plus":
        return (
            f"4 bits, groups of {scheme.group_size}; 6 bits in the head and in the value and down "
            "projections of the first and last eighth of the layers and every third between"
        )
    return ""


def _describe(scheme: Quantization) -> str:
    kind = "" if scheme.mode == "affine" else f"{scheme.mode}, "
    return f"{kind}{scheme.bits} bits, groups of {scheme.group_size}"
