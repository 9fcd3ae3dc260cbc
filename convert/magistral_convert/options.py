"""The options of a conversion, and the progress that it reports.

The file is longer than others because all options that exclude each other are checked in one class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from magistral_mlx.errors import InvalidOption
from magistral_mlx.hub.adapters import adapter_name
from magistral_mlx.quantization import (
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    FIXED_MODES,
    Mode,
    Quantization,
)


@dataclass(frozen=True, slots=True)
class Downloading:
    """Bytes of one source file that have arrived, and its size."""

    file: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Converting:
    """Progress of the whole conversion, in tensors and in bytes of the source."""

    tensors_done: int
    tensors: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class Measuring:
    """Progress of the pass before bits are chosen for a size, as in `Converting`."""

    tensors_done: int
    tensors: int
    bytes_done: int
    bytes_total: int


ConversionProgress = Downloading | Measuring | Converting
OnConversionProgress = Callable[[ConversionProgress], None]

# Bits of most matrices, or bytes of all weights: the recipes for 16 GB and 24 GB of memory.
_RECIPE_BITS = {"3bit": 3, "4bit": 4, "4bit-plus": 4, "5bit": 5}
_RECIPE_SIZES = {"16gb": 9_900_000_000, "24gb": 12_900_000_000}
RECIPES = (*_RECIPE_BITS, *_RECIPE_SIZES)
UNQUANTIZED = "none"
UNCALIBRATED = "none"
METHODS = ("search", "gptq")
# Tokens of calibration text that help. Mean squares of inputs need few; of their products there are
# thousands of times as many.
_TOKENS = {"search": 8192, "gptq": 32_768}
MODES = ("affine", *FIXED_MODES, UNQUANTIZED)
_BITS, _GROUP_SIZE = 4, 64  # defaults of affine


@dataclass(frozen=True)
class ConvertOptions:
    """Options of one conversion; None selects the default.

    `tokenizer` is a file, folder or repository to take tekken.json from. `force` replaces an
    earlier conversion at the target. `keep_source` keeps the downloaded files in the hub's cache.
    `name` is the model's name on its card, such as the repository that it is meant for; None is
    the name of its folder. `mmproj` is the GGUF file of the vision tower of a GGUF model; None is
    the one found beside it. Mode "none" writes bfloat16 from any source. `calibration` names text
    files, with "default" for the text that ships; ("none",) leaves scales to MLX, and None
    calibrates where the backend is a GPU. At most `calibration_tokens` of the text are used: None
    is as many as help, 8,192 to search scales and 32,768 for `gptq`. `imatrix` is a file of
    llama.cpp with what each column counts, in place of the text's inputs.
    `method` "gptq" compensates errors as well, and calibrates on any backend. `target_size`, in
    bytes of all weights, or `target_bits`, the mean of the decoder's matrices with their scales,
    chooses the bits of each matrix by its measured sensitivity; so do the recipes "16gb" and
    "24gb", whose sizes leave a cache on a Mac with so much memory. `adapter` is a LoRA adapter, a
    folder or a repository, that becomes part of the weights.

    Raises:
        InvalidOption: a value that is not allowed, or two that conflict.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str | None = None
    quantize_vision: bool = False
    tokenizer: str | None = None
    force: bool = False
    keep_source: bool = False
    name: str | None = None
    mmproj: str | None = None
    calibration: tuple[str, ...] | None = None
    calibration_tokens: int | None = None
    imatrix: str | None = None
    method: str = "search"
    adapter: str | None = None
    target_size: int | None = None
    target_bits: float | None = None

    def __post_init__(self) -> None:
        _check_choice("--mode", self.mode, MODES)
        _check_choice("--bits", self.bits, (None, *AFFINE_BITS))
        if self.mode == UNQUANTIZED:
            self._check_unquantized()
        elif self.mode in FIXED_MODES:
            self._check_fixed_mode()
        else:
            _check_choice("--group-size", self.group_size, (None, *AFFINE_GROUP_SIZES))
        self._check_recipe()
        self._check_target()
        self._check_calibration()
        self._check_imatrix()

    @property
    def calibrates(self) -> bool | None:
        """Whether to calibrate what can be; None leaves it to the backend."""
        if self.mode == UNQUANTIZED or self.calibration == (UNCALIBRATED,):
            return False
        asked = (self.calibration, self.imatrix, self.method != METHODS[0], self.has_target)
        return True if any(asked) else None

    @property
    def text_tokens(self) -> int:
        """The most tokens of calibration text that are used."""
        return _TOKENS[self.method] if self.calibration_tokens is None else self.calibration_tokens

    @property
    def has_target(self) -> bool:
        """Whether bits are chosen for each matrix, to a size."""
        return self.size is not None or self.target_bits is not None

    @property
    def size(self) -> int | None:
        """Bytes of all weights that were asked for, by themselves or by a recipe."""
        of_recipe = _RECIPE_SIZES.get(self.recipe or "")
        return of_recipe if self.target_size is None else self.target_size

    @property
    def calibrating(self) -> str:
        """The option that asks for calibration, as it was given."""
        if self.target_size is not None:
            return "--target-size"
        if self.target_bits is not None:
            return "--target-bits"
        if self.recipe in _RECIPE_SIZES:
            return f"--recipe {self.recipe}"
        if self.method != METHODS[0]:
            return f"--method {self.method}"
        return "--imatrix" if self.imatrix else "--calibration"

    @property
    def asks_to_quantize(self) -> bool:
        """Whether a way to quantize was asked for, rather than left to the defaults."""
        asked = self.bits or self.group_size or self.recipe or self.has_target
        return self.mode in FIXED_MODES or bool(asked) or self.quantize_vision

    @property
    def scheme(self) -> Quantization | None:
        """Quantization of most matrices; None where none is quantized."""
        if self.mode == UNQUANTIZED:
            return None
        usual = (_RECIPE_BITS.get(self.recipe or "", _BITS), _GROUP_SIZE)
        bits, group_size = FIXED_MODES.get(self.mode, usual)
        return Quantization(self.bits or bits, self.group_size or group_size, cast(Mode, self.mode))

    @property
    def label(self) -> str:
        """Suffix of the output folder's name: `4bit`, `6bit-g32`, `mxfp4-vision`."""
        scheme = self.scheme
        if scheme is None:
            return "-".join([*self.adapted, "bf16"])
        parts = [f"{scheme.bits}bit" if scheme.mode == "affine" else scheme.mode]
        if self.target_size is not None:
            parts = [f"{self.target_size / 1e9:.4g}gb"]
        elif self.target_bits is not None:
            parts = [f"{self.target_bits:.4g}bits"]
        if self.recipe == "4bit-plus" or self.recipe in _RECIPE_SIZES:
            parts = [str(self.recipe)]
        if scheme.mode == "affine" and scheme.group_size != _GROUP_SIZE:
            parts.append(f"g{scheme.group_size}")
        if self.quantize_vision:
            parts.append("vision")
        return "-".join([*self.adapted, *parts])

    @property
    def adapted(self) -> list[str]:
        """The adapter's part of the output folder's name, if there is one."""
        return [] if self.adapter is None else [adapter_name(self.adapter)]

    def _check_unquantized(self) -> None:
        for option, asked in (
            ("--bits", self.bits),
            ("--group-size", self.group_size),
            ("--recipe", self.recipe),
            ("--quantize-vision", self.quantize_vision or None),
        ):
            if asked is not None:
                raise InvalidOption(
                    f"--mode none quantizes nothing, and {option} asks for it. Give one of the two."
                )

    def _check_fixed_mode(self) -> None:
        bits, group_size = FIXED_MODES[self.mode]
        for option, asked, fixed in (
            ("--bits", self.bits, bits),
            ("--group-size", self.group_size, group_size),
        ):
            if asked is not None and asked != fixed:
                raise InvalidOption(
                    f"--mode {self.mode} means {bits} bits and groups of {group_size}, so "
                    f"{option} {asked} contradicts it. Leave {option} out, or use --mode affine."
                )

    def _check_target(self) -> None:
        if not self.has_target:
            return
        name = self.calibrating
        for other, given in (
            ("--bits", self.bits),
            ("--recipe", None if name.startswith("--recipe") else self.recipe),
            ("--target-bits", self.target_bits if self.target_size is not None else None),
            (f"--mode {self.mode}", self.mode if self.mode != "affine" else None),
            ("--calibration none", True if self.calibration == (UNCALIBRATED,) else None),
        ):
            if given is not None:
                raise InvalidOption(
                    f"{name} chooses the bits of each matrix by calibration, which {other} "
                    "contradicts. Leave one of the two out."
                )
        if self.size is not None and self.size < 1:
            raise InvalidOption(f"{name} is {self.size} bytes. Give a size such as 12.5GB.")
        least, most = AFFINE_BITS[0], AFFINE_BITS[-1] + 1
        if self.target_bits is not None and not least < self.target_bits < most:
            raise InvalidOption(
                f"--target-bits {self.target_bits:g} is not possible. Give a mean between {least} "
                f"and {most}, scales included, such as 4.25."
            )

    def _check_calibration(self) -> None:
        _check_choice("--method", self.method, METHODS)
        if self.text_tokens < 1:
            raise InvalidOption(
                f"calibration_tokens is {self.text_tokens}. Give a positive number."
            )
        names = self.calibration
        if self.method != METHODS[0] and (self.mode != "affine" or names == (UNCALIBRATED,)):
            other = f"--mode {self.mode}" if self.mode != "affine" else "--calibration none"
            raise InvalidOption(
                f"--method {self.method} needs affine scales and calibration, which {other} does "
                "without. Leave one of the two out."
            )
        if names is None or names == (UNCALIBRATED,):
            return
        if not names or UNCALIBRATED in names:
            raise InvalidOption(
                "--calibration none goes with no other value. Name text files, or none."
            )
        if self.mode == UNQUANTIZED:
            raise InvalidOption(
                f"--calibration chooses scales, and --mode {self.mode} has none. Leave one of the "
                "two out."
            )

    def _check_imatrix(self) -> None:
        if self.imatrix is None:
            return
        if self.mode == UNQUANTIZED or self.calibration == (UNCALIBRATED,):
            other = f"--mode {self.mode}" if self.mode == UNQUANTIZED else "--calibration none"
            raise InvalidOption(
                f"--imatrix tells what the columns count when scales are searched, and {other} "
                "searches none. Leave one of the two out."
            )
        if self.calibration and self.method == METHODS[0] and not self.has_target:
            raise InvalidOption(
                "--calibration and --imatrix both tell what the columns count. Leave one of the "
                "two out, or add --method gptq, which needs text as well."
            )

    def _check_recipe(self) -> None:
        if self.recipe is None:
            return
        _check_choice("--recipe", self.recipe, RECIPES)
        if self.recipe == "4bit-plus" and self.mode != "affine":
            raise InvalidOption(
                f"--recipe 4bit-plus mixes 4 and 6 bits, which --mode {self.mode} does not have. "
                "Leave --mode out, or the recipe."
            )
        meant = _RECIPE_BITS.get(self.recipe)
        if meant and self.scheme and self.scheme.bits != meant:
            culprit = f"--bits {self.bits}" if self.bits else f"--mode {self.mode}"
            raise InvalidOption(
                f"--recipe {self.recipe} means {meant} bits and {culprit} means "
                f"{self.scheme.bits}. Give one of the two."
            )


def _check_choice(option: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(str(choice) for choice in allowed if choice is not None)
        raise InvalidOption(f"{option} {value} is not possible. Choose one of {choices}.")
