"""Linear layers and embeddings, plain or quantized.

A module's path is its canonical tensor name, except for `Projections`, which holds several tensors
in one matrix; see `stored_as`.

Hot paths read weights and modules as `self["name"]`: reading `self.name` goes through
`nn.Module.__getattr__`, which costs the host as much as a call into MLX.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from typing import cast

from magistral_mlx.backend import backend, dequantize, mx, nn, quantized_matmul
from magistral_mlx.model.adapters import AdapterRows
from magistral_mlx.quantization import Quantization

HEAD = "language_model.lm_head"  # the head's path, of a tied one as well


class Linear(nn.Module):
    """y = x W.T (+ b). `quantize_modules` prepares it for quantized weights.

    adapters: those of the present pass, which change what `path` names; see `use_adapters`.
    """

    adapters: AdapterRows | None = None
    path = ""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = mx.zeros((out_features, in_features))
        if bias:
            self.bias = mx.zeros((out_features,))
        self._scheme: Quantization | None = None

    def __call__(self, x: mx.array) -> mx.array:
        y = matmul(x, self)
        if self.adapters:
            y = self.adapters.changed(self.path, x, y)
        return y + self["bias"] if "bias" in self else y

    @property
    def quantized(self) -> bool:
        return self._scheme is not None

    def some(self, x: mx.array, rows: slice) -> mx.array:
        """Compute the outputs of these rows of W only."""
        weight, scheme = self["weight"][rows], self._scheme
        if scheme is None:
            return x @ weight.T
        biases = self["biases"][rows] if scheme.has_biases else None
        return quantized_matmul(x, weight, self["scales"][rows], biases, scheme)


class Embedding(nn.Module):
    """Token embeddings, the rows of W; `as_linear` multiplies by W, for models with a tied head.

    adapters: those of the present pass; for them the tied head has the path `head`.
    """

    adapters: AdapterRows | None = None
    head = ""

    def __init__(self, vocab_size: int, features: int) -> None:
        super().__init__()
        self.weight = mx.zeros((vocab_size, features))
        self._scheme: Quantization | None = None

    def __call__(self, tokens: mx.array, dtype: mx.Dtype) -> mx.array:
        """(B, L) token ids -> (B, L, D) in `dtype`."""
        embedded = self._rows(tokens, dtype)
        return self.adapters.embedded(tokens, embedded) if self.adapters else embedded

    @property
    def quantized(self) -> bool:
        return self._scheme is not None

    def as_linear(self, x: mx.array) -> mx.array:
        y = matmul(x, self)
        return self.adapters.changed(self.head, x, y) if self.adapters else y

    def _rows(self, tokens: mx.array, dtype: mx.Dtype) -> mx.array:
        if self._scheme is None:
            embedded: mx.array = self["weight"][tokens].astype(dtype)
            return embedded
        biases = self.get("biases")
        return dequantize(
            self["weight"][tokens],
            self["scales"][tokens],
            None if biases is None else biases[tokens],
            self._scheme,
            dtype,
        )


class Projections(nn.Module):
    """Projections of the same input, with their matrices stacked and multiplied as one.

    If quantization schemes differ, neighbouring projections with the same scheme share a matrix.

    adapters: those of the present pass, which change each projection by its own path, of `paths`.
    """

    adapters: AdapterRows | None = None

    def __init__(self, in_features: int, **sizes: int) -> None:
        """sizes: number of output features of each projection, by the last part of its name."""
        super().__init__()
        self.in_features = in_features
        self.names, self.sizes = tuple(sizes), tuple(sizes.values())
        self.paths: tuple[str, ...] = ()
        self.cuts = tuple(accumulate(self.sizes[:-1]))
        self.arrange([None] * len(sizes))

    def arrange(self, schemes: Sequence[Quantization | None]) -> None:
        """Allocate matrices for these schemes, one scheme per projection."""
        numbers = range(len(schemes))
        groups = tuple(tuple(group) for _, group in groupby(numbers, schemes.__getitem__))
        self.groups = groups  # the projections of each matrix
        self.matrices = [self._matrix(group, schemes[group[0]]) for group in groups]

    def _matrix(self, group: Sequence[int], scheme: Quantization | None) -> Linear:
        matrix = Linear(self.in_features, sum(self.sizes[n] for n in group))
        if scheme:
            _allocate_quantized(matrix, scheme)
        return matrix

    def __call__(self, x: mx.array) -> mx.array:
        """(…, in) -> (…, all outputs side by side)"""
        y = self._product(x)
        if self.adapters:
            y = mx.concatenate(self._changed(x, mx.split(y, self["cuts"], axis=-1)), axis=-1)
        return y

    def _product(self, x: mx.array) -> mx.array:
        """(…, in) -> (…, all outputs side by side), without adapters"""
        matrices = self["matrices"]
        if len(matrices) == 1:
            y: mx.array = matrices[0](x)
            return y
        return mx.concatenate([matrix(x) for matrix in matrices], axis=-1)

    def _changed(self, x: mx.array, outputs: Iterable[mx.array]) -> list[mx.array]:
        """Change the outputs of each projection by the adapters of the pass."""
        adapters, paths = self.adapters, self["paths"]
        assert adapters
        return [adapters.changed(path, x, y) for path, y in zip(paths, outputs, strict=True)]

    def apart(self, x: mx.array) -> list[mx.array]:
        """(…, in) -> the outputs of each projection.

        The outputs of one product are strided views; with many rows those are slower, and keep
        the whole product alive. So many rows are multiplied by each projection separately.
        """
        if x.size // x.shape[-1] <= backend().few_rows:
            outputs = cast(list[mx.array], mx.split(self._product(x), self["cuts"], axis=-1))
            return self._changed(x, outputs) if self.adapters else outputs
        outputs = []
        for matrix, group in zip(self["matrices"], self["groups"], strict=True):
            start = 0
            for size in (self["sizes"][n] for n in group):
                outputs.append(matrix.some(x, slice(start, start + size)))
                start += size
        return self._changed(x, outputs) if self.adapters else outputs


def matmul(x: mx.array, module: Linear | Embedding) -> mx.array:
    """`x @ W.T` for a module's matrix, plain or quantized."""
    scheme = module._scheme
    if scheme is None:
        return x @ module["weight"].T
    return quantized_matmul(x, module["weight"], module["scales"], module.get("biases"), scheme)


def quantize_modules(model: nn.Module, schemes: Mapping[str, Quantization]) -> None:
    """Allocate quantized parts in the modules whose tensors `schemes` names (`….weight`).

    The parts are placeholders until the checkpoint's weights are loaded.
    """
    for path, module in model.named_modules():
        if isinstance(module, Projections):
            found = [schemes.get(f"{name}.weight") for name in _projection_names(path, module)]
            if any(found):
                module.arrange(found)
        elif isinstance(module, Linear | Embedding) and (scheme := schemes.get(f"{path}.weight")):
            _allocate_quantized(module, scheme)


def use_adapters(model: nn.Module, adapters: AdapterRows) -> None:
    """Have the matrices of a model changed by the adapters of the present pass."""
    for path, module in model.named_modules():
        if isinstance(module, Projections):
            module.paths = tuple(_projection_names(path, module))
        elif isinstance(module, Linear) and ".matrices." not in path:
            module.path = path
        elif isinstance(module, Embedding):
            module.head = HEAD
        else:
            continue
        module.adapters = adapters


def matrices_of(model: nn.Module) -> Iterator[tuple[str, Linear | Embedding, slice]]:
    """The path of each matrix that is multiplied by, with the module and the rows of it that hold
    the matrix. A tied head is the embedding's."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, Projections):
            names = _projection_names(path, module)
            for matrix, group in zip(module.matrices, module.groups, strict=True):
                start = 0
                for number in group:
                    yield names[number], matrix, slice(start, start + module.sizes[number])
                    start += module.sizes[number]
        elif isinstance(module, Linear) and ".matrices." not in path:
            yield path, module, slice(0, module["weight"].shape[0])
        elif isinstance(module, Embedding) and HEAD not in modules:
            yield HEAD, module, slice(0, module["weight"].shape[0])


def rows_of(module: Linear | Embedding, rows: slice) -> mx.array:
    """Rows of a module's matrix in float32, (R, in), dequantized where it is quantized."""
    weight, scheme = module["weight"][rows], module._scheme
    if scheme is None:
        return weight.astype(mx.float32)
    biases = module["biases"][rows] if scheme.has_biases else None
    return dequantize(weight, module["scales"][rows], biases, scheme, mx.float32)


def stored_as(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Map the path of each parameter to the canonical names of the tensors stacked in it."""
    stored: dict[str, tuple[str, ...]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Projections):
            names = _projection_names(path, module)
            for place, group in enumerate(module.groups):
                for part in module.matrices[place]:
                    held = tuple(f"{names[member]}.{part}" for member in group)
                    stored[f"{path}.matrices.{place}.{part}"] = held
    for path, module in model.named_modules():
        for name, value in module.items():
            if isinstance(value, mx.array):
                parameter = f"{path}.{name}" if path else name
                stored.setdefault(parameter, (parameter,))
    return stored


def _projection_names(path: str, module: Projections) -> list[str]:
    """Canonical names of a module's projections, which are siblings of the module."""
    return [f"{path.rpartition('.')[0]}.{name}" for name in module.names]


def _allocate_quantized(module: Linear | Embedding, scheme: Quantization) -> None:
    out_features, in_features = module.weight.shape
    scales = scheme.scales_shape((out_features, in_features))
    module._scheme = scheme
    module.weight = mx.zeros(scheme.weight_shape((out_features, in_features)), mx.uint32)
    if scheme.has_biases:
        module.scales = mx.zeros(scales)
        module.biases = mx.zeros(scales)
    else:
        module.scales = mx.zeros(scales, mx.uint8)
