"""What `magistral-mlx bench` measures: lengths of prompts, and numbers of requests at once."""

from __future__ import annotations

from typing import Any

from magistral_mlx.backend import DTYPES, backend
from magistral_mlx.bench.compare import Workload
from magistral_mlx.bench.remote import MOST_AT_ONCE
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import InvalidOption
from magistral_mlx.runtime.precision import default_dtype

_CONTEXTS = (512, 4096)


def contexts_of(checkpoint: Checkpoint, options: dict[str, Any]) -> list[int]:
    """Prompt lengths to measure at.

    Raises:
        InvalidOption: not numbers, or longer than the model's context.
    """
    longest = checkpoint.config.text.max_position_embeddings - options["tokens"]
    if options["contexts"] is None:
        return [context for context in _CONTEXTS if context <= longest] or [max(1, longest // 2)]
    parts = options["contexts"].split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidOption(
            f"context is {options['contexts']!r}; give numbers of tokens, as in 512,4096."
        )
    contexts = [int(part) for part in parts]
    if max(contexts) > longest:
        raise InvalidOption(
            f"context is {max(contexts):,} and {options['tokens']} tokens follow; this model has "
            f"{checkpoint.config.text.max_position_embeddings:,} tokens in all."
        )
    return contexts


def workload_of(checkpoint: Checkpoint, options: dict[str, Any]) -> Workload:
    """The workload that a command's options describe.

    Raises:
        InvalidOption: a length or a number that is none, or too large.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtype = options["dtype"] or names[default_dtype(checkpoint)]
    on_cpu = backend().name == "cpu"
    return Workload(
        checkpoint.folder,
        contexts_of(checkpoint, options),
        options["tokens"],
        checkpoint.config.text.vocab_size,
        dtype,
        exact=on_cpu and dtype == "float32",
        most=options["rounds"],
        # A CPU makes no kernels for longer prompts, and takes long to read them.
        warm_up=backend().prefill_chunk if on_cpu else None,
        parallel=_counts(options["parallel"]),
    )


def _counts(text: str) -> list[int]:
    """Numbers of requests at once to measure.

    Raises:
        InvalidOption: not numbers, or too large.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and 1 <= int(part) <= MOST_AT_ONCE for part in parts):
        raise InvalidOption(
            f"parallel is {text!r}; give numbers of requests from 1 to {MOST_AT_ONCE}, as in 2,8."
        )
    return [int(part) for part in parts]
