"""Passes of the models over the text: the first one's hidden states, then each other's figures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import DTYPES, mx
from magistral_mlx.checkpoint.load import OnProgress
from magistral_mlx.divergence import divergence, log_softmax
from magistral_mlx.engine.logprobs import OutputCollector
from magistral_mlx.engine.prefill import prefill
from magistral_mlx.evaluation.quality.text import ComparedText, Tokens
from magistral_mlx.evaluation.quality.variants import ComparedModel
from magistral_mlx.evaluation.quality.work_folder import TokenFigures, WorkFolder
from magistral_mlx.memory.peak import Shape, head_rows
from magistral_mlx.memory.plan import Plan
from magistral_mlx.model.adapters import Adapter
from magistral_mlx.model.magistral import MagistralModel

_VERSION = 1  # of the work folder's files

OnStep = Callable[[str, int, int], None]  # stage, tokens or bytes done, and in all


@dataclass(frozen=True)
class ComparedPair:
    """Figures of one model against the first, by sequence."""

    model: ComparedModel
    figures: tuple[TokenFigures, ...]


class QualityRun:
    """A comparison of models on a text, checked and planned; `run` does it.

    plans: of each model, the first one's alone, the others' with its output matrix beside them.
    """

    def __init__(
        self, models: Sequence[ComparedModel], text: ComparedText, limit: int | None = None
    ) -> None:
        """`limit`: bytes of memory to stay within; None for what the machine allows.

        Raises:
            OutOfMemory: a model does not fit.
        """
        self.models, self.text = tuple(models), text
        first, *others = models
        beside = first.head_bytes()
        plans = [
            first.plan(text.longest, limit),
            *(other.plan(text.longest, limit, beside) for other in others),
        ]
        # Chunks of one size take the same kernels, which round alike.
        chunk = min(plan.chunk for plan in plans)
        self.plans = tuple(replace(plan, chunk=chunk) for plan in plans)

    def identity(self) -> str:
        """Digest of all that the figures depend on."""
        digest = hashlib.sha256(f"{_VERSION}".encode())
        for model in self.models:
            digest.update(model.identity().encode())
        for sequence in self.text.sequences:
            digest.update(len(sequence).to_bytes(8, "little") + sequence.tobytes())
        return digest.hexdigest()

    def run(self, on_step: OnStep | None = None) -> list[ComparedPair]:
        """Compare, from where an earlier run was stopped.

        Raises:
            StorageError: the disk is full, or another process makes the same comparison.
            CheckpointError: a file of a model cannot be read to its end.
        """
        folder = WorkFolder.of(self.identity())
        try:
            dtype = self._keep_states(folder, on_step)
            found = [
                ComparedPair(model, self._figures(folder, number, dtype, on_step))
                for number, model in enumerate(self.models)
                if number
            ]
        except BaseException:
            folder.close()
            raise
        folder.remove()
        return found

    def _keep_states(self, folder: WorkFolder, on_step: OnStep | None) -> mx.Dtype:
        """Keep the first model's hidden states of all sequences -> their dtype."""
        sequences = self.text.sequences
        missing = [n for n in range(len(sequences)) if not folder.states(n).exists()]
        known = folder.dtype()
        if known and not missing:
            return DTYPES[known]
        first = self.models[0]
        if known:
            first = replace(first, variant=replace(first.variant, dtype=known))
        hidden = first.checkpoint.config.text.hidden_size
        tokens = sum(len(sequences[n]) for n in missing)
        folder.check_space(tokens * hidden * first.float_bytes)
        loading = _loading(first.label, on_step)
        with first.loaded(self.plans[0], loading) as (model, adapter):
            folder.keep_dtype(next(name for name, d in DTYPES.items() if d == model.dtype))
            progress = _Progress(first.label, self.text.tokens, on_step, missing, sequences)
            for n in missing:
                with folder.writing_states(n) as file:
                    collector = _StateWriter(file)
                    _run(model, adapter, self.plans[0], sequences[n], collector, progress)
            dtype = model.dtype
            del model, adapter  # before the plan is given back
        return dtype

    def _figures(
        self, folder: WorkFolder, number: int, dtype: mx.Dtype, on_step: OnStep | None
    ) -> tuple[TokenFigures, ...]:
        """Measure the model `number` against the first one, on all sequences."""
        sequences = self.text.sequences
        found = {n: folder.figures(number, n) for n in range(len(sequences))}
        missing = [n for n, figures in found.items() if figures is None]
        if missing:
            first, other, plan = self.models[0], self.models[number], self.plans[number]
            with ExitStack() as stack:
                head, changed = first.load_head(dtype)
                loading = _loading(other.label, on_step)
                model, adapter = stack.enter_context(other.loaded(plan, loading))
                progress = _Progress(other.label, self.text.tokens, on_step, missing, sequences)
                for n in missing:
                    collector = _Comparison(
                        _Head(head, changed, folder.states(n)), _rows(plan, len(sequences[n]))
                    )
                    _run(model, adapter, plan, sequences[n], collector, progress)
                    found[n] = collector.read()
                    folder.keep_figures(number, n, collector.read())
                del collector, model, adapter, head, changed
        return tuple(figures for figures in found.values() if figures is not None)


def _loading(label: str, on_step: OnStep | None) -> OnProgress | None:
    return None if on_step is None else partial(on_step, f"loading {label}")


class _Progress:
    """Tokens of all sequences that a model has read, those of an earlier run included."""

    def __init__(
        self,
        label: str,
        total: int,
        on_step: OnStep | None,
        missing: Sequence[int],
        sequences: Sequence[Tokens],
    ) -> None:
        self._label, self._total, self._on_step = label, total, on_step
        self._before = total - sum(len(sequences[n]) for n in missing)

    def show(self, done: int) -> None:
        if self._on_step:
            self._on_step(self._label, self._before + done, self._total)

    def finish(self, tokens: int) -> None:
        self._before += tokens


def _run(
    model: MagistralModel,
    adapter: Adapter | None,
    plan: Plan,
    tokens: Tokens,
    collector: OutputCollector,
    progress: _Progress,
) -> None:
    """Run a sequence through a model."""
    caches = model.make_caches(plan.scheme, plan.profile.workspace)
    for cache in caches:
        cache.reserve(len(tokens), len(tokens))
    steps = prefill(model, caches, tokens, chunk=plan.chunk, adapter=adapter, collector=collector)
    for step in steps:
        progress.show(step.done)
    progress.finish(len(tokens))


def _rows(plan: Plan, length: int) -> int:
    """Positions whose logits of two models fit into what a chunk's layers have taken."""
    shape = Shape(prompt=length, answer=0, chunk=plan.chunk)
    return head_rows(plan.model.config.text, plan.scheme, shape, plan.profile)


class _StateWriter:
    """Writes a sequence's hidden states to a file, all but the last one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, model: MagistralModel, h: mx.array, following: NDArray[np.int32]) -> None:
        kept = mx.contiguous(h[0, : len(following)])
        self._file.write(np.array(kept.view(mx.uint8)).tobytes())


class _Head:
    """Log-probabilities of the first model, from its hidden states in a file."""

    def __init__(self, head: MagistralModel, adapter: Adapter | None, file: Path) -> None:
        hidden = head.config.text.hidden_size
        self._head, self._adapter = head, adapter
        self._states = np.memmap(file, np.uint8, "r").reshape(-1, hidden * head.dtype.size)

    def logprobs(self, start: int, end: int) -> mx.array:
        """Compute those after the positions from `start` to `end`, (end - start, vocab_size)."""
        h = mx.array(np.array(self._states[start:end])).view(self._head.dtype)
        with self._head.adapters.using([self._adapter]):
            return log_softmax(self._head.logits(h[None])[0])


class _Comparison:
    """Figures of a sequence's tokens, from the first model's hidden states and the present ones."""

    def __init__(self, first: _Head, rows: int) -> None:
        """`rows`: positions that are compared at once."""
        self._first, self._rows, self._start = first, rows, 0
        self._found: list[TokenFigures] = []

    def add(self, model: MagistralModel, h: mx.array, following: NDArray[np.int32]) -> None:
        for start in range(0, len(following), self._rows):
            tokens = mx.array(following[start : start + self._rows])[:, None]  # (R, 1)
            end = self._start + len(tokens)
            first = self._first.logprobs(self._start, end)
            mx.eval(first)  # before the other one's matrix is dequantized
            other = log_softmax(model.logits(h[:, start : start + len(tokens)])[0])
            agrees = mx.argmax(first, axis=-1) == mx.argmax(other, axis=-1)
            figures = (
                divergence(first, other),
                agrees.astype(mx.float32),
                *(mx.take_along_axis(x, tokens, axis=-1)[:, 0] for x in (first, other)),
            )
            mx.eval(figures)
            del first, other  # before the next rows have theirs
            self._found.append(TokenFigures(*map(np.array, figures)))
            self._start = end

    def read(self) -> TokenFigures:
        """Return the figures of all positions so far."""
        return TokenFigures.joined(self._found)
