"""The staging folder of a conversion, beside its target, which is renamed when it is complete.

    DIR.partial/lock          held by the process that writes it
    DIR.partial/state.json    identity of the output, and the number of committed tensors
    DIR.partial/model/        the shards at full length, filled in the source's order
    DIR.partial/source/       downloaded shards that are being converted
    DIR.partial/calibration/  what a calibrated one resumes from
    DIR.partial/replaced/     an earlier result, while the new one is renamed

Nothing else in it is ever deleted. A folder of that name that no conversion has made is refused.

The finished folder lists its files in MANIFEST. Only those go when it is replaced; what others have
put there is moved into the new one.

A killed process leaves it; the next one continues after the committed tensors.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from magistral_convert.disk import flush_to_disk, storage_errors, write_file
from magistral_convert.plan import ConversionPlan, OutputTensor, TensorConversion
from magistral_mlx.errors import StorageError, TargetExists

SUFFIX = ".partial"
MANIFEST = ".magistral-mlx.json"
_REPLACED = "replaced"
_LOCK, _STATE = "lock", "state.json"
_OWN_FOLDERS = ("model", "source", "calibration", _REPLACED)
_FINDER = ".DS_Store"  # what macOS puts into a folder that somebody looks at


def staging_path(target: Path) -> Path:
    """Return the staging folder of `target`."""
    return target.with_name(target.name + SUFFIX)


def check_staging(folder: Path) -> None:
    """Check that what stands in the staging folder's place was made by a conversion.

    Raises:
        TargetExists: it was not.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir() and not folder.is_symlink():
        with storage_errors(folder):
            empty = all(entry.name == _FINDER for entry in folder.iterdir())
        if empty or _is_empty_file(folder / _LOCK) or _read_state(folder):
            return
    raise TargetExists(
        f"{folder} is the place where the output would be prepared, and no conversion has made it. "
        "Rename it, or choose another folder with -o."
    )


def written_files(folder: Path) -> set[str]:
    """Return the names of the files that a conversion wrote to a folder; empty if none did."""
    try:
        names = json.loads((folder / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


class StagingFolder:
    """An open staging folder. Rows may be written from several threads."""

    def __init__(self, target: Path, plan: ConversionPlan, identity: dict[str, str]) -> None:
        """`identity` holds digests of `source` and `output`. A folder of another output is emptied;
        its downloads stay where the source is the same."""
        self.target = target
        self.path = staging_path(target)
        self.model = self.path / "model"
        self.source = self.path / "source"
        self._plan = plan
        self._identity = identity
        self._lock: int | None = None
        self._files: dict[int, int] = {}
        self._committer = ThreadPoolExecutor(1, "commit")
        self._committing: Future[None] | None = None
        self.done = 0  # committed tensors

    def __enter__(self) -> StagingFolder:
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                self._resume()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def write(
        self, output: OutputTensor, tensor: TensorConversion, row: int, data: memoryview
    ) -> None:
        """Write the bytes of rows from `row` on."""
        offset = output.offset + row * (output.nbytes // tensor.rows)
        with storage_errors(self.path):
            _write_all(self._files[output.shard], data, offset)

    def read(self, output: OutputTensor, tensor: TensorConversion, start: int, stop: int) -> bytes:
        """Read the written bytes of rows `start` to `stop`."""
        size = output.nbytes // tensor.rows
        return os.pread(
            self._files[output.shard], (stop - start) * size, output.offset + start * size
        )

    def commit(self, done: int) -> None:
        """Flush everything written to the disk, then record `done` tensors as committed."""
        self.begin_commit(done)
        self._finish_commit()

    def begin_commit(self, done: int) -> None:
        """Commit while further rows are written, once the commit before it is done.

        Raises:
            StorageError: that one failed.
        """
        self._finish_commit()
        self._committing = self._committer.submit(self._commit, done)

    def _finish_commit(self) -> None:
        committing, self._committing = self._committing, None
        if committing:
            committing.result()

    def _commit(self, done: int) -> None:
        with storage_errors(self.path):
            for file in self._files.values():
                flush_to_disk(file)
            self.done = done
            state = self._identity | {"done": done}
            write_file(self.path / _STATE, json.dumps(state).encode())

    def publish(self, *, force: bool) -> None:
        """Rename the finished model to the target. `force` replaces an earlier conversion there."""
        self._close_files()
        with storage_errors(self.target):
            # A process that was killed here may have left the manifest and its temporary file.
            found = (path.name for path in self.model.iterdir() if path.suffix != ".tmp")
            names = {MANIFEST, *found}
            manifest = json.dumps({"files": sorted(names)}, indent=2)
            write_file(self.model / MANIFEST, manifest.encode())
            if force and self.target.exists():
                self.target.rename(self.path / _REPLACED)
            try:
                self.model.rename(self.target)
            except OSError as error:
                if self.target.exists():
                    raise TargetExists(
                        f"{self.target} was created meanwhile. The conversion is finished in "
                        f"{self.model}: move it, or run the same command with --force."
                    ) from error
                raise
            self._keep_foreign_files()
            _sync_folder(self.target.parent)
            self._remove_staging()

    def _remove_staging(self) -> None:
        """Delete what conversions put into the folder, what marks it as theirs last."""
        for name in _OWN_FOLDERS:
            _remove(self.path / name)
        for name in (_FINDER, f"{_STATE}.tmp", _STATE, _LOCK):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's file is in it
            self.path.rmdir()

    def _take_lock(self) -> None:
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise StorageError(
                f"another conversion is writing {self.path}. Wait for it, or choose another "
                "folder with -o."
            ) from None

    def _settle_replacement(self) -> None:
        """Undo or finish the replacement of a process that died while publishing."""
        replaced = self.path / _REPLACED
        if replaced.exists() and not self.target.exists():
            replaced.rename(self.target)
        self._keep_foreign_files()
        _remove(replaced)

    def _keep_foreign_files(self) -> None:
        """Move what no conversion wrote from the replaced folder into the target."""
        replaced = self.path / _REPLACED
        if not replaced.exists():
            return
        own = written_files(replaced)
        for entry in list(replaced.iterdir()):
            if entry.name not in own:
                place = self.target / entry.name
                while place.exists() or place.is_symlink():
                    place = place.with_name(place.name + ".old")
                entry.rename(place)

    def _resume(self) -> None:
        self._settle_replacement()
        state = _read_state(self.path)
        if {key: state.get(key) for key in self._identity} == self._identity:
            self.done = int(state["done"])
        else:
            _remove(self.model)
            if state.get("source") != self._identity["source"]:
                _remove(self.source)
            (self.path / _STATE).unlink(missing_ok=True)
        self.model.mkdir(exist_ok=True)
        if not self._open_files() and self.done:  # shards were changed from outside
            self.done = 0
        if not self.done:
            self.commit(0)

    def _open_files(self) -> bool:
        """Open every shard at full length, with its header; False if one had another length."""
        intact = True
        for number, shard in enumerate(self._plan.shards):
            file = os.open(self.model / shard.file, os.O_RDWR | os.O_CREAT, 0o644)
            self._files[number] = file
            if os.fstat(file).st_size != shard.nbytes:
                intact = False
                os.ftruncate(file, shard.nbytes)  # holes: no disk is taken yet
            _write_all(file, memoryview(shard.header), 0)
        return intact

    def _close_files(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _close(self) -> None:
        self._committer.shutdown()
        self._close_files()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _read_state(folder: Path) -> dict[str, Any]:
    """Read what a conversion has noted in its folder; empty where none has, or it is damaged."""
    try:
        state = json.loads((folder / _STATE).read_bytes())
        int(state["done"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return dict(state)


def _is_empty_file(path: Path) -> bool:
    return path.is_file() and not path.stat().st_size


def _write_all(file: int, data: memoryview, offset: int) -> None:
    """Write all of `data`; `os.pwrite` may write less."""
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
