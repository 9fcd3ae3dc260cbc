"""All checks of `magistral-mlx doctor --check`, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from magistral_mlx.backend import DTYPES, backend, free_memory, mx
from magistral_mlx.bench.pass_costs import long_context_fits, measure_pass_costs
from magistral_mlx.bench.process import ours
from magistral_mlx.check.answers import check_answers
from magistral_mlx.check.compared import compare_kernels
from magistral_mlx.check.finding import Finding
from magistral_mlx.check.resources import check_dispatch, check_peaks, check_speed
from magistral_mlx.check.subject import Subject, make_slice
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.engine.precision import FLOAT16_LIMIT
from magistral_mlx.engine.speculate.measured import store as store_pass_costs
from magistral_mlx.errors import MagistralError
from magistral_mlx.measurements import Measurements, store_measurements
from magistral_mlx.memory.machine import Machine, this_machine
from magistral_mlx.memory.peak import loaded_weights
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.runtime.precision import default_dtype, keep_answer, largest_value

_LONGEST_CONTEXT = 131_072
_SMALL = 1 << 30  # bytes of weights that a CPU reads and computes with in a few seconds
_REPORT = "report this with `magistral-mlx doctor --check --json`"

OnStage = Callable[[str], None]


def check(checkpoint: Checkpoint | None, name: str, on_stage: OnStage) -> Iterator[Finding]:
    """Check this machine with a model, and keep what is measured.

    Args:
        checkpoint: the model; None for Magistral Small at 4 bits, without its files.
        on_stage: called with what begins.
    """
    machine = this_machine()
    dtype = default_dtype(checkpoint) if checkpoint else backend().dtype
    known = Subject.magistral_small
    subject = Subject.of(checkpoint, name, dtype) if checkpoint else known(dtype)
    on_stage(f"a slice of {subject.name}")
    yield from _guarded("slice", lambda: _check_slice(subject, machine, dtype, on_stage))
    free_memory()
    if checkpoint:
        on_stage("float16")
        yield from _guarded("float16", lambda: [_check_float16(checkpoint, machine)])
        free_memory()
        yield from _guarded(
            "pass costs", lambda: [_check_passes(checkpoint, subject, machine, on_stage)]
        )
    on_stage("the demo model's answers")
    yield from _guarded("demo", check_answers)


def _guarded(what: str, checks: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield findings; an error of the device or of memory becomes one."""
    try:
        yield from checks()
    except (MagistralError, RuntimeError, MemoryError, OSError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        yield Finding(what, "bad", f"stopped by an error: {words}", _REPORT)


def _check_slice(
    subject: Subject, machine: Machine, dtype: mx.Dtype, on_stage: OnStage
) -> Iterator[Finding]:
    model = make_slice(subject, dtype)
    on_stage("kernels against the CPU")
    yield from compare_kernels(model)
    on_stage("memory")
    findings, excess = check_peaks(model, machine)
    yield from findings
    on_stage("speed")
    findings, measured = check_speed(model, machine)
    yield from findings
    finding, attention = _check_dispatch(model, machine)
    yield finding
    yield _kept(machine, replace(measured, excess=excess, attention=attention))


def _check_dispatch(model: MagistralModel, machine: Machine) -> tuple[Finding, float | None]:
    text = model.config.text
    token = 4 * text.num_key_value_heads * text.head_dim * model.dtype.size
    fits = (machine.limit - mx.get_active_memory()) // (2 * token)
    longest = min(_LONGEST_CONTEXT, text.max_position_embeddings, fits)
    return check_dispatch(model, max(longest, 1024), machine.measured)


def _kept(machine: Machine, measured: Measurements) -> Finding:
    try:
        path = store_measurements(machine.name, measured)
    except OSError as error:
        return Finding("kept", "warning", f"nothing is kept for plans: {error}")
    return Finding("kept", "good", f"speeds for plans, in {path}")


def _check_float16(checkpoint: Checkpoint, machine: Machine) -> Finding:
    """Whether the model's values fit into float16."""
    weights = loaded_weights(checkpoint, mx.float16.size)
    limit = _SMALL if backend().name == "cpu" else machine.limit
    if weights.decoder + weights.vision > limit:
        return Finding("float16", "good", "not tried: the model is too large for that here")
    model = load_model(checkpoint, mx.float16)
    largest = largest_value(model, checkpoint)
    fits = largest < FLOAT16_LIMIT
    keep_answer(checkpoint, fits=fits, images=checkpoint.config.vision is not None)
    figures = {"largest": largest if fits else str(largest)}
    words = f"largest hidden state {largest:,.0f} of {FLOAT16_LIMIT:,.0f}"
    if fits:
        return Finding("float16", "good", f"holds this model: {words}", figures=figures)
    words = f"too small for this model, which computes in bfloat16: {words}"
    slower = backend().prefers_float16
    return Finding("float16", "warning" if slower else "good", words, figures=figures)


def _check_passes(
    checkpoint: Checkpoint, subject: Subject, machine: Machine, on_stage: OnStage
) -> Finding:
    """Measure the costs of wider passes, and keep them for speculation."""
    chosen, weights = default_dtype(checkpoint), subject.weights.decoder
    if weights > machine.limit:
        return Finding("pass costs", "good", "not measured: the model is too large for that here")
    dtype = next(name for name, known in DTYPES.items() if known == chosen)
    long = long_context_fits(checkpoint.config.text, weights, chosen.size, machine.limit)
    costs = measure_pass_costs(ours(), checkpoint.folder, dtype, on_stage, long=long)
    if costs is None:
        return Finding("pass costs", "good", "passes are too slow here to guess tokens")
    store_pass_costs(machine.name, weights, costs)
    words = ", ".join(f"{rows}: {cost:.1f}" for rows, cost in costs.points)
    figures = {"points": costs.points, "long": costs.long}
    return Finding(
        "pass costs", "good", f"rows: cost, kept for speculation: {words}", figures=figures
    )
