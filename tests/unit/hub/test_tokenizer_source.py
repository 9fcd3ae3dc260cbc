"""Where the tokenizer of a conversion by others comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from magistral_mlx.errors import HubError, TokenizerError
from magistral_mlx.hub import find_system_prompt, find_tokenizer, resolve
from tests.fake_hub import FakeHub, write_repo
from tests.unit.hub.conftest import CONFIG, REPO

Folder = Callable[..., Path]


@pytest.fixture
def conversion(tmp_path: Path) -> Folder:
    """Writes a conversion without a tokenizer, with this card and these extra settings."""

    def write(card: str = "", name: str = "conversion", **config: str) -> Path:
        files = {"config.json": json.dumps(CONFIG | config), "model.safetensors": b"weights"}
        return write_repo(tmp_path / name, files | ({"README.md": card} if card else {}))

    return write


def card(base: str) -> str:
    return f"---\nlicense: apache-2.0\nbase_model: {base}\n---\n# A conversion\n"


def test_its_own_is_used(hub: FakeHub, conversion: Folder):
    folder = conversion(card(REPO))
    (folder / "tekken.json").write_text("{}")
    assert find_tokenizer(folder) == folder / "tekken.json"
    assert hub.requests == []


@pytest.mark.parametrize("base", [REPO, f"[{REPO}]", f"\n- {REPO}", f"\n- none/such\n- {REPO}"])
def test_the_card_names_the_base_model(
    hub: FakeHub, conversion: Folder, model_files: dict[str, bytes | str], base: str
):
    folder = conversion(card(base))
    assert find_tokenizer(folder).read_text() == model_files["tekken.json"]


@pytest.mark.parametrize("key", ["_name_or_path", "base_model"])
def test_the_configuration_names_the_base_model(
    hub: FakeHub, conversion: Folder, model_files: dict[str, bytes | str], key: str
):
    folder = conversion(**{key: REPO})
    assert find_tokenizer(folder).read_text() == model_files["tekken.json"]


@pytest.mark.parametrize(
    "name", ["Magistral-Small-2509-MLX-4bit", "magistral-small-2509-8bit", "Magistral-Small-2509"]
)
def test_the_folders_name_tells_the_base_model(hub: FakeHub, conversion: Folder, name: str):
    hub.repos["mistralai/magistral-small-2509"] = hub.repos[REPO]  # the hub ignores case
    assert find_tokenizer(conversion(name=name)).name == "tekken.json"


def test_a_conversion_of_a_conversion_is_followed(
    hub: FakeHub, conversion: Folder, tmp_path: Path, model_files: dict[str, bytes | str]
):
    hub.add("some/bf16", write_repo(tmp_path / "bf16", {"README.md": card(REPO)}))
    folder = conversion(card("some/bf16"))
    assert find_tokenizer(folder).read_text() == model_files["tekken.json"]


def test_only_small_files_of_the_base_model_are_fetched_and_only_once(
    hub: FakeHub, conversion: Folder, monkeypatch: pytest.MonkeyPatch
):
    folder = conversion(card(REPO))
    first = find_tokenizer(folder)
    assert {path.name for path in first.parent.iterdir()} == {"tekken.json"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert find_tokenizer(folder) == first
    assert len(hub.requests) == asked


def test_fetching_a_tokenizer_does_not_hide_a_model_that_is_here(
    hub: FakeHub, conversion: Folder, tmp_path: Path, model_files: dict[str, bytes | str]
):
    here = resolve(REPO)
    (here / "tekken.json").unlink()
    hub.add(REPO, write_repo(tmp_path / "newer", model_files | {"config.json": "{}"}))
    find_tokenizer(conversion(card(REPO)))
    assert resolve(REPO) == here


def test_a_snapshot_that_another_program_left_without_it_gets_its_own(hub: FakeHub):
    here = resolve(REPO)
    (here / "tekken.json").unlink()
    assert find_tokenizer(here) == here / "tekken.json"


@pytest.mark.parametrize("kind", ["file", "folder", "repo"])
def test_an_override_decides(hub: FakeHub, conversion: Folder, tmp_path: Path, kind: str):
    folder = conversion()
    (folder / "tekken.json").write_text("its own")
    other = write_repo(tmp_path / "other", {"tekken.json": "another"})
    overrides = {"file": str(other / "tekken.json"), "folder": str(other), "repo": REPO}
    found = find_tokenizer(folder, overrides[kind])
    assert found.read_text() == ('{"config": {}}' if kind == "repo" else "another")


@pytest.mark.parametrize("override", ["no-such-file", "a/b/c"])
def test_an_override_that_is_nothing(hub: FakeHub, conversion: Folder, override: str):
    with pytest.raises(TokenizerError, match=r"neither a file, nor a folder, nor the name"):
        find_tokenizer(conversion(), override)


def test_an_override_without_a_tokenizer(hub: FakeHub, conversion: Folder, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match=r"given with --tokenizer has no tekken\.json"):
        find_tokenizer(conversion(), str(tmp_path / "empty"))
    hub.add("some/empty", write_repo(tmp_path / "readme", {"README.md": "hello"}))
    with pytest.raises(TokenizerError, match=r"some/empty, given with --tokenizer, has no"):
        find_tokenizer(conversion(), "some/empty")


def test_no_way_to_get_one_says_what_to_do(hub: FakeHub, conversion: Folder):
    with pytest.raises(TokenizerError, match=r"has no tekken\.json.*Name one with --tokenizer"):
        find_tokenizer(conversion("no front matter"))


def test_a_base_model_that_cannot_be_had_is_named_with_the_reason(
    hub: FakeHub, conversion: Folder, monkeypatch: pytest.MonkeyPatch
):
    folder = conversion(card("none/such"))
    with pytest.raises(TokenizerError, match=r"no repository none/such.*--tokenizer"):
        find_tokenizer(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TokenizerError, match=r"HF_HUB_OFFLINE is set.*--tokenizer"):
        find_tokenizer(folder)


@pytest.mark.parametrize("text", ["---\n: [\n---\n", "---\n- a\n---\n", "", "\xff"])
def test_a_damaged_card_names_no_base_model(hub: FakeHub, conversion: Folder, text: str):
    folder = conversion()
    (folder / "README.md").write_bytes(text.encode("latin-1"))
    with pytest.raises(TokenizerError, match=r"Name one with --tokenizer"):
        find_tokenizer(folder)


def test_paths_on_somebody_elses_machine_are_not_taken_for_repositories(
    hub: FakeHub, conversion: Folder
):
    with pytest.raises(TokenizerError):
        find_tokenizer(conversion(_name_or_path="/Users/jo/models/x"))
    assert hub.requests == []


def test_the_system_prompt_comes_from_where_the_tokenizer_comes(hub: FakeHub, conversion: Folder):
    found = find_system_prompt(conversion(card(REPO)))
    assert found is not None
    assert found.read_text() == "Think."


def test_a_checkpoint_with_a_tokenizer_and_no_system_prompt_has_none(
    hub: FakeHub, conversion: Folder
):
    folder = conversion(card(REPO))
    (folder / "tekken.json").write_text("{}")
    assert find_system_prompt(folder) is None
    assert hub.requests == []


def test_a_base_model_without_a_system_prompt_has_none(
    hub: FakeHub, conversion: Folder, tmp_path: Path
):
    hub.add("some/base", write_repo(tmp_path / "base", {"tekken.json": "{}"}))
    assert find_system_prompt(conversion(card("some/base"))) is None


def test_no_hub_means_no_system_prompt_and_no_error(
    conversion: Folder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert find_system_prompt(conversion(card(REPO))) is None


def test_an_unreachable_override_is_an_error_of_the_hub(
    conversion: Folder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot reach"):
        find_tokenizer(conversion(), REPO)


def test_a_base_model_that_refuses_is_not_asked_for_more(hub: FakeHub, conversion: Folder):
    hub.gated.add(REPO)
    with pytest.raises(TokenizerError, match=r"is gated.*Name one with --tokenizer"):
        find_tokenizer(conversion(card(REPO)))
    assert not any(request.path.endswith("README.md") for request in hub.requests)
