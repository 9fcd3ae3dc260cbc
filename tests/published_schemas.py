"""30 schemas that people validate their files with: SchemaStore's, as check-jsonschema ships them.

Five are whole, the others definitions in larger ones that as a whole use keywords which a grammar
cannot follow (uniqueItems, not, if). JSON-Schema benchmarks of constrained decoding, llguidance's
among them, draw on the same store.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

_WHOLE = ("changie", "cloudbuild", "codecov", "github-discussion", "github-issue-config")
_PARTS = {
    "bamboo-spec": ("docker",),
    "bitbucket-pipelines": (
        "artifacts_upload",
        "trigger_configuration",
        "pipeline_variables",
        "variables_item",
    ),
    "buildkite": ("selectField", "automaticRetry"),
    "citation-file-format": ("identifier",),
    "cloudbuild": ("BuildStep", "BuildOptions", "GoModules", "MavenArtifacts"),
    "compose-spec": ("healthcheck", "model"),
    "github-actions": ("runs-javascript", "outputs-composite"),
    "github-workflows": ("defaults",),
    "gitlab-ci": ("stepOciReference",),
    "mergify": ("ConflictResolverModel", "MergeQueue", "Commit"),
    "snapcraft": ("ContentPlug",),
    "taskfile": ("for_cmd_call", "task_call", "var_subkey"),
}

PUBLISHED = (*_WHOLE, *(f"{file}#{part}" for file, parts in _PARTS.items() for part in parts))


def published(name: str) -> dict[str, Any]:
    """The schema of that name in `PUBLISHED`."""
    file, _, part = name.partition("#")
    schema = _read(file)
    if not part:
        return schema
    key = "$defs" if part in schema.get("$defs", {}) else "definitions"
    shared = {k: v for k, v in schema.items() if k in ("$schema", "$defs", "definitions")}
    return {**shared, "$ref": f"#/{key}/{part}"}


@cache
def _read(file: str) -> dict[str, Any]:
    folder = files("check_jsonschema") / "builtin_schemas" / "vendor"
    return json.loads((folder / f"{file}.json").read_text(encoding="utf-8"))
