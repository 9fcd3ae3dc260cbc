"""GGUF models on this machine and on the hub: what they are called, and what a name brings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magistral_convert import (
    ConversionProgress,
    Converting,
    ConvertOptions,
    convert,
    pipeline,
    prepare,
)
from magistral_convert.source import read_headers
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import InvalidOption, ModelNotFound
from magistral_mlx.hub.gguf import label_of, parse_gguf, select_model
from magistral_mlx.library import find_models, locate
from tests import command_line
from tests.checkpoints import Weights, random_weights, tiny_config, write_tekken
from tests.fake_hub import FakeHub
from tests.gguf_files import everything, write_mmproj, write_text_gguf
from tests.unit.test_gguf_checkpoint import split

CONFIG = tiny_config(layers=1, hidden_size=256, intermediate_size=256)
WEIGHTS = random_weights(CONFIG, seed=4)
REPO = "someone/Magistral-Small-2509-GGUF"
STEM = "Magistral-Small-2509"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "OLLAMA_MODELS", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def model(path: Path, kind: str = "Q4_0", **metadata: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_gguf(path, CONFIG, WEIGHTS, everything(kind), **metadata)
    return path


def tower(path: Path, weights: Weights = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mmproj(path, CONFIG, weights, everything("F16"))
    return path


def ollama_model(home: Path, name: str, tag: str) -> Path:
    """The blob of a model of Ollama's, with its manifest."""
    manifest = home / f".ollama/models/manifests/registry.ollama.ai/library/{name}/{tag}"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:aa"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    return model(home / ".ollama/models/blobs/sha256-aa")


def repository(folder: Path) -> Path:
    """As publishers make them: several types, a split one in its own folder, one mmproj."""
    model(folder / f"{STEM}-Q4_0.gguf")
    model(folder / f"{STEM}-Q8_0.gguf", "Q8_0")
    for name in (f"{STEM}-Q8_0.gguf", "mmproj-BF16.gguf"):
        (folder / f"._{name}").write_bytes(bytes(4096))
    split(model(folder / f"BF16/{STEM}-BF16.gguf", "BF16"), 2)
    tower(folder / "mmproj-F16.gguf")
    write_tekken(folder / "tekken.json", 280)
    (folder / "SYSTEM_PROMPT.txt").write_text("Think.")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({REPO: repository(tmp_path / "repo")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


# Names


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("Magistral-Small-2509-Q4_K_M.gguf", "Q4_K_M"),
        ("Magistral-Small-2509.IQ4_XS.gguf", "IQ4_XS"),
        ("Magistral-Small-2509-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("BF16/Magistral-Small-2509-BF16-00001-of-00002.gguf", "BF16"),
        ("magistral-f16.gguf", "F16"),
        ("my-own-tune.gguf", "my-own-tune"),
    ],
)
def test_a_file_is_called_by_its_type(file: str, label: str):
    assert label_of(file) == label


@pytest.mark.parametrize("label", ["Q4_K_XL", "UD-Q4_K_XL", "ud-q4_k_xl", "a-UD-Q4_K_XL"])
def test_a_type_is_asked_for_in_any_spelling(label: str):
    files = ["a-UD-Q4_K_XL.gguf", "a-Q4_K_M.gguf", "mmproj-F16.gguf"]
    assert select_model(files, label) == ["a-UD-Q4_K_XL.gguf"]


@pytest.mark.parametrize(
    "name", ["thing:Q4_K_M", "a/b", "a/b:", "a/b:c/d", "C:/models/x", "a/b:.."]
)
def test_what_names_no_gguf_of_a_repository(name: str):
    assert parse_gguf(name) is None


# This machine


def test_lm_studio_ollama_and_the_hubs_cache_are_searched(tmp_path: Path):
    studio = tmp_path / ".lmstudio/models/someone/Magistral-Small-2509-GGUF"
    model(studio / f"{STEM}-Q8_0.gguf", "Q8_0")
    model(studio / f"{STEM}-Q4_0.gguf")
    tower(studio / "mmproj-F16.gguf")
    snapshot = tmp_path / "hf/hub/models--other--Tune-GGUF/snapshots/0123"
    model(snapshot / "Tune-F16.gguf", "F16")
    blob = ollama_model(tmp_path, "magistral", "24b")
    found = {m.name: (m.source, m.bits, m.has_vision, m.complete) for m in find_models()}
    assert found == {
        "other/Tune-GGUF@0123:F16": ("hub", None, False, True),
        "someone/Magistral-Small-2509-GGUF:Q4_0": ("lmstudio", 4, True, True),
        "someone/Magistral-Small-2509-GGUF:Q8_0": ("lmstudio", 8, True, True),
        "magistral:24b": ("ollama", 4, False, True),
    }
    assert locate("magistral:24b") == blob
    assert locate("someone/magistral-small-2509-gguf:q8_0").name == f"{STEM}-Q8_0.gguf"


def test_a_conversion_takes_the_names_of_lm_studios_and_ollamas_models(tmp_path: Path):
    studio = tmp_path / ".lmstudio/models/someone/Magistral-GGUF"
    q8 = model(studio / f"{STEM}-Q8_0.gguf", "Q8_0")
    f16 = model(studio / f"{STEM}-F16.gguf", "F16")
    for name, file, target in (
        ("magistral:24b", ollama_model(tmp_path, "magistral", "24b"), "magistral-24b"),
        ("someone/Magistral-GGUF:Q8_0", q8, "Magistral-Q8_0"),
        ("someone/Magistral-GGUF:F16", f16, "Magistral-F16-4bit"),
    ):
        conversion = prepare(name)
        assert conversion.source.folder == file
        assert conversion.target.name == target


def test_other_models_are_left_out_and_incomplete_ones_are_marked(tmp_path: Path):
    folder = tmp_path / ".lmstudio/models/someone/Things"
    model(folder / "llama-Q4_0.gguf", **{"tokenizer.ggml.pre": "llama-bpe"})
    split(model(folder / "half-Q8_0.gguf", "Q8_0"), 2)[1].unlink()
    (folder / "broken-F16.gguf").write_bytes(b"GGUF")
    found = {m.name: m.complete for m in find_models()}
    assert found == {"someone/Things:Q8_0": False, "someone/Things:F16": False}


def test_hidden_files_are_no_models(tmp_path: Path):
    """macOS writes ._NAME beside each file on disks of other systems, and on network drives."""
    folder = tmp_path / ".lmstudio/models/someone/Tune-GGUF"
    file = model(folder / f"{STEM}-Q4_0.gguf")
    tower(folder / "mmproj-F16.gguf")
    for name in (file.name, "mmproj-F16.gguf", "model.safetensors"):
        (folder / f"._{name}").write_bytes(b"\0\5\x16\7" + bytes(4092))
    model(folder / f".cache/{STEM}-Q4_0.gguf")
    assert {m.name: m.has_vision for m in find_models()} == {"someone/Tune-GGUF:Q4_0": True}
    assert locate("someone/Tune-GGUF:Q4_0") == file
    assert Checkpoint.open(folder).config.vision is not None


def test_damaged_manifests_are_passed_over(tmp_path: Path):
    manifests = tmp_path / ".ollama/models/manifests/registry.ollama.ai/library/m"
    manifests.mkdir(parents=True)
    for tag, content in {
        "a": "{",
        "b": "[]",
        "c": '{"layers": 3}',
        "d": '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../x"}]}',
    }.items():
        (manifests / tag).write_text(content)
    assert find_models() == []


# The hub


def test_one_type_of_a_repository_comes_with_the_tower_and_the_small_files(hub: FakeHub):
    path = locate(f"{REPO}:Q8_0")
    assert path.name == f"{STEM}-Q8_0.gguf"
    here = {file.name for file in path.parent.iterdir()}
    assert here == {path.name, "mmproj-F16.gguf", "tekken.json", "SYSTEM_PROMPT.txt"}
    assert Checkpoint.open(path).config.vision is not None
    hub.requests.clear()
    assert locate(f"{REPO}:q8_0") == path
    assert hub.requests == []  # it is here


def test_a_split_model_in_a_folder_of_its_own_finds_the_tower(hub: FakeHub):
    path = locate(f"{REPO}:BF16")
    assert path.name == f"{STEM}-BF16-00001-of-00002.gguf"
    config = Checkpoint.open(path).config
    assert config.vision is not None


@pytest.mark.parametrize("name", [f"{REPO}:Q5_K_M", f"{REPO}:IQ2_XXS", f"{REPO}:Magistral"])
def test_a_type_that_a_repository_lacks_is_told_with_those_that_it_has(hub: FakeHub, name: str):
    with pytest.raises(ModelNotFound, match=f"It has BF16, Q4_0, Q8_0: name one, as in {REPO}:"):
        locate(name)


def test_a_repository_of_gguf_files_says_how_they_are_named(hub: FakeHub):
    with pytest.raises(ModelNotFound, match=f"named as in {REPO}:Q4_K_M"):
        locate(REPO)


def test_a_plan_reads_headers_only(hub: FakeHub, tmp_path: Path):
    checkpoint = read_headers(f"{REPO}:Q8_0")
    assert checkpoint.config.vision is not None
    assert checkpoint.nbytes > 0
    blobs = (tmp_path / "hf/hub").rglob("blobs/*")
    assert max(blob.stat().st_size for blob in blobs) < 100_000  # small files


def test_a_dry_run_reads_headers_only_and_tells_types_without_their_error(
    hub: FakeHub, tmp_path: Path
):
    words = ("convert", f"{REPO}:Q4_0", "-o", str(tmp_path / "out"), "--dry-run")
    done = command_line.run(*words)
    assert done.status == 0, done.stderr
    shown = done.stdout.decode()
    (kind,) = [line for line in shown.splitlines() if line.startswith("Q4_0")]
    assert "codes as they are, 4 bits in groups of 32" in kind and "%" not in kind
    assert "The error of each type is told once the source is on this machine." in shown
    assert f"Output: {tmp_path / 'out'}, 1 file(s)" in shown
    figures = json.loads(command_line.run(*words, "--mode", "none", "--json").stdout)
    errors = {kind["kind"]: kind["error"] for kind in figures["types"]}
    assert errors == {"Q4_0": None, "F16": None, "F32": None}
    assert all(request.range for request in hub.downloads(f"{STEM}-Q4_0.gguf"))


def test_a_conversion_downloads_each_file_and_keeps_none(hub: FakeHub, tmp_path: Path):
    target = convert(f"{REPO}:BF16", None, ConvertOptions(mode="none"))
    assert target.name == "Magistral-Small-2509-BF16-bf16"
    assert Checkpoint.open(target).config.vision is not None
    assert convert(f"{REPO}:Q4_0").name == "Magistral-Small-2509-Q4_0"
    assert prepare(f"{REPO}:BF16").target.name == "Magistral-Small-2509-BF16-4bit"
    assert not list((tmp_path / "hf").rglob("*.gguf"))


def test_a_vision_tower_that_is_named_takes_the_place_of_the_repositorys(
    hub: FakeHub, tmp_path: Path
):
    options = ConvertOptions(mmproj=str(tmp_path / "missing.gguf"))
    with pytest.raises(InvalidOption, match=r"--mmproj .*missing\.gguf is no file"):
        prepare(f"{REPO}:Q4_0", None, options)
    own = tower(tmp_path / "own.gguf", random_weights(CONFIG, seed=5))
    options = ConvertOptions(mmproj=str(own))
    target = convert(f"{REPO}:Q4_0", tmp_path / "out", options)
    assert own.is_file()
    assert hub.downloads("mmproj-F16.gguf") == []
    file = tmp_path / "repo" / f"{STEM}-Q4_0.gguf"
    expected = convert(file, tmp_path / "expected", options)
    shard = "model-00001-of-00001.safetensors"
    assert (target / shard).read_bytes() == (expected / shard).read_bytes()
    (tmp_path / "new.partial").mkdir()
    inside = own.rename(tmp_path / "new.partial" / "own.gguf")
    with pytest.raises(InvalidOption, match="is prepared in"):
        convert(f"{REPO}:Q4_0", tmp_path / "new", ConvertOptions(mmproj=str(inside)))


def test_the_system_prompt_beside_a_tokenizer_that_is_named_is_taken(hub: FakeHub, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    for name in ("tekken.json", "SYSTEM_PROMPT.txt"):
        (tmp_path / "repo" / name).rename(tmp_path / "mine" / name)
    hub.add(REPO, tmp_path / "repo")
    options = ConvertOptions(tokenizer=str(tmp_path / "mine"))
    target = convert(f"{REPO}:Q4_0", None, options)
    assert (target / "SYSTEM_PROMPT.txt").read_text() == "Think."


def test_a_conversion_of_another_type_does_not_go_on_with_the_one_before(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "COMMIT_BYTES", 1)
    model(tmp_path / "repo" / f"{STEM}-Q4_1.gguf", "Q4_1")
    hub.add(REPO, tmp_path / "repo")

    def stop(report: ConversionProgress) -> None:
        if isinstance(report, Converting) and report.tensors_done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(f"{REPO}:Q4_0", tmp_path / "out", on_progress=stop)
    reports: list[ConversionProgress] = []
    convert(f"{REPO}:Q4_1", tmp_path / "out", on_progress=reports.append)
    assert next(r for r in reports if isinstance(r, Converting)).tensors_done == 0
