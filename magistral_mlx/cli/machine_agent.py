"""`magistral-mlx machine-agent`: the hidden command that --machines runs on each machine."""

from __future__ import annotations

import sys

import click


@click.command(hidden=True)
def machine_agent() -> int:
    """Answer the requests of the machine that runs the command, on stdin and stdout."""
    from magistral_mlx.machines.agent import run_agent

    return run_agent(sys.stdin, sys.stdout)
