"""What the options mean for one source: whether it is calibrated, with what text and bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from magistral_convert.calibration.files import in_layer_order
from magistral_convert.calibration.text import CalibrationText, calibration_text
from magistral_convert.fusion import Fusion
from magistral_convert.options import ConvertOptions, OnConversionProgress
from magistral_convert.plan import plan_conversion
from magistral_convert.recipe import Recipe
from magistral_convert.source import Source
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.errors import InvalidOption
from magistral_mlx.hub import find_tokenizer
from magistral_mlx.requirements import check_extra

if TYPE_CHECKING:
    from magistral_convert.calibration.sizing import Sizing


def choose_bits(
    source: Source,
    recipe: Recipe,
    options: ConvertOptions,
    changes: Mapping[str, Fusion] | None,
    adapter: StoredAdapter | None,
    text: CalibrationText,
    on_progress: OnConversionProgress | None = None,
) -> Sizing:
    """Choose the bits of each matrix for the size asked for.

    Raises:
        InvalidOption: the size is too small.
    """
    from magistral_convert.calibration.sizing import choose_schemes

    checkpoint = source.checkpoint
    plan = plan_conversion(checkpoint, recipe, flat=False, changes=changes)
    plan = in_layer_order(plan, checkpoint.config)
    weights = f"{source.identity} {adapter.fingerprint() if adapter else ''}"
    return choose_schemes(plan, checkpoint.config.text, text, options, weights, on_progress)


def check_weights_are_here(source: Source) -> None:
    """Check that a pass over the weights can be made.

    Raises:
        InvalidOption: they are not on this machine.
    """
    from magistral_convert.hub_source import HubSource

    if not isinstance(source, HubSource) or all(f.exists() for f in source.checkpoint.files):
        return
    ref = source.model.ref
    name = ref.repo if ref.revision == "main" else f"{ref.repo} --revision {ref.revision}"
    raise InvalidOption(
        "a target size needs a first pass over the weights, which are not on this machine. "
        f"Fetch them first, with `hf download {name}`, or give --bits."
    )


def decoder_is_blocks(checkpoint: Checkpoint) -> bool:
    """Whether ggml has quantized matrices of the decoder, whatever the vision tower beside it is
    stored in."""
    return any(name.startswith(LANGUAGE) for name in checkpoint.blocks)


def calibrates_by(source: Source, recipe: Recipe, options: ConvertOptions) -> bool:
    """Whether scales are searched: where that was asked for, or the backend is a GPU.

    Raises:
        InvalidOption: it was asked for, and the decoder is quantized already.
        MissingExtra: it is so, and what compiles the search is not installed.
    """
    asked = options.calibrates
    if asked is False or recipe.base is None:
        return False
    if decoder_is_blocks(source.checkpoint):
        if asked:
            raise InvalidOption(
                f"{options.calibrating} calibrates weights that are not quantized yet, and a GGUF "
                f"file's are laid out as they are. Leave {options.calibrating} out, or convert the "
                "original weights."
            )
        return False
    if asked is None:
        from magistral_mlx.backend import backend

        if backend().name == "cpu":
            return False
    if recipe.base.mode == "affine":
        check_extra(
            "calibration",
            "convert",
            "numba",
            instead="" if asked else "Or convert without it: --calibration none.",
        )
    return True


def read_text(source: Source, options: ConvertOptions) -> CalibrationText:
    """Read the calibration text that the options name, with the source's tokenizer.

    Raises:
        InvalidOption, TokenizerError: see `calibration_text`.
    """
    return calibration_text(
        options.calibration or (),
        find_tokenizer(source.folder, options.tokenizer),
        source.checkpoint.config.text.vocab_size,
        options.text_tokens,
    )
