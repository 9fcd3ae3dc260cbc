"""Plans for a local checkpoint on this machine and backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from magistral_mlx.backend import DEQUANTIZED_BYTES, DTYPES, backend
from magistral_mlx.cache.attention import WORKSPACE
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.limits import PROCESS
from magistral_mlx.memory.machine import this_machine
from magistral_mlx.memory.peak import BackendProfile, loaded_weights
from magistral_mlx.memory.plan import Draft, Plan, PlannedModel, PlanRequest


def profile(dtype: str | None = None) -> BackendProfile:
    """Return the profile of the present backend, with `dtype` or its default."""
    here = backend()
    return BackendProfile(
        float_bytes=(DTYPES[dtype] if dtype else here.dtype).size,
        dequantized_bytes=0 if here.dequantize_from_rows is None else DEQUANTIZED_BYTES,
        dequantized_rows=here.dequantize_from_rows or 0,
        fused_attention=here.fused_attention,
        workspace=WORKSPACE,
        chunk=here.prefill_chunk,
        packed_attention=here.packed_attention,
        excess=this_machine().measured.excess,
    )


def describe(
    checkpoint: Checkpoint,
    source: str,
    float_bytes: int,
    draft: Checkpoint | None = None,
    adapters: Iterable[StoredAdapter] = (),
) -> PlannedModel:
    """Describe a checkpoint, with a draft model and adapters beside it, for a plan."""
    weights = loaded_weights(checkpoint, float_bytes)
    beside = None
    if draft is not None:
        beside = Draft(draft.config.text, loaded_weights(draft, float_bytes).decoder)
    adapted = sum(adapter.nbytes(float_bytes) for adapter in adapters)
    return PlannedModel(source, checkpoint.config, weights, beside, adapted)


def plan_here(
    checkpoint: Checkpoint,
    source: str,
    request: PlanRequest | None = None,
    dtype: str | None = None,
    draft: Checkpoint | None = None,
    adapters: Iterable[StoredAdapter] = (),
) -> Plan:
    """Plan a checkpoint on this machine, beside the models that are already loaded.

    Raises:
        OutOfMemory: it does not fit, or not as requested.
    """
    here = profile(dtype)
    machine = this_machine()
    machine = replace(machine, limit=machine.limit - PROCESS.planned)
    model = describe(checkpoint, source, here.float_bytes, draft, adapters)
    return make_plan(model, machine, here, request)


def hold_plan(
    checkpoint: Checkpoint,
    source: str,
    request: PlanRequest | None = None,
    dtype: str | None = None,
    draft: Checkpoint | None = None,
    adapters: Iterable[StoredAdapter] = (),
) -> Plan:
    """Like `plan_here`, and set MLX's limits for the plan until `PROCESS.release`."""
    with PROCESS.lock:
        plan = plan_here(checkpoint, source, request, dtype, draft, adapters)
        PROCESS.hold(plan)
    return plan
