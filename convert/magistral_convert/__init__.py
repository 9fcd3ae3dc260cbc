"""Quantize a Magistral checkpoint to MLX format, a few tensors at a time.

    from magistral_convert import ConvertOptions, convert

    convert("mistralai/Magistral-Small-2509", "magistral-4bit", ConvertOptions(bits=4))

`recipe` chooses the quantization of each tensor, `plan` computes the whole output from that,
`pipeline` converts rows of the `source` into the `staging` folder, and that folder is renamed to
the target when it is complete.
"""

from __future__ import annotations

from magistral_convert.conversion import Conversion, check, convert, prepare, run
from magistral_convert.options import (
    ConversionProgress,
    Converting,
    ConvertOptions,
    Downloading,
    Measuring,
    OnConversionProgress,
)

__all__ = [
    "Conversion",
    "ConversionProgress",
    "ConvertOptions",
    "Converting",
    "Downloading",
    "Measuring",
    "OnConversionProgress",
    "check",
    "convert",
    "prepare",
    "run",
]
