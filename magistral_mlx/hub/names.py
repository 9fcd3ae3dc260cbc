"""Names of repositories on the hub: `owner/name`, optionally `owner/name@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from magistral_mlx.errors import ModelNotFound

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RepoRef:
    """A repository and the branch, tag or commit wanted of it."""

    repo: str
    revision: str = "main"

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a full commit hash, which always means the same files."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


def parse_repo(name: str) -> RepoRef | None:
    """`owner/name` or `owner/name@revision` as a reference; None where `name` is neither."""
    match = _REPO.fullmatch(name)
    if match is None or ".." in name or "--" in match["repo"]:
        return None
    return RepoRef(match["repo"], match["revision"] or "main")


def require_repo(name: str) -> RepoRef:
    """The reference that `name` spells. Raises `ModelNotFound` where it spells none."""
    ref = parse_repo(name)
    if ref is None:
        raise ModelNotFound(
            f"{name!r} is not the name of a repository on the hub. "
            "Expected owner/name, optionally with @revision."
        )
    return ref
