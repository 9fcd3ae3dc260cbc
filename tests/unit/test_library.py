"""Which models are found on this machine, and which one a name, or no name, means."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from magistral_convert import prepare
from magistral_mlx import Magistral, download_model, library, paths
from magistral_mlx.backend import mx
from magistral_mlx.errors import ModelNotFound
from magistral_mlx.hub.client import hub_cache
from magistral_mlx.library import default_model, find_models, locate, path_of
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint
from tests.fake_hub import FakeHub

READY = "lmstudio-community/Magistral-Small-2509-MLX-4bit"
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home with nothing in it, and a hub that is never asked."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "MAGISTRAL_MLX_HOME", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | None, bool], Path]:
    """Tiny models by bits (None: unquantized) and whether they can see, each written once."""
    made: dict[tuple[int | None, bool], Path] = {}

    def model(bits: int | None, vision: bool = True) -> Path:
        key = bits, vision
        if key not in made:
            folder = tmp_path_factory.mktemp("model")
            write_hf_checkpoint(folder, config=tiny_config(vision=vision, layers=1))
            if bits is not None:
                quantize(folder, bits)
            made[key] = folder
        return made[key]

    return model


def quantize(folder: Path, bits: int) -> None:
    """Replace the weights by quantized ones, in one file without an index, as mlx-lm may do."""
    config = json.loads((folder / "config.json").read_text())
    for old in folder.glob("model*"):
        old.unlink()
    tensors: dict[str, Any] = {}
    for name, values in random_weights(config, 0).items():
        stored = name if "vision_config" in config else name.removeprefix("language_model.")
        value = mx.array(values).astype(mx.bfloat16)
        if name.endswith("proj.weight") and name.startswith("language_model"):
            value, scales, biases = mx.quantize(value, group_size=64, bits=bits)
            tensors[stored.replace(".weight", ".scales")] = scales
            tensors[stored.replace(".weight", ".biases")] = biases
        tensors[stored] = value
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    config["quantization"] = {"group_size": 64, "bits": bits}
    (folder / "config.json").write_text(json.dumps(config))


def put(model: Path, target: Path) -> Path:
    """A copy of a model at `target`."""
    return Path(shutil.copytree(model, target))


def put_in_hub_cache(model: Path, repo: str, *, branch: str | None = "main") -> Path:
    """A copy of a model as a snapshot in the hub's cache."""
    folder = hub_cache() / f"models--{repo.replace('/', '--')}"
    if branch:
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / branch).write_text(SHA)
    return put(model, folder / "snapshots" / SHA)


def test_an_empty_machine_has_no_models():
    assert find_models() == []


def test_models_are_found_in_all_three_places(machine: Path, models: Any):
    mine = put(models(4), paths.conversions_dir() / "Magistral-Small-2509-4bit")
    cached = put_in_hub_cache(models(None), "mistralai/Magistral-Small-2509")
    theirs = put(models(8), machine / ".lmstudio" / "models" / READY)
    found = find_models()
    assert [(m.name, m.path, m.source, m.bits) for m in found] == [
        ("Magistral-Small-2509-4bit", mine, "conversions", 4),
        ("mistralai/Magistral-Small-2509", cached, "hub", None),
        (READY, theirs, "lmstudio", 8),
    ]
    assert all(model.complete and model.has_vision for model in found)
    sizes = [sum(file.stat().st_size for file in model.path.iterdir()) for model in found]
    assert [model.size_bytes for model in found] == sizes


def test_every_listed_name_can_be_located(machine: Path, models: Any):
    put(models(4), paths.conversions_dir() / "Magistral-Small-2509-4bit")
    put_in_hub_cache(models(None), "mistralai/Magistral-Small-2509")
    put_in_hub_cache(models(4), "some/other", branch="v2")
    put(models(8), machine / ".lmstudio" / "models" / READY)
    found = find_models()
    assert len(found) == 4
    assert [locate(model.name) for model in found] == [model.path for model in found]


@pytest.mark.parametrize(
    "moved",
    [".cache/lm-studio/models", "elsewhere/models", "chosen"],
    ids=["the older place", "a moved home", "a folder chosen in its settings"],
)
def test_lm_studios_other_places_are_looked_into(machine: Path, models: Any, moved: str):
    if moved == "elsewhere/models":
        (machine / ".lmstudio-home-pointer").write_text(f"{machine}/elsewhere\n")
    if moved == "chosen":
        (machine / ".lmstudio").mkdir()
        settings = {"downloadsFolder": str(machine / "chosen")}
        (machine / ".lmstudio" / "settings.json").write_text(json.dumps(settings))
    put(models(4), machine / moved / READY)
    assert [model.name for model in find_models()] == [READY]


def test_the_hubs_cache_follows_hf_home(
    machine: Path, models: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HOME", str(machine / "disk" / "hf"))
    folder = put_in_hub_cache(models(4), READY)
    assert folder.is_relative_to(machine / "disk" / "hf" / "hub")
    assert [model.path for model in find_models()] == [folder]


def test_a_text_only_model_is_listed_as_one(models: Any):
    put(models(4, vision=False), paths.conversions_dir() / "text")
    assert [model.has_vision for model in find_models()] == [False]


def test_a_text_only_conversion_that_kept_its_vision_settings_is_listed_as_text_only(models: Any):
    folder = put(models(None), paths.conversions_dir() / "text")
    for old in folder.glob("model*"):
        old.unlink()
    weights = random_weights(tiny_config(layers=1), 0)
    text = {n: mx.array(w) for n, w in weights.items() if n.startswith("language_model.")}
    mx.save_safetensors(str(folder / "model.safetensors"), text)
    assert [(m.has_vision, m.complete) for m in find_models()] == [(False, True)]


def test_a_model_that_lacks_a_shard_is_incomplete(models: Any):
    folder = put_in_hub_cache(models(None), "mistralai/Magistral-Small-2509")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert [model.complete for model in find_models()] == [False]


def test_a_truncated_shard_makes_a_model_incomplete(models: Any):
    folder = put(models(4), paths.conversions_dir() / "broken")
    shard = folder / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert [model.complete for model in find_models()] == [False]


def test_a_download_that_has_not_finished_is_listed_by_its_repository(models: Any):
    folder = put_in_hub_cache(models(None), READY, branch=None)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "abc.incomplete").touch()
    assert [(m.name, m.complete) for m in find_models()] == [(READY, False)]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"model_type": "llama"}'),
        ("config.json", '{"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}'),
        ("README.md", "nothing but a card"),
    ],
)
def test_what_cannot_run_here_is_not_listed(machine: Path, file: str, content: str):
    folder = machine / ".lmstudio" / "models" / "some" / "model"
    folder.mkdir(parents=True)
    (folder / file).write_text(content)
    (folder / "model.safetensors").touch()
    assert find_models() == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"a":' * 100_000),
        ("config.json", '{"model_type": "mistral", "num_hidden_layers": 1000000000}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": null}}'),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b.safetensors"}}'),
        ("model.safetensors", "{}"),
    ],
)
def test_a_damaged_model_is_listed_as_one_and_hides_no_other(
    machine: Path, models: Any, file: str, content: str
):
    damaged = put(models(4), paths.conversions_dir() / "Magistral-damaged")
    (damaged / file).write_text(content)
    whole = put(models(4), paths.conversions_dir() / "Magistral-whole")
    first, second = find_models()
    assert (first.name, first.complete) == ("Magistral-damaged", False)
    assert first.problem
    assert (second.name, second.complete, second.problem) == ("Magistral-whole", True, None)
    assert default_model() == whole
    assert locate("Magistral-whole") == whole
    assert locate("Magistral-damaged") == damaged  # whose error says more than "not found"


def test_a_configuration_without_weights_is_no_model(models: Any):
    folder = put_in_hub_cache(models(None), "mistralai/Magistral-Small-2509")
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    assert find_models() == []


def test_a_mistral_from_before_tekken_is_not_listed(machine: Path, models: Any):
    folder = put(models(None), machine / ".lmstudio" / "models" / "old" / "Mistral-7B")
    (folder / "tekken.json").unlink()
    assert find_models() == []


def test_the_users_own_4_bit_conversion_is_the_default(machine: Path, models: Any):
    put(models(4), machine / ".lmstudio" / "models" / READY)
    put_in_hub_cache(models(4), "mlx-community/Magistral-Small-2509-4bit")
    mine = put(models(4), paths.conversions_dir() / "Devstral-4bit")
    assert locate(None) == default_model() == mine


def test_magistral_is_the_default_before_others_and_4_bits_before_more(machine: Path, models: Any):
    studio = machine / ".lmstudio" / "models"
    put(models(4), studio / "some" / "Devstral-4bit")
    put(models(8), studio / "some" / "Magistral-8bit")
    best = put(models(4), studio / "some" / "Magistral-4bit")
    put(models(4, vision=False), studio / "a" / "Magistral-4bit-text")
    put_in_hub_cache(models(8), "a/Magistral-8bit")
    assert default_model() == best


def test_an_incomplete_model_is_never_the_default(machine: Path, models: Any):
    broken = put(models(4), paths.conversions_dir() / "Magistral-4bit")
    os.truncate(broken / "model.safetensors", 5000)
    other = put(models(8), machine / ".lmstudio" / "models" / "some" / "Devstral-8bit")
    assert default_model() == other


def test_without_a_model_the_commands_that_get_one_are_named():
    with pytest.raises(ModelNotFound) as caught:
        locate(None)
    assert "magistral-mlx convert mistralai/Magistral-Small-2509" in str(caught.value)
    assert f"--model {READY}" in str(caught.value)


def test_an_unquantized_model_alone_is_to_be_converted_first(models: Any):
    put_in_hub_cache(models(None), "mistralai/Magistral-Small-2509")
    with pytest.raises(ModelNotFound, match=r"convert mistralai/Magistral-Small-2509"):
        default_model()


def test_what_is_to_be_converted_first_is_converted_by_its_name(machine: Path, models: Any):
    put(models(None), paths.conversions_dir() / "Mine-bf16")
    put(models(None), machine / ".lmstudio/models/someone/Theirs")
    with pytest.raises(ModelNotFound, match="`magistral-mlx convert Mine-bf16`"):
        default_model()
    for name, target in (("mine-bf16", "mine-bf16-4bit"), ("someone/Theirs", "Theirs-4bit")):
        conversion = prepare(name)
        assert conversion.target == paths.conversions_dir() / target
        assert conversion.source.folder == locate(name)


def test_demo_is_the_embedded_model(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(machine)
    (machine / "demo").mkdir()
    assert locate("demo") == library.demo_dir()
    assert library.demo_dir() == Path(library.__file__).parent / "demo" / "checkpoint"


@pytest.mark.parametrize("find", [locate, path_of, download_model, Magistral.load])
def test_an_empty_name_is_not_the_current_folder(
    find: Callable[[str], Any], models: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(models(4, False))
    with pytest.raises(ModelNotFound, match="the name of the model is empty"):
        find("")


def test_a_folder_comes_before_a_conversion_of_that_name(
    machine: Path, models: Any, monkeypatch: pytest.MonkeyPatch
):
    put(models(4), paths.conversions_dir() / "mine")
    monkeypatch.chdir(machine)
    assert locate("mine") == paths.conversions_dir() / "mine"
    (machine / "mine").mkdir()
    assert locate("mine") == Path("mine")


@pytest.mark.parametrize("content", ["{", "[]", '{"downloadsFolder": 3}', '{"a":' * 100_000, "\0"])
def test_settings_of_lm_studios_that_make_no_sense_are_passed_over(
    machine: Path, models: Any, content: str
):
    put(models(4), machine / ".lmstudio" / "models" / READY)
    (machine / ".lmstudio" / "settings.json").write_text(content)
    assert [model.name for model in find_models()] == [READY]


def test_a_model_of_lm_studios_is_not_downloaded_again(machine: Path, models: Any):
    folder = put(models(4), machine / ".lmstudio" / "models" / READY)
    assert locate(READY) == folder
    assert locate(READY.lower()) == folder


@pytest.mark.parametrize("name", ["Magistral-Smal-2509-4bit", "magistral-small-4bit"])
def test_a_misspelt_name_gets_the_names_that_are_alike(models: Any, name: str):
    put(models(4), paths.conversions_dir() / "Magistral-Small-2509-4bit")
    with pytest.raises(ModelNotFound, match=r"On this machine: Magistral-Small-2509-4bit\."):
        locate(name)


def test_a_misspelt_repository_gets_the_names_that_are_alike(
    models: Any, monkeypatch: pytest.MonkeyPatch
):
    put_in_hub_cache(models(4), READY)
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(ModelNotFound, match=f"no repository .* On this machine: {READY}"):
            locate("lmstudio/Magistral-Small-2509-MLX-4bit")


def test_a_name_like_nothing_here_gets_no_suggestion(models: Any):
    put(models(4), paths.conversions_dir() / "Magistral-Small-2509-4bit")
    with pytest.raises(ModelNotFound) as caught:
        locate("zebra")
    assert "On this machine" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("mistralai/Magistral-Small-2509", "Magistral-Small-2509-4bit"),
        ("mistralai/Magistral-Small-2509@v1", "Magistral-Small-2509-4bit"),
        ("~/models/Magistral/", "Magistral-4bit"),
        ("demo", "demo-4bit"),
        ("magistral:24b", "magistral-24b-4bit"),
        ("hf.co/someone/Magistral:Q4_0", "Magistral-Q4_0-4bit"),
        (str(paths.demo_dir()), "demo-4bit"),
        (f"~/hub/models--mistralai--Devstral/snapshots/{SHA}", "Devstral-4bit"),
    ],
)
def test_a_conversion_is_named_after_its_source(machine: Path, source: str, name: str):
    (machine / "models" / "Magistral").mkdir(parents=True)
    (machine / f"hub/models--mistralai--Devstral/snapshots/{SHA}").mkdir(parents=True)
    assert paths.conversion_dir(source, "4bit") == paths.conversions_dir() / name


def test_a_conversion_of_the_folder_one_stands_in_has_its_name(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    (machine / "Magistral").mkdir()
    monkeypatch.chdir(machine / "Magistral")
    assert paths.conversion_dir(".", "8bit").name == "Magistral-8bit"


def test_conversions_go_to_the_users_cache(machine: Path, monkeypatch: pytest.MonkeyPatch):
    assert paths.conversions_dir() == machine / ".cache" / "magistral-mlx" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine / "xdg"))
    assert paths.conversions_dir() == machine / "xdg" / "magistral-mlx" / "models"
    monkeypatch.setattr("sys.platform", "darwin")
    assert paths.conversions_dir() == machine / "Library/Caches/magistral-mlx/models"
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", "~/own")
    assert paths.conversions_dir() == machine / "own" / "models"
