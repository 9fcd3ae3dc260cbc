"""Which GGUF files make one model: the parts of a split one, and the mmproj that belongs to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from magistral_mlx.checkpoint.gguf.config import is_tower
from magistral_mlx.checkpoint.gguf.header import GgufFile, read_gguf
from magistral_mlx.errors import CheckpointError

SUFFIX = ".gguf"
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_PRECISIONS = ("bf16", "f16", "f32", "q8_0")  # of an mmproj, the one to take first
_PROJECTOR_LAYER = "application/vnd.ollama.image.projector"
_MODEL_LAYER = "application/vnd.ollama.image.model"


def is_gguf(path: Path) -> bool:
    """Whether a file is a GGUF one, by its name or, as Ollama's have no telling name, its magic."""
    if not path.is_file():
        return False
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def is_hidden(name: str) -> bool:
    """Whether a path within a folder is hidden, as the ._NAME that macOS writes beside a file."""
    return any(part.startswith(".") for part in name.split("/"))


def is_mmproj(name: str) -> bool:
    """Whether a file of that name holds a vision tower, as everybody calls them."""
    return "mmproj" in name.lower()


def sibling_parts(name: str) -> list[str]:
    """The names of all parts of the model that a file belongs to, in order."""
    match = _PART.fullmatch(name)
    count = int(match["count"]) if match else 0
    if match is None or not 1 <= int(match["number"]) <= count:
        return [name]
    suffix = name[-len(SUFFIX) :]
    return [f"{match['stem']}-{n:05d}-of-{count:05d}{suffix}" for n in range(1, count + 1)]


def model_names(names: Iterable[str]) -> list[str]:
    """Of file names the models, each split one by its first part; sorted."""
    ggufs = [name for name in names if name.lower().endswith(SUFFIX) and not is_hidden(name)]
    return sorted({sibling_parts(name)[0] for name in ggufs if not is_mmproj(name)})


def model_file(folder: Path) -> Path | None:
    """The only model among the GGUF files of a folder; None where it has none.

    Raises:
        CheckpointError: it has several.
    """
    names = model_names(_names(folder))
    if len(names) > 1:
        raise CheckpointError(
            f"{folder} holds {len(names)} GGUF models. Name one of them: {', '.join(names)}."
        )
    return folder / names[0] if names else None


def gguf_of(path: Path) -> Path | None:
    """The GGUF model that a path stands for: a file, or the only one of a folder that holds no
    checkpoint of another format; None where it stands for none.

    Raises:
        CheckpointError: the folder has several.
    """
    if path.is_file():
        return path if is_gguf(path) else None
    if any(name.endswith(".safetensors") for name in _names(path)):
        return None
    return model_file(path)


def read_parts(path: Path) -> list[GgufFile]:
    """The headers of a model's files, in order.

    Raises:
        CheckpointError: a part is missing, or a file is damaged.
        UnsupportedModel: a tensor of a type that is not read here.
    """
    paths = [path.with_name(name) for name in sibling_parts(path.name)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing and path.is_file():
        raise CheckpointError(
            f"{path.parent} is incomplete: {len(missing)} of {len(paths)} files of the model are "
            f"missing, {missing[0]} first. Fetch them."
        )
    files = [read_gguf(part) for part in paths]
    count = files[0].metadata.get("split.count", 1)
    if isinstance(count, int) and count not in (0, len(files)):
        raise CheckpointError(
            f"{path} is one of {count} files of a model, and its name does not say so. Give each "
            f"its name back, such as model-00001-of-{count:0>5}.gguf."
        )
    return files


def find_mmproj(path: Path, text: GgufFile) -> GgufFile | None:
    """The vision tower that belongs to a model: in its Ollama manifest, or beside its file.

    Of several beside it the one is taken whose name is most like the model's, in bfloat16 before
    other types. One that projects to another width belongs to another model.
    """
    candidates = _from_ollama(path)
    if not candidates:
        folders = [path.parent]
        if path.parent.parent.parent.name == "snapshots":  # of the hub: a folder for each type
            folders.append(path.parent.parent)
        candidates = [folder / name for folder in folders for name in _names(folder)]
        candidates = [f for f in candidates if is_mmproj(f.name) and f.suffix.lower() == SUFFIX]
        candidates.sort(
            key=lambda file: (-_alike(file.stem, path.stem), mmproj_precision(file.name))
        )
    for candidate in candidates:
        try:
            tower = read_gguf(candidate)
        except CheckpointError:
            continue
        if belongs_to(tower, text):
            return tower
    return None


def belongs_to(tower: GgufFile, text: GgufFile) -> bool:
    """Whether a file holds a vision tower that projects to the width of a model."""
    width = text.metadata.get(f"{text.architecture}.embedding_length")
    return is_tower(tower) and tower.metadata.get("clip.vision.projection_dim") in (None, width)


def _alike(name: str, model: str) -> int:
    """Length of what two names have in common at their beginning, without a leading mmproj."""
    bare = re.sub(r"^mmproj[-_.]*", "", name.lower())
    pairs = zip(bare, model.lower(), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def mmproj_precision(name: str) -> int:
    """The place of an mmproj's type in the order in which they are taken."""
    lower = name.lower()
    order = (n for n, precision in enumerate(_PRECISIONS) if precision in lower)
    return next(order, len(_PRECISIONS))


def _names(folder: Path) -> list[str]:
    """The names of the files in a folder that are not hidden."""
    try:
        found = sorted(path.name for path in folder.iterdir() if path.is_file())
        return [name for name in found if not is_hidden(name)]
    except OSError:
        return []


def ollama_models(root: Path) -> dict[str, Path]:
    """Name -> blob of the models in an Ollama folder, as its manifests have them."""
    manifests = root / "manifests"
    found: dict[str, Path] = {}
    for manifest in sorted(manifests.glob("*/*/*/*")):
        blob = _layers(manifest).get(_MODEL_LAYER)
        if blob is not None:
            host, owner, name, tag = manifest.relative_to(manifests).parts
            shown = name if owner == "library" else f"{owner}/{name}"
            if host != "registry.ollama.ai":
                shown = f"{host}/{shown}"
            found[f"{shown}:{tag}"] = blob
    return found


def _from_ollama(path: Path) -> list[Path]:
    """The projector of the manifest that names a blob as its model."""
    if path.parent.name != "blobs":
        return []
    for manifest in sorted((path.parent.parent / "manifests").glob("*/*/*/*")):
        layers = _layers(manifest)
        if layers.get(_MODEL_LAYER) == path and _PROJECTOR_LAYER in layers:
            return [layers[_PROJECTOR_LAYER]]
    return []


def _layers(manifest: Path) -> dict[str, Path]:
    """Media type -> blob of a manifest; empty where it is none."""
    blobs = manifest.parents[4] / "blobs"
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        found = {str(layer["mediaType"]): str(layer["digest"]) for layer in layers}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    named = {kind: digest.replace(":", "-") for kind, digest in found.items()}
    return {kind: blobs / name for kind, name in named.items() if re.fullmatch(r"[\w-]+", name)}
