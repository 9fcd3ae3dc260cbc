"""An `ssh` that reaches this machine, or fails as the real one does, by the name of the user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_SCRIPT = r"""#!/bin/sh
while [ "$1" != -- ]; do shift; done
target="$2"
case "$target" in
    unknown@*) echo "ssh: Could not resolve hostname mac: Name or service not known" >&2; exit 255;;
    locked@*) echo "$target: Permission denied (publickey,password)." >&2; exit 255;;
    closed@*) echo "ssh: connect to host mac port 22: Connection refused" >&2; exit 255;;
    asleep@*) echo "ssh: connect to host mac port 22: Operation timed out" >&2; exit 255;;
    stranger@*) echo "Host key verification failed." >&2; exit 255;;
    bare@*) echo "zsh:1: command not found: magistral-mlx" >&2; exit 127;;
    early@*) echo "magistral-mlx: there is no command machine-agent." >&2; exit 2;;
    odd@*) echo "something else" >&2; exit 3;;
    old@*) exec 3>&1; sh -c "$3" | sed -u \
        's/"version": "[^"]*"/"version": "0.0.9"/; s/"mlx": "[^"]*"/"mlx": "0.1"/' ;;
    other@*) sh -c "$3" | sed -u 's/"digest": "[^"]*"/"digest": "0"/' ;;
    empty@*) sh -c "$3" | sed -u 's/"path": "[^"]*"/"path": null/' ;;
    *) echo "Welcome to $target."; exec sh -c "$3";;
esac
"""


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fake `ssh`, which stands first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "ssh"
    script.write_text(_SCRIPT)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
