"""What quantizing each matrix costs, measured in one pass over the original weights.

The cost of a matrix at some bits is the energy of its error as a share of the residual stream that
it is added to: the squared error of sampled rows, weighted by the mean squares of the input
columns, as a share of their weighted squares, times the share that the output of its block has in
the stream behind it, as the next norm sees both: each token by itself, since the first one's energy
is a thousand times that of others in trained models, and behind the gains, which turn loud channels
down. (The gains of the layer's second norm stand for those of the next.) For the head and the
embedding the share is one.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from magistral_convert.calibration.allocation import Choices, SchemeChoice
from magistral_convert.calibration.files import Unit, by_layer
from magistral_convert.calibration.layers import SHARED_INPUTS, InputStatistics, LayerPass, Weights
from magistral_convert.calibration.memory import BATCH_TOKENS
from magistral_convert.calibration.search import search
from magistral_convert.calibration.tensors import read_original, read_sample
from magistral_convert.options import Measuring, OnConversionProgress
from magistral_convert.plan import ConversionPlan, TensorConversion
from magistral_convert.recipe import HEAD, NORM, layer_of, part_of
from magistral_mlx.backend import backend, mx
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import TextConfig
from magistral_mlx.quantization import AFFINE_BITS, Quantization

TOKENS = 2048  # of calibration text
_ROWS = 64  # of a matrix that are quantized to see the error


def measure(
    plan: ConversionPlan,
    config: TextConfig,
    tokens: np.ndarray,
    group_size: int,
    on_progress: OnConversionProgress | None = None,
) -> Choices:
    """Return the choices of each quantized matrix of the decoder.

    Args:
        plan: in layer order; its files are on this machine.
        tokens: (S, L); TOKENS of them are used, from all over the text.
    """
    dtype = backend().dtype
    most = max(1, TOKENS // tokens.shape[1])
    if len(tokens) > most:
        tokens = tokens[np.linspace(0, len(tokens) - 1, most).astype(int)]
    units = by_layer(plan)
    passed = _Passed(plan, on_progress)
    (embedding,) = units[0]
    wanted, places = np.unique(tokens, return_inverse=True)
    rows = read_original(embedding, dtype)[mx.array(wanted)]
    h = rows[mx.array(places.reshape(tokens.shape))]
    mx.eval(h)
    choices: Choices = {}
    ones = mx.ones(embedding.columns)
    _add(choices, embedding, ones, 1.0, group_size)
    passed.add(units[0])
    run = LayerPass(config)
    for unit in units[1:]:
        if layer_of(unit[0].name) is None:
            continue
        weights = {part_of(t.name): read_original(t, dtype) for t in unit}
        h, statistics, shares = _through(run, h, weights)
        for name, members in SHARED_INPUTS.items():
            squares = statistics.mean_squares(name)
            for tensor in unit:
                if part_of(tensor.name) in members:
                    share = shares[part_of(tensor.name).partition(".")[0]]
                    _add(choices, tensor, squares, share, group_size)
        del weights
        mx.clear_cache()
        passed.add(unit)
    for tensor in units[-1]:
        if tensor.name == HEAD:
            gain = read_original(next(t for t in units[-1] if t.name == NORM), dtype)
            statistics = InputStatistics()
            statistics.add(HEAD, mx.fast.rms_norm(h, gain, config.rms_norm_eps))
            _add(choices, tensor, statistics.mean_squares(HEAD), 1.0, group_size)
    passed.add([tensor for tensor in units[-1] if tensor.name.startswith(LANGUAGE)])
    return choices


class _Passed:
    """Reports the tensors of the decoder that the pass is through with."""

    def __init__(self, plan: ConversionPlan, on_progress: OnConversionProgress | None) -> None:
        self._on_progress = on_progress
        self._decoder = [t for t in plan.tensors if t.name.startswith(LANGUAGE)]
        self._total = sum(tensor.source_bytes for tensor in self._decoder)
        self._tensors = self._bytes = 0
        self.add([])

    def add(self, unit: Unit) -> None:
        self._tensors += len(unit)
        self._bytes += sum(tensor.source_bytes for tensor in unit)
        if self._on_progress:
            count = len(self._decoder)
            self._on_progress(Measuring(self._tensors, count, self._bytes, self._total))


def _through(
    run: LayerPass, h: mx.array, weights: Weights
) -> tuple[mx.array, InputStatistics, dict[str, float]]:
    """Run sequences (S, L, D) through a layer.

    Returns:
        the outputs, the statistics of the inputs, and the energy of what each block adds, as a
        share of that of the stream behind it, the mean over tokens.
    """
    statistics = InputStatistics()
    added = {"self_attn": 0.0, "mlp": 0.0}
    outputs = []
    attended: list[mx.array] = []

    def tell(name: str, x: mx.array) -> None:
        statistics.add(name, x)
        if name == "self_attn.o_proj":
            attended.append(x)

    gain = weights["post_attention_layernorm"].astype(mx.float32)
    step = max(1, BATCH_TOKENS // h.shape[1])
    for start in range(0, len(h), step):
        before = h[start : start + step]
        after = run(before, weights, tell)
        of_attention = attended.pop() @ weights["self_attn.o_proj"].T
        between = before + of_attention
        statistics.evaluate()
        added["self_attn"] += _shares(of_attention, between, gain)
        added["mlp"] += _shares(after - between, after, gain)
        outputs.append(after)
    found = mx.concatenate(outputs)
    mx.eval(found)
    tokens = h.shape[0] * h.shape[1]
    return found, statistics, {name: value / tokens for name, value in added.items()}


def _add(
    choices: Choices, tensor: TensorConversion, squares: mx.array, share: float, group_size: int
) -> None:
    if not tensor.is_quantized_here:
        return
    rows = read_sample(tensor, _ROWS).astype(mx.float32)
    weight = mx.maximum(squares, 1e-12)
    total = (mx.square(rows) * weight).sum()
    found, columns = [], np.array(squares.astype(mx.float32))
    for bits in AFFINE_BITS:
        scheme = Quantization(bits, group_size)
        parts = search(np.array(rows), columns, scheme)
        back = mx.dequantize(*parts, group_size=group_size, bits=bits).astype(mx.float32)
        error = (mx.square(back - rows) * weight).sum() / mx.maximum(total, 1e-30)
        cost = cast(float, error.item()) * share
        found.append(SchemeChoice(scheme, scheme.nbytes((tensor.rows, tensor.columns)), cost))
    choices[tensor.name] = found


def _shares(part: mx.array, whole: mx.array, gain: mx.array) -> float:
    """Sum over tokens of the energy of a part as a share of the whole's, (S, L, D) each, behind a
    norm of this gain, (D,)."""
    energy, of_whole = (mx.square(x * gain).sum(axis=-1) for x in (part, whole))
    return cast(float, (energy / mx.maximum(of_whole, 1e-30)).sum().item())
