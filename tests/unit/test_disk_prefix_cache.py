"""Prompts that are kept on disk: found again by another run, and never trusted blindly."""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magistral_mlx.backend import mx
from magistral_mlx.cache import blockfile
from magistral_mlx.cache.disk import DiskPrefixCache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.engine.prefix_cache import PrefixCache
from tests.engine_models import tiny_model
from tests.unit.test_prefix_cache import IMAGE, PLENTY, answer, image, seeing_model, some_tokens

pytestmark = pytest.mark.slow

SCHEMES = ["full", "6/4", "4/4"]
LIMIT = 1 << 30
DOCUMENT = some_tokens(700, seed=1)
QUESTIONS = [some_tokens(40, seed=2), some_tokens(60, seed=3)]


class Run:
    """What one process keeps: its own memory, and a folder that outlives it."""

    def __init__(self, folder: Path, model: Any, scheme: str, limit: int, identity: str) -> None:
        kv = KVScheme.parse(scheme)
        self.model, self.scheme = model, scheme
        self.disk = DiskPrefixCache(folder, limit, identity, kv)
        self.prefixes = PrefixCache(
            PLENTY, lambda: model.make_caches(kv), model.config.image_token_id, self.disk
        )

    def ask(self, tokens: list[int], **options: Any) -> tuple[list[int], int]:
        return answer(self.model, tokens, self.prefixes, scheme=self.scheme, **options)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Any]:
    """Starts a run over one folder; all are closed in the end."""
    opened: list[Run] = []

    def start(
        scheme: str = "full",
        *,
        model: Any = None,
        limit: int = LIMIT,
        identity: str = "a model",
        folder: Path = tmp_path / "kept",
    ) -> Run:
        opened.append(Run(folder, model or tiny_model(), scheme, limit, identity))
        return opened[-1]

    yield start
    for run in opened:
        run.prefixes.close()


def expected(tokens: list[int], scheme: str = "full", **options: Any) -> list[int]:
    return answer(options.pop("model", tiny_model()), tokens, scheme=scheme, **options)[0]


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


# Another run


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_run_goes_on_from_what_one_has_kept(runs: Any, scheme: str) -> None:
    first = runs(scheme)
    first.ask(DOCUMENT + QUESTIONS[0])
    first.prefixes.close()
    second = runs(scheme)
    produced, held = second.ask(DOCUMENT + QUESTIONS[1])
    assert produced == expected(DOCUMENT + QUESTIONS[1], scheme)
    assert held == 512 if scheme == "full" else 450 <= held <= 700
    assert second.prefixes.counts.read == held
    assert second.prefixes.take_notes() == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_conversations_over_several_runs_are_answered_as_if_nothing_was_kept(
    runs: Any, scheme: str
) -> None:
    seed = SCHEMES.index(scheme)
    rng = np.random.default_rng(seed)
    said, run = [some_tokens(300, seed)], runs(scheme)
    read = 0
    for turn in range(10):
        before = said[rng.integers(len(said))]
        cut = len(before) if rng.random() < 0.6 else rng.integers(len(before))
        prompt = before[:cut] + some_tokens(int(rng.integers(1, 300)), 100 * seed + turn)
        produced, _ = run.ask(prompt)
        assert produced == expected(prompt, scheme)
        said.append(prompt + produced)
        if rng.random() < 0.5:
            read += run.prefixes.counts.read
            run.prefixes.close()
            run = runs(scheme)
    assert read + run.prefixes.counts.read > 500


def test_a_conversation_is_written_once_however_many_turns_it_has(
    runs: Any, tmp_path: Path
) -> None:
    run, prompt = runs(), DOCUMENT
    for turn in range(4):
        produced, _ = run.ask(prompt)
        prompt = prompt + produced + some_tokens(100, seed=turn)
    run.prefixes.close()
    assert len(kept(tmp_path / "kept")) == (len(prompt) - 100) // 256


def test_two_runs_at_once_share_the_folder(runs: Any, tmp_path: Path) -> None:
    one, other = runs(), runs()
    for _ in range(2):
        for run in (one, other):
            for question in QUESTIONS:
                prompt = DOCUMENT + question
                assert run.ask(prompt)[0] == expected(prompt)
    one.prefixes.close()
    other.prefixes.close()
    # Two blocks of the document, and one that ends in the answer to the longer question.
    assert len(kept(tmp_path / "kept")) == 3
    assert not list(tmp_path.rglob(f"*{blockfile.UNFINISHED}"))


@pytest.mark.parametrize("scheme", ["full", "4/4"])
def test_features_of_an_image_outlive_a_run(
    runs: Any, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = seeing_model()
    prompt, images = [IMAGE] * 12 + some_tokens(40, seed=1), [image(4, 3, seed=1)]
    first = runs(scheme, model=model)
    produced, _ = first.ask(prompt, images=images)
    first.prefixes.close()
    monkeypatch.setattr(type(model), "encode_image", lambda *_: pytest.fail("encoded again"))
    assert runs(scheme, model=model).ask(prompt, images=images)[0] == produced


def test_images_of_one_size_are_told_apart(runs: Any) -> None:
    model = seeing_model()
    prompt = [IMAGE] * 12 + some_tokens(400, seed=1)
    first = runs(model=model)
    first.ask(prompt, images=[image(4, 3, seed=1)])
    first.prefixes.close()
    other = [image(4, 3, seed=2)]
    produced, held = runs(model=model).ask(prompt, images=other)
    assert (produced, held) == (expected(prompt, model=model, images=other), 0)


# What it was not written for


@pytest.mark.parametrize("other", [{"scheme": "8/8"}, {"scheme": "4/4"}, {"identity": "another"}])
def test_another_scheme_or_model_finds_nothing(runs: Any, other: dict[str, Any]) -> None:
    run = runs()
    run.ask(DOCUMENT)
    run.prefixes.close()
    assert runs(**other).ask(DOCUMENT)[1] == 0


def test_a_file_of_another_model_that_was_moved_here_is_removed_with_a_note(
    runs: Any, tmp_path: Path
) -> None:
    for identity in ("one", "two"):
        run = runs(identity=identity)
        run.ask(DOCUMENT)
        run.prefixes.close()
    folders = sorted((tmp_path / "kept").iterdir())
    for path, other in zip(sorted(folders[0].iterdir()), sorted(folders[1].iterdir()), strict=True):
        other.write_bytes(path.read_bytes())
    for identity in ("one", "two"):
        run = runs(identity=identity)
        assert run.ask(DOCUMENT)[0] == expected(DOCUMENT)
        notes = " ".join(run.prefixes.take_notes())
        assert ("belongs to another" in notes) == (run.prefixes.counts.read == 0)


@pytest.mark.parametrize(
    ("scheme", "damage"),
    [
        *(("full", damage) for damage in ("flipped", "short", "empty", "longer", "text")),
        *(("4/4", damage) for damage in ("flipped", "short")),
    ],
)
def test_a_damaged_file_is_removed_with_a_note_and_changes_no_answer(
    runs: Any, tmp_path: Path, scheme: str, damage: str
) -> None:
    rng = np.random.default_rng(0)
    prompt = DOCUMENT + QUESTIONS[0]
    right = expected(prompt, scheme)
    for _ in range(2):
        run = runs(scheme)
        run.ask(prompt)
        run.prefixes.close()
        victims = kept(tmp_path / "kept")
        for path in victims:
            content = bytearray(path.read_bytes())
            match damage:
                case "flipped":
                    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
                case "short":
                    del content[rng.integers(1, len(content)) :]
                case "empty":
                    content.clear()
                case "longer":
                    content += b"more"
                case "text":
                    content[:] = b"Notes on my holidays."
            path.write_bytes(content)
        run = runs(scheme)
        assert run.ask(prompt) == (right, 0)
        (note, *_) = run.prefixes.take_notes()
        assert any(f"Removed the damaged file {path}" in note for path in victims)
        run.prefixes.close()
        # What was computed anew is there again.
        again = runs(scheme)
        assert again.ask(prompt)[0] == right and again.prefixes.counts.read > 0
        again.prefixes.close()
        for path in kept(tmp_path / "kept"):
            path.unlink()


def test_a_damaged_block_leaves_those_before_it(runs: Any, tmp_path: Path) -> None:
    prompt = some_tokens(1000, seed=5)
    run = runs()
    run.ask(prompt)
    run.prefixes.close()
    blocks = sorted(kept(tmp_path / "kept"), key=lambda path: -path.stat().st_mtime_ns)
    blocks[1].write_bytes(blocks[1].read_bytes()[:-1])
    assert runs().ask(prompt) == (expected(prompt), 256)


def test_damaged_features_are_computed_anew(runs: Any, tmp_path: Path) -> None:
    model = seeing_model()
    prompt, images = [IMAGE] * 12 + some_tokens(40, seed=1), [image(4, 3, seed=1)]
    first = runs(model=model)
    produced, _ = first.ask(prompt, images=images)
    first.prefixes.close()
    (path,) = (tmp_path / "kept").glob("*/image-*")
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    run = runs(model=model)
    assert run.ask(prompt, images=images)[0] == produced
    assert "image-" in run.prefixes.take_notes()[0]


def test_a_file_that_a_process_left_unfinished_is_ignored(runs: Any, tmp_path: Path) -> None:
    run = runs()
    run.ask(DOCUMENT)
    run.prefixes.close()
    for path in kept(tmp_path / "kept"):
        path.rename(f"{path}.0123abcd{blockfile.UNFINISHED}")
    assert runs().ask(DOCUMENT) == (expected(DOCUMENT), 0)


# A folder that does not do


def test_a_folder_that_cannot_be_made_costs_a_note_and_nothing_else(
    runs: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    run = runs(folder=tmp_path / "file" / "kept")
    assert run.ask(DOCUMENT)[0] == expected(DOCUMENT)
    (note,) = run.prefixes.take_notes()
    assert note.startswith(f"Prompts cannot be kept in {tmp_path}/file/kept: Not a directory.")
    assert run.prefixes.take_notes() == []


def test_a_full_disk_costs_a_note_and_nothing_else(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blockfile.os, "fsync", fsync)
    run = runs()
    for question in QUESTIONS:
        assert run.ask(DOCUMENT + question)[0] == expected(DOCUMENT + question)
    run.prefixes.close()
    (note,) = run.prefixes.take_notes()
    assert "the disk is full" in note
    assert not list((tmp_path / "kept").glob("*/*"))


def test_a_folder_that_can_no_longer_be_read_costs_a_note_and_nothing_else(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs()
    run.ask(DOCUMENT)
    looks = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.is_relative_to(tmp_path / "kept"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return looks(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    for question in QUESTIONS:
        assert run.ask(some_tokens(300, 5) + question)[0] == expected(
            some_tokens(300, 5) + question
        )
    run.prefixes.close()
    (note,) = run.prefixes.take_notes()
    assert "is off from now on: Permission denied. Answers are not affected." in note
    assert run.disk.problem == note


@pytest.mark.parametrize("disk", ["unusable", "busy"])
def test_what_is_evicted_before_it_could_be_written_gives_its_memory_back(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str
) -> None:
    folder = tmp_path / "kept"
    if disk == "unusable":
        folder.write_text("not a folder")
    else:
        monkeypatch.setattr("magistral_mlx.cache.writer._PENDING", 0)
    run = runs(folder=folder)
    run.ask(some_tokens(100, seed=0))
    run.prefixes.budget = run.prefixes.nbytes
    held = mx.get_active_memory()
    for seed in (1, 2, 3):
        run.ask(some_tokens(100, seed=seed))
        assert run.prefixes.nbytes == run.prefixes.budget
    gc.collect()
    assert mx.get_active_memory() < held + run.prefixes.budget // 2
    run.prefixes.release()  # or closing would wait for the disk


def test_only_the_user_can_read_what_is_kept(runs: Any, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        run = runs()
        run.ask(DOCUMENT)
        run.prefixes.close()
    finally:
        os.umask(old)
    files = kept(tmp_path / "kept")
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    folders = {tmp_path / "kept", files[0].parent}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


# The limit


def test_the_files_keep_within_the_limit_and_the_least_used_go_first(
    runs: Any, tmp_path: Path
) -> None:
    prompts = [some_tokens(520, seed) for seed in range(4)]
    run = runs()
    run.ask(prompts[0])
    run.prefixes.close()
    block = kept(tmp_path / "kept")[0].stat().st_size
    run = runs(limit=int(6.5 * block))
    for n in (1, 2):
        run.ask(prompts[n])
    run.prefixes.close()
    run = runs(limit=int(6.5 * block))
    run.ask(prompts[0])  # from the disk, so it was used
    run.ask(prompts[3])
    run.prefixes.close()
    files = kept(tmp_path / "kept")
    assert sum(path.stat().st_size for path in files) <= 6.5 * block
    found = [run.disk.find(np.array(prompt, np.int64)).length for prompt in prompts]
    assert found == [512, 0, 512, 512]


def test_what_else_is_in_the_folder_is_neither_counted_nor_removed(
    runs: Any, tmp_path: Path
) -> None:
    run = runs()
    run.ask(DOCUMENT)
    run.prefixes.close()
    (owner,) = {path.parent for path in kept(tmp_path / "kept")}
    others = [
        tmp_path / "kept/Magistral-4bit/model-00001-of-00002.safetensors",
        tmp_path / "kept/0123456789abcdef/notes.txt",
        tmp_path / "kept/0123456789abcdef/film.unfinished",
        owner / "image-of-my-cat.png",
        tmp_path / "kept/letter.txt",
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(1 << 31)
        os.utime(path, (0, 0))
    run = runs()  # whose limit is less than theirs
    assert run.ask(DOCUMENT) == (expected(DOCUMENT), 512)
    run.prefixes.close()
    assert all(path.exists() for path in others)
    run = runs(limit=1)
    run.prefixes.close()
    assert all(path.exists() for path in others)
    assert sorted(kept(tmp_path / "kept")) == sorted(others[:-1])
