"""Models that are compared: their names and options, their files, and the models in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.backend import DTYPES, free_memory, mx
from magistral_mlx.cache.scheme import FULL
from magistral_mlx.checkpoint.adapters.load import load_adapter
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import OnProgress, load_head, load_model
from magistral_mlx.checkpoint.names import HEAD_PATH, head_prefix
from magistral_mlx.errors import InvalidOption
from magistral_mlx.files import user_path
from magistral_mlx.hub import DownloadProgress, find_tokenizer
from magistral_mlx.hub.adapters import locate_adapter
from magistral_mlx.library import locate
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.here import describe, profile
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.machine import this_machine
from magistral_mlx.memory.peak import loaded_weights
from magistral_mlx.memory.plan import Plan, PlanRequest
from magistral_mlx.model.adapters import Adapter
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.runtime.precision import default_dtype, load_in_default_dtype

_OPTIONS = ("kv", "dtype", "adapter", "tokenizer")
_WITH_OPTIONS = re.compile(r"(.*?)@(\w+=.*)", re.DOTALL)
_NEXT_OPTION = re.compile(rf",(?=(?:{'|'.join(_OPTIONS)})=)")


@dataclass(frozen=True)
class Variant:
    """A model and how it runs, as a user names it: NAME, or NAME@kv=4/4,adapter=DIR.

    model: None for the default model. dtype: None for the backend's default.
    """

    model: str | None
    kv: str = FULL.name
    dtype: str | None = None
    adapter: str | None = None
    tokenizer: str | None = None

    @classmethod
    def parse(cls, text: str, first: Variant | None = None) -> Variant:
        """Parse a name. Without a model, as in "@kv=4/4", it is that of `first`.

        Raises:
            InvalidOption: an option that there is not, twice the same, or a value out of range.
        """
        match = None if user_path(text).exists() else _WITH_OPTIONS.fullmatch(text)
        model, given = (match[1], match[2]) if match else (text, "")
        options: dict[str, str] = {}
        for part in _NEXT_OPTION.split(given) if given else ():
            name, _, value = part.partition("=")
            if name not in _OPTIONS or name in options or not value:
                raise InvalidOption(
                    f"{text!r} has {part!r} after the @; give each of {', '.join(_OPTIONS)} once "
                    "at most, as in demo@kv=4/4,dtype=float32."
                )
            options[name] = value
        LoadOptions(kv=options.get("kv"), dtype=options.get("dtype"))  # type: ignore[arg-type]
        return cls(model or (first.model if first else None), **options)

    @property
    def label(self) -> str:
        """Name and options, as `parse` takes them."""
        options = (
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)[1:]
            if getattr(self, field.name) != field.default
        )
        given = ",".join(options)
        return (self.model or "default model") + (f"@{given}" if given else "")


@dataclass(frozen=True)
class ComparedModel:
    """The files of a variant, checked; no weights are in memory."""

    variant: Variant
    checkpoint: Checkpoint
    adapter: StoredAdapter | None
    tekken: Path

    @classmethod
    def open(cls, variant: Variant, on_progress: DownloadProgress | None = None) -> ComparedModel:
        """Find a variant's files, downloaded if need be.

        Raises:
            MagistralError: what is missing, damaged, or of another model.
        """
        checkpoint = Checkpoint.open(locate(variant.model, on_progress=on_progress))
        adapter = None
        if variant.adapter is not None:
            folder = locate_adapter(variant.adapter, on_progress=on_progress)
            adapter = StoredAdapter.open(folder, checkpoint.config)
        tekken = find_tokenizer(checkpoint.folder, variant.tokenizer, on_progress=on_progress)
        return cls(variant, checkpoint, adapter, tekken)

    @property
    def label(self) -> str:
        return self.variant.label

    @property
    def float_bytes(self) -> int:
        """Bytes of a value in the compute dtype."""
        return profile(self.variant.dtype).float_bytes

    @property
    def dtype(self) -> str:
        """The compute dtype, as far as it is known before the model is loaded."""
        names = {dtype: name for name, dtype in DTYPES.items()}
        return self.variant.dtype or names[default_dtype(self.checkpoint)]

    def identity(self) -> str:
        """Digest of the files, and the options."""
        adapter = 0 if self.adapter is None else self.adapter.fingerprint()
        options = replace(self.variant, model=None, adapter=None, tokenizer=None)
        return f"{self.checkpoint.fingerprint()} {adapter} {options}"

    def head_bytes(self) -> int:
        """Bytes of the output matrix in memory, with what the adapter changes of it."""
        names = head_prefix(self.checkpoint.config)
        tensors = {n: t for n, t in self.checkpoint.tensors.items() if n.startswith(names)}
        weights = loaded_weights(replace(self.checkpoint, tensors=tensors), self.float_bytes)
        adapter = self._head_adapter()
        return weights.decoder + (0 if adapter is None else adapter.nbytes(self.float_bytes))

    def plan(self, context: int, limit: int | None = None, beside: int = 0) -> Plan:
        """Plan sequences of up to `context` tokens, within `limit` bytes.

        beside: bytes of other arrays that are in memory meanwhile.

        Raises:
            OutOfMemory: it does not fit.
        """
        here, machine = profile(self.variant.dtype), this_machine()
        left = machine.limit - PROCESS.planned
        machine = replace(machine, limit=min(left, limit or left) - beside)
        adapters = () if self.adapter is None else (self.adapter,)
        model = describe(self.checkpoint, self.label, here.float_bytes, adapters=adapters)
        request = PlanRequest(context, self.variant.kv, images=0)
        plan = make_plan(model, machine, here, request)
        weights = plan.peak.weights + beside
        return replace(plan, peak=replace(plan.peak, weights=weights), limit=plan.limit + beside)

    @contextmanager
    def loaded(
        self, plan: Plan, on_progress: OnProgress | None = None
    ) -> Iterator[tuple[MagistralModel, Adapter | None]]:
        """Hold the plan and the model in memory, with its adapter.

        Raises:
            CheckpointError: a file cannot be read to its end.
        """
        free_memory()
        PROCESS.hold(plan)
        try:
            if self.variant.dtype is None:
                model = load_in_default_dtype(
                    self.checkpoint, on_progress, images=False, tokenizer=str(self.tekken)
                )
            else:
                model = load_model(self.checkpoint, DTYPES[self.variant.dtype], on_progress)
            adapter = None if self.adapter is None else load_adapter(self.adapter, model)
            yield model, adapter
            del model, adapter
        finally:
            free_memory()
            PROCESS.release(plan)

    def load_head(self, dtype: mx.Dtype) -> tuple[MagistralModel, Adapter | None]:
        """Load a model without layers that computes logits as the whole one does."""
        head, stored = load_head(self.checkpoint, dtype), self._head_adapter()
        return head, None if stored is None else load_adapter(stored, head)

    def _head_adapter(self) -> StoredAdapter | None:
        """Return the part of the adapter that changes the output matrix."""
        if self.adapter is None:
            return None
        changes = {path: one for path, one in self.adapter.changes.items() if path == HEAD_PATH}
        replaced = {path: one for path, one in self.adapter.replaced.items() if path == HEAD_PATH}
        if not changes and not replaced:
            return None
        return replace(self.adapter, changes=changes, replaced=replaced)
