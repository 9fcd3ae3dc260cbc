"""The calibrated conversion: layer by layer, each with the inputs that the layers before it give.

For each layer the held-out sequences run through its original weights, the calibration sequences
through them too while the statistics of their inputs are gathered; then its matrices are quantized
and written, read back, and both kinds of sequences run through what was written. In memory are one
layer and the hidden states; a source's file is fetched before the first layer that it holds a
tensor of, and released after the last.

What it resumes from lies in DIR.partial/calibration: `layer-N.safetensors`, the hidden states that
go into layer N. Tensors are committed one by one, and everything else is computed again from there,
so a result does not depend on where it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np

from magistral_convert.calibration.facts import Quality
from magistral_convert.calibration.files import SourceFiles, by_layer, norm_after_embedding
from magistral_convert.calibration.floating import search_floating
from magistral_convert.calibration.gptq import Factor, compensate, factorize
from magistral_convert.calibration.layers import SHARED_INPUTS, InputStatistics, LayerPass
from magistral_convert.calibration.memory import BATCH_TOKENS, COMPENSATED_BYTES
from magistral_convert.calibration.quality import compare
from magistral_convert.calibration.search import search
from magistral_convert.calibration.states import HiddenStates, SavedStates
from magistral_convert.calibration.tensors import (
    READ_BYTES,
    WrittenTensors,
    read_original,
)
from magistral_convert.calibration.text import CalibrationText
from magistral_convert.calibration.vision import convert_vision
from magistral_convert.options import OnConversionProgress
from magistral_convert.pipeline import (
    Tracker,
    convert_tensors,
    encode_plainly,
    open_workers,
    search_threads,
)
from magistral_convert.plan import ConversionPlan, TensorConversion
from magistral_convert.quantize import bfloat16_values, encode_arrays, to_bfloat16
from magistral_convert.recipe import EMBEDDING, HEAD, NORM, part_of
from magistral_convert.source_rows import Rows, block_rows, read_rows
from magistral_convert.staging import StagingFolder
from magistral_convert.verify import verify_searched
from magistral_mlx.backend import backend, mx
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import ModelConfig

Importance = dict[str, mx.array]  # tensor -> (columns,) float32
Factors = dict[str, list[Factor]]  # tensor -> of each block of columns


def run(
    plan: ConversionPlan,
    work: StagingFolder,
    config: ModelConfig,
    text: CalibrationText,
    *,
    compensates: bool = False,
    given: Mapping[str, np.ndarray] = MappingProxyType({}),
    fetch: Callable[[Path], None],
    release: Callable[[Path], None],
    on_progress: OnConversionProgress | None = None,
) -> Quality:
    """Convert every tensor that is not committed in `work` yet, and measure the result.

    Args:
        plan: its tensors in the model's order; see `by_layer`.
        compensates: use `gptq`.
        given: tensor -> (columns,) what its columns count, in place of the text's inputs.
        fetch, release: see `magistral_convert.pipeline.run`.

    Raises:
        CheckpointError: a source file cannot be read, or verification fails.
        StorageError: the output cannot be written.
    """
    with open_workers(search_threads()) as workers:
        conversion = _Calibrated(
            plan, work, config, text, workers, on_progress, compensates=compensates, given=given
        )
        files = SourceFiles(plan, fetch, release)
        conversion.begin(files)
        for layer in range(conversion.first_layer(), config.text.num_hidden_layers):
            conversion.convert_layer(layer, files)
        return conversion.finish(files)


class _Calibrated:
    def __init__(
        self,
        plan: ConversionPlan,
        work: StagingFolder,
        config: ModelConfig,
        text: CalibrationText,
        workers: ThreadPoolExecutor,
        on_progress: OnConversionProgress | None,
        *,
        compensates: bool,
        given: Mapping[str, np.ndarray],
    ) -> None:
        self._plan, self._work, self._config, self._text = plan, work, config, text
        self._workers = workers
        self._compensates, self._given = compensates, given
        self._tracker = Tracker(plan, work, on_progress, verify_searched)
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self._units = by_layer(plan)
        self._numbers = {tensor.name: number for number, tensor in enumerate(plan.tensors)}
        self._pass = LayerPass(config.text)
        self._saved = SavedStates(work.path / "calibration")
        self._dtype = backend().dtype
        self._written = WrittenTensors(work, self._dtype)
        self._states: HiddenStates | None = None

    # The embedding

    def begin(self, files: SourceFiles) -> None:
        """Quantize the embedding and embed all sequences, unless that has been done."""
        self._saved.open(anew=not self._work.done)
        if self._saved.layers():
            return
        (unit, *_) = self._units
        (embedding,) = unit
        norm = norm_after_embedding(self._units)
        files.open([embedding, norm])
        gain = read_original(norm, self._dtype).astype(mx.float32)
        self._convert(unit, {embedding.name: gain * gain})
        original = self._embed(embedding, written=False, tokens=self._text.held_out)
        self._states = HiddenStates(
            self._embed(embedding, written=True, tokens=self._text.tokens),
            self._embed(embedding, written=True, tokens=self._text.held_out),
            original,
        )
        self._saved.save(0, self._states)
        files.done(0)

    def _embed(self, embedding: TensorConversion, *, written: bool, tokens: np.ndarray) -> mx.array:
        """(S, L) -> (S, L, D) in the dtype of all states, a few rows of the embedding at a time."""
        wanted, places = np.unique(tokens, return_inverse=True)
        found = np.zeros((len(wanted), embedding.columns), np.float32)
        step = block_rows(embedding, READ_BYTES)
        for start in range(0, embedding.rows, step):
            stop = min(start + step, embedding.rows)
            first, last = np.searchsorted(wanted, (start, stop))
            if first == last:
                continue
            rows = (
                self._written.read(embedding, start, stop)
                if written
                else to_bfloat16(read_rows(embedding, start, stop)).astype(mx.float32)
            )
            found[first:last] = np.array(rows.astype(mx.float32))[wanted[first:last] - start]
        return mx.array(found).astype(self._dtype)[mx.array(places.reshape(tokens.shape))]

    # The layers

    def first_layer(self) -> int:
        """Return the number of the first layer whose outputs are not there yet."""
        layer = max(self._saved.layers())
        if self._states is None:
            self._states = self._saved.load(layer)
        return layer

    def convert_layer(self, layer: int, files: SourceFiles) -> None:
        """Quantize the matrices of a layer and run all sequences through it."""
        states = self._states
        assert states is not None
        unit = self._units[layer + 1]
        files.open(unit)
        original = {part_of(tensor.name): read_original(tensor, self._dtype) for tensor in unit}
        states.original = self._run(states.original, original)
        importance: Importance = {}
        factors: Factors = {}
        statistics = InputStatistics(products=self._compensates) if self._left(unit) else None
        if statistics:
            self._run(states.calibration, original, statistics)
        del original  # factorizing takes as much memory again
        if statistics:
            for name, members in SHARED_INPUTS.items():
                squares = statistics.mean_squares(name)
                names = [_layer_name(layer, member) for member in members]
                importance |= dict.fromkeys(names, squares)
                if self._compensates:
                    products = statistics.take_products(name)
                    found = [factorize(np.array(block)) for block in products]
                    factors |= dict.fromkeys(names, found)
            mx.eval(importance)
        self._convert(unit, importance, factors)
        written = {part_of(tensor.name): self._written.read(tensor) for tensor in unit}
        states.calibration = self._run(states.calibration, written)
        states.held_out = self._run(states.held_out, written)
        self._saved.save(layer + 1, states)
        files.done(layer + 1)
        mx.clear_cache()

    def _run(
        self, h: mx.array, weights: dict[str, mx.array], statistics: InputStatistics | None = None
    ) -> mx.array:
        """Run sequences (S, L, D) through a layer, a few at a time."""
        step = max(1, BATCH_TOKENS // h.shape[1])
        outputs = []
        for start in range(0, len(h), step):
            on_input = statistics.add if statistics else None
            y = self._pass(h[start : start + step], weights, on_input)
            if statistics:
                statistics.evaluate()  # the last product is not needed, so not computed
            else:
                mx.eval(y)
                outputs.append(y)
        return mx.concatenate(outputs) if outputs else h

    # What comes after them

    def finish(self, files: SourceFiles) -> Quality:
        """Convert the rest, and compare the distributions of the held-out sequences."""
        states = self._states
        assert states is not None
        rest = self._units[-1]
        head = self._tensors.get(HEAD, self._tensors[EMBEDDING])
        files.open([*rest, head])
        decoder = [tensor for tensor in rest if tensor.name.startswith(LANGUAGE)]
        config = self._config.text
        gain = read_original(self._tensors[NORM], self._dtype)

        def normed(h: mx.array) -> mx.array:
            return mx.fast.rms_norm(h.reshape(-1, h.shape[-1]), gain, config.rms_norm_eps)

        statistics = InputStatistics()
        statistics.add(HEAD, normed(states.calibration))
        self._convert(decoder, {HEAD: statistics.mean_squares(HEAD)})
        quality = compare(
            normed(states.original),
            normed(states.held_out),
            read_original(head, self._dtype),
            self._written.read(head),
        )
        self._states = None
        convert_vision(
            rest[len(decoder) :],
            self._config,
            self._convert,
            self._left,
            self._written,
            self._dtype,
            compensates=self._compensates,
        )
        files.done(len(self._units) - 1)
        return quality

    # Tensors

    def _left(self, unit: list[TensorConversion]) -> list[TensorConversion]:
        return [tensor for tensor in unit if self._numbers[tensor.name] >= self._work.done]

    def _convert(
        self,
        unit: list[TensorConversion],
        importance: Importance,
        factors: Factors | None = None,
    ) -> None:
        """Convert the tensors of a unit that are not committed."""
        plain = {name: np.array(array) for name, array in importance.items()} | dict(self._given)

        def encode(tensor: TensorConversion, rows: Rows) -> list[memoryview]:
            scheme, columns = tensor.scheme, plain.get(tensor.name)
            if scheme is None or columns is None:
                return encode_plainly(tensor, rows)
            weights = bfloat16_values(rows)
            if scheme.mode != "affine":
                return encode_arrays(search_floating(weights, columns, scheme))
            if factors and tensor.name in factors:
                found = compensate(weights, columns, factors[tensor.name], scheme)
            else:
                found = search(weights, columns, scheme)
            return encode_arrays(found)

        size = COMPENSATED_BYTES if factors else None
        for tensor in self._left(unit):
            convert_tensors(self._workers, self._work, self._tracker, [tensor], encode, size)
        self._tracker.commit()


def _layer_name(layer: int, part: str) -> str:
    return f"{LANGUAGE}model.layers.{layer}.{part}.weight"
