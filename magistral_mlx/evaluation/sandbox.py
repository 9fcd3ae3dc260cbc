"""Docker, in which the code that a model writes is run."""

from __future__ import annotations

import shutil
import subprocess

from magistral_mlx.errors import EvaluationError

_PATIENCE = 30  # seconds
_ADVICE = (
    "start Docker, or run its code on this machine, unprotected from what it does, with "
    "--run-code-here."
)


def check_docker() -> None:
    """Check that Docker runs.

    Raises:
        EvaluationError: it is not installed, or its engine does not answer.
    """
    program = shutil.which("docker")
    if program is None:
        raise EvaluationError(
            "the task runs code that the model writes, in Docker, which is not installed. Install "
            f"and {_ADVICE}"
        )
    try:
        answer = subprocess.run(
            [program, "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        answer = None
    if answer is None or answer.returncode or not answer.stdout.strip():
        raise EvaluationError(
            f"the task runs code that the model writes, in Docker, which does not answer: {_ADVICE}"
        )
