"""Matrices of the model, plain or quantized. A module's path is its canonical tensor name."""

from __future__ import annotations

from collections.abc import Mapping

from magistral_mlx.backend import dequantize, mx, nn, quantized_matmul
from magistral_mlx.quantization import Quantization


class Linear(nn.Module):
    """y = x W.T (+ b). Quantized by `quantize_modules` where the checkpoint is."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = mx.zeros((out_features, in_features))
        if bias:
            self.bias = mx.zeros((out_features,))
        self._scheme: Quantization | None = None

    def __call__(self, x: mx.array) -> mx.array:
        y = matmul(x, self)
        return y + self.bias if "bias" in self else y


class Embedding(nn.Module):
    """One row of W a token; `as_linear` multiplies by W, for models that tie their head to it."""

    def __init__(self, vocab_size: int, features: int) -> None:
        super().__init__()
        self.weight = mx.zeros((vocab_size, features))
        self._scheme: Quantization | None = None

    def __call__(self, tokens: mx.array, dtype: mx.Dtype) -> mx.array:
        """(B, L) token ids -> (B, L, D) in `dtype`."""
        if self._scheme is None:
            return self.weight[tokens].astype(dtype)
        biases = self.get("biases")
        return dequantize(
            self.weight[tokens],
            self.scales[tokens],
            None if biases is None else biases[tokens],
            self._scheme,
            dtype,
        )

    def as_linear(self, x: mx.array) -> mx.array:
        return matmul(x, self)


def matmul(x: mx.array, module: Linear | Embedding) -> mx.array:
    """`x @ W.T` for the matrix of a module, whatever its form."""
    if module._scheme is None:
        return x @ module.weight.T
    return quantized_matmul(x, module.weight, module.scales, module.get("biases"), module._scheme)


def quantize_modules(model: nn.Module, schemes: Mapping[str, Quantization]) -> None:
    """Give the modules named in `schemes` (by `….weight`) room for quantized parts.

    The parts are placeholders until the checkpoint's weights are loaded over them.
    """
    modules = dict(model.named_modules())
    for name, scheme in schemes.items():
        module = modules[name.removesuffix(".weight")]
        out_features, in_features = module.weight.shape
        scales = scheme.scales_shape((out_features, in_features))
        module._scheme = scheme
        module.weight = mx.zeros(scheme.weight_shape((out_features, in_features)), mx.uint32)
        if scheme.has_biases:
            module.scales = mx.zeros(scales)
            module.biases = mx.zeros(scales)
        else:
            module.scales = mx.zeros(scales, mx.uint8)
