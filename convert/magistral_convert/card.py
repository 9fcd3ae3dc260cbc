"""The model card of a conversion: origin, size, and how to run it."""

from __future__ import annotations

from magistral_convert.calibration.facts import CalibrationFacts
from magistral_convert.options import ConvertOptions
from magistral_convert.plan import ConversionPlan
from magistral_mlx import __version__
from magistral_mlx.config import ModelConfig

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
        front += [f"base_model: {base_model}", "base_model_relation: quantized"]
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
        f"| decoder | {_laid_out(plan) or _describe(options)} |",
        *_vision_rows(config, options),
        f"| average | {plan.bits_per_weight:.2f} bits a weight |",
        f"| size | {plan.output_bytes / 1e9:.2f} GB |",
        f"| parameters | {plan.parameters / 1e9:.2f} billion |",
        *_calibration_rows(facts),
        "",
        "## Run it",
        "",
        "```",
        "pip install magistral-mlx",
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
    return [f"The adapter {options.adapter} is part of its weights.", ""] if options.adapter else []


def _vision_rows(config: ModelConfig, options: ConvertOptions) -> list[str]:
    if config.vision is None:
        return []
    quantized = options.quantize_vision or options.scheme is None
    what = _describe(options) if quantized else "bfloat16"
    return [f"| vision tower and projector | {what} |"]


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


def _laid_out(plan: ConversionPlan) -> str:
    """Describe what a GGUF file has brought; empty where it was none."""
    kinds = dict.fromkeys(tensor.source.dtype for tensor in plan.tensors if tensor.is_laid_out)
    return f"{', '.join(kinds)} of a GGUF file, laid out for MLX" if kinds else ""


def _describe(options: ConvertOptions) -> str:
    scheme = options.scheme
    if scheme is None:
        return "bfloat16"
    if options.has_target:
        return f"2 to 8 bits, chosen for each matrix; groups of {scheme.group_size}"
    if options.recipe == "4bit-plus":
        return (
            f"4 bits, groups of {scheme.group_size}; 6 bits in the head and in the value and down "
            "projections of the first and last eighth of the layers and every third between"
        )
    kind = "" if scheme.mode == "affine" else f"{scheme.mode}, "
    return f"{kind}{scheme.bits} bits, groups of {scheme.group_size}"
