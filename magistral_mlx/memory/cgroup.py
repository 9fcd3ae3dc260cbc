"""Memory limits of Linux control groups, such as those of containers.

A process is in one group of each hierarchy, and the limits of all parent groups apply as well.
Version 2 has a single hierarchy, version 1 one for memory; both may be mounted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class CgroupLimit:
    """The memory limit and use of a group, in bytes. used: without reclaimable file pages."""

    limit: int
    used: int


@dataclass(frozen=True)
class _Files:
    limit: str
    used: str
    droppable: str  # a line of memory.stat


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def memory_groups(root: Path = Path("/")) -> list[CgroupLimit]:
    """Return the limits of this process's groups, the innermost first."""
    groups = []
    for folder, top, files in _places(root):
        inside = [folder, *folder.parents]
        for place in inside[: inside.index(top) + 1]:
            limit = _number(place / files.limit)
            if limit:
                used = _number(place / files.used) or 0
                groups.append(CgroupLimit(limit, max(0, used - _droppable(place, files))))
    return groups


def _places(root: Path) -> Iterator[tuple[Path, Path, _Files]]:
    """Yield, for each mounted hierarchy, the folders of this process's group and of its root."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths[_V2] = path
        elif "memory" in controllers.split(","):
            paths[_V1] = path
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mounted, where = before.split()[3:5]
        kind, options = after.split()[0], after.split()[-1]
        is_v1 = kind == "cgroup" and "memory" in options.split(",")
        files = _V2 if kind == "cgroup2" else _V1 if is_v1 else None
        if files in paths:
            top = root / where.lstrip("/")
            yield top / _below(paths[files], mounted), top, files


def _below(path: str, mounted: str) -> PurePosixPath:
    """Path of the group relative to the mount, of which a container may see only a subtree."""
    group, base = PurePosixPath(path), PurePosixPath(mounted)
    if ".." in group.parts or not group.is_relative_to(base):
        return PurePosixPath()
    return group.relative_to(base)


def _droppable(place: Path, files: _Files) -> int:
    for line in _lines(place / "memory.stat"):
        name, _, count = line.partition(" ")
        if name == files.droppable and count.strip().isdigit():
            return int(count)
    return 0


def _number(path: Path) -> int | None:
    """Read a number from a file; None if there is none, as in "max"."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
