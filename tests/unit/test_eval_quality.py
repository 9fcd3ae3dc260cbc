"""`magistral-mlx eval quality`: variants, text, the two passes, and going on after a stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magistral_mlx.backend import mx
from magistral_mlx.errors import InvalidOption, MagistralError, OutOfMemory
from magistral_mlx.evaluation.quality import measure
from magistral_mlx.evaluation.quality.measure import QualityRun
from magistral_mlx.evaluation.quality.summary import summarise
from magistral_mlx.evaluation.quality.text import ComparedText, read_text
from magistral_mlx.evaluation.quality.variants import ComparedModel, Variant
from magistral_mlx.evaluation.quality.work_folder import TokenFigures, WorkFolder
from tests.adapter_files import write_peft_adapter
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint
from tests.command_line import run
from tests.engine_models import tiny_folder
from tests.gguf_files import everything, write_text_gguf

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    file = tmp_path / "prose.txt"
    file.write_text("The gulls came back in March, and nobody could say from where. " * 4)
    return file


def opened(*names: str) -> list[ComparedModel]:
    first = Variant.parse(names[0])
    return [
        ComparedModel.open(first),
        *(ComparedModel.open(Variant.parse(n, first)) for n in names[1:]),
    ]


def text_of(*lengths: int, seed: int = 0) -> ComparedText:
    rng = np.random.default_rng(seed)
    return ComparedText(tuple(rng.integers(100, 1280, n).astype(np.int32) for n in lengths))


def other_folder(tmp_path: Path, seed: int = 7) -> Path:
    return write_hf_checkpoint(
        tmp_path / f"seed-{seed}", seed=seed, config=tiny_config(vision=False, layers=2)
    )


# Names


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("demo", Variant("demo")),
        ("demo@kv=4/4", Variant("demo", kv="4/4")),
        ("a/b@dtype=float16,kv=8/8", Variant("a/b", kv="8/8", dtype="float16")),
        ("x@adapter=/a,b/c,kv=6/4", Variant("x", kv="6/4", adapter="/a,b/c")),
        ("x@tokenizer=y@z", Variant("x", tokenizer="y@z")),
        ("owner/name@1a2b3c", Variant("owner/name@1a2b3c")),
        ("@kv=5/4", Variant("A", kv="5/4")),
    ],
)
def test_a_name_may_have_options(name: str, variant: Variant):
    assert Variant.parse(name, Variant("A")) == variant


def test_a_folder_whose_name_looks_like_options_is_a_folder(tmp_path: Path):
    folder = tmp_path / "x@kv=4"
    folder.mkdir()
    assert Variant.parse(str(folder)) == Variant(str(folder))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("demo@kvs=4/4", "'kvs=4/4' after the @"),
        ("demo@kv=", "'kv=' after the @"),
        ("demo@kv=4/4,kv=8/8", "'kv=8/8' after the @"),
        ("demo@kv=9/1", "kv is '9/1'"),
        ("demo@dtype=int8", "dtype is 'int8'"),
    ],
)
def test_options_that_are_wrong_are_named(name: str, complaint: str):
    with pytest.raises(InvalidOption, match=complaint.replace("'", ".")):
        Variant.parse(name)


# Figures


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_first_models_logits_lose_nothing_on_the_disk(dtype: str, home: Path):
    name = f"{tiny_folder()}@dtype={dtype}"
    [pair] = QualityRun(opened(name, name), text_of(150, 33)).run()
    total, _ = summarise(pair.figures)
    assert total.divergence == 0 and total.high == 0 and total.agreement == 1
    assert total.first == total.other
    assert list((home / "quality").iterdir()) == []


def test_a_tied_output_matrix_is_loaded_from_the_embedding(tmp_path: Path):
    config = tiny_config(vision=False, layers=1, tie_word_embeddings=True)
    name = str(write_hf_checkpoint(tmp_path / "tied", config=config))
    same, other = QualityRun(opened(name, name, str(tiny_folder())), text_of(40)).run()
    assert summarise(same.figures)[0].divergence == 0 < summarise(other.figures)[0].divergence


def test_each_kind_of_variant_differs(tmp_path: Path):
    """A cache scheme, a dtype, an adapter and a GGUF file, in one run."""
    folder = tiny_folder()
    adapter = write_peft_adapter(tmp_path / "adapter", layers=2)
    config = tiny_config(vision=False, layers=2)
    for name in ("tekken.json", "config.json"):
        (tmp_path / "gguf").mkdir(exist_ok=True)
        (tmp_path / "gguf" / name).write_bytes((folder / name).read_bytes())
    gguf = tmp_path / "gguf" / "model.gguf"
    write_text_gguf(gguf, config, random_weights(config, 0), everything("Q8_0"))
    names = [f"{folder}@dtype=float32", "@dtype=float32,kv=2/2", "@dtype=bfloat16"]
    names += [f"@dtype=float32,adapter={adapter}", f"{gguf}@dtype=float32"]
    pairs = QualityRun(opened(*names), text_of(400)).run()
    kv, dtype, adapted, quantized = (summarise(pair.figures)[0].divergence for pair in pairs)
    assert adapted > kv > quantized > 0 and dtype > 0
    # With 2 bits tokens differ once some have left the window of 128 and their block of 64.
    early = pairs[0].figures[0].divergence
    assert early[:190].max() < 1e-4 < early[260:].min()


def test_an_adapter_of_the_output_matrix_is_part_of_the_first_model(tmp_path: Path):
    from tests.adapter_files import write_adapter

    rng = np.random.default_rng(1)
    path = "base_model.model.lm_head"
    tensors = {
        f"{path}.lora_A.weight": rng.standard_normal((4, 128), dtype=np.float32),
        f"{path}.lora_B.weight": rng.standard_normal((1280, 4), dtype=np.float32),
    }
    adapter = write_adapter(tmp_path / "head", tensors)
    name = f"{tiny_folder()}@dtype=float32,adapter={adapter}"
    same, base = QualityRun(opened(name, name, f"{tiny_folder()}@dtype=float32"), text_of(60)).run()
    assert summarise(same.figures)[0].divergence == 0
    assert summarise(base.figures)[0].divergence > 0.1


def test_bands_hold_the_tokens_at_their_positions():
    """The figure of a predicted token stands one place before its position."""
    values = np.arange(1, 50_000, dtype=np.float32)
    total, bands = summarise([TokenFigures(values, values > 0, -values / 1e6, -values / 1e6)])
    assert total.tokens == 49_999
    assert [(b.start, b.end, b.tokens) for b in bands] == [
        (0, 2048, 2047),
        (2048, 16384, 14336),
        (16384, 40960, 24576),
        (40960, None, 9040),
    ]
    assert bands[1].divergence == pytest.approx((2048 + 16383) / 2)
    _, short = summarise([TokenFigures(*(np.ones(9, np.float32),) * 4)])
    assert [(band.start, band.tokens) for band in short] == [(0, 9)]


# Stops


class Stopped(Exception):
    pass


def stopping(label: str, after: int) -> Any:
    """A progress that fails when the model `label` has read so many tokens."""

    def show(stage: str, done: int, total: int) -> None:
        if stage == label and done > after:
            raise Stopped

    return show


@pytest.mark.parametrize(("of_model", "after"), [(0, 60), (1, 60), (1, 10)])
def test_a_stopped_run_goes_on(
    of_model: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
):
    models = opened(str(tiny_folder()), str(other_folder(tmp_path)))
    text = text_of(50, 40, 30)
    expected = QualityRun(models, text).run()[0].figures
    with pytest.raises(Stopped):
        QualityRun(models, text).run(stopping(models[of_model].label, after))
    assert not list(home.rglob("*.tmp"))
    ran: list[tuple[str, int]] = []
    original = measure._run

    def counted(model: Any, adapter: Any, plan: Any, tokens: Any, *rest: Any) -> None:
        ran.append((plan.model.source, len(tokens)))
        original(model, adapter, plan, tokens, *rest)

    monkeypatch.setattr(measure, "_run", counted)
    seen: list[tuple[str, int, int]] = []
    found = QualityRun(models, text).run(lambda *step: seen.append(step))[0].figures
    first, other = models[0].label, models[1].label
    left = {60: [40, 30], 10: [50, 40, 30]}[after]
    assert [n for label, n in ran if label == first] == ([40, 30] if of_model == 0 else [])
    assert [n for label, n in ran if label == other] == ([50, 40, 30] if of_model == 0 else left)
    assert seen[-1] == (other, 120, 120)
    for one, two in zip(found, expected, strict=True):
        for name, values in vars(one).items():
            np.testing.assert_array_equal(values, getattr(two, name))


KILLED = """
import os, signal, sys
from magistral_mlx.cli import eval_quality
from contextlib import contextmanager

@contextmanager
def progress():
    yield lambda stage, done, total: stage == sys.argv[4] and done > 500 and os.kill(os.getpid(), 9)

eval_quality._progress = progress
eval_quality.quality([*sys.argv[1:4], "--context", "256"])
"""


def test_a_killed_process_loses_one_sequence(tmp_path: Path, home: Path, prose: Path):
    prose.write_text(prose.read_text() * 3)
    other = str(other_folder(tmp_path))
    words = [str(tiny_folder()), other, f"--text={prose}"]
    code = [sys.executable, "-c", KILLED, *words, other]
    assert subprocess.run(code, cwd=ROOT, env=os.environ).returncode == -signal.SIGKILL
    [folder] = (home / "quality").iterdir()
    kept = sorted(path.name for path in folder.iterdir() if path.name.startswith("figures"))
    assert kept == ["figures-1-0.npz"]
    done = run("eval", "quality", *words, "--context", "256", "--json")
    assert done.status == 0 and list((home / "quality").iterdir()) == []
    facts = json.loads(done.stdout)
    total = facts["compared"][0]["total"]
    assert total["tokens"] == sum(facts["sequences"]) - len(facts["sequences"])
    assert total["divergence"] > 0.1


def test_two_processes_do_not_share_a_folder(home: Path):
    run_ = QualityRun(opened(str(tiny_folder()), "@kv=4/4"), text_of(30))
    held = WorkFolder.of(run_.identity())
    with pytest.raises(MagistralError, match="another process is making the same comparison"):
        run_.run()
    held.close()
    assert len(run_.run()[0].figures[0].divergence) == 29


# The command


def test_the_command_prints_a_table_and_json(tmp_path: Path, prose: Path):
    names = (str(tiny_folder()), "@kv=4/4", f"{other_folder(tmp_path)}")
    plot = tmp_path / "plot.svg"
    shown = run("eval", "quality", *names, "--text", str(prose), "--plot", str(plot))
    assert shown.status == 0 and shown.stderr == f"drawn into {plot}.\n"
    assert b"@kv=4/4" in plot.read_bytes()
    table = shown.stdout.decode()
    assert "positions 0-2k" in table and f"{tiny_folder()}@kv=4/4" in table
    facts = json.loads(run("eval", "quality", *names, "--text", str(prose), "--json").stdout)
    assert [model["kv"] for model in facts["models"]] == ["full", "4/4", "full"]
    cached, other = facts["compared"]
    assert cached["total"]["divergence"] < other["total"]["divergence"]
    assert cached["total"]["tokens"] == sum(facts["sequences"]) - len(facts["sequences"])
    assert cached["positions"][0]["start"] == 0


def test_text_is_cut_and_shared(tmp_path: Path, prose: Path):
    models = opened(str(tiny_folder()))
    longer = tmp_path / "longer.txt"
    longer.write_text(prose.read_text() * 9)
    text = read_text([str(prose), str(longer)], models, context=100, tokens=300)
    assert [len(sequence) for sequence in text.sequences] == [100, 50, 100, 50]
    assert text.left_out > 1000
    shipped = read_text([], models, context=10**6, tokens=10**6)
    assert shipped.longest == 4096 and shipped.left_out == 0


def test_text_that_cannot_be_used_is_refused_in_a_line(tmp_path: Path):
    few, binary = tmp_path / "few.txt", tmp_path / "binary"
    few.write_text("Too little.")
    binary.write_bytes(bytes(1000))
    a = str(tiny_folder())
    for file, refusal in (
        (few, f"--text {few} has "),
        (binary, f"--text {binary} is not text in UTF-8."),
        (tmp_path / "none", f"--text {tmp_path / 'none'} cannot be read: No such file"),
        (tmp_path, f"--text {tmp_path} cannot be read: Is a directory"),
    ):
        assert run("eval", "quality", a, a, "--text", str(file)).refusal.startswith(refusal)


def test_a_plot_of_another_kind_is_refused_before_any_work(home: Path):
    a = str(tiny_folder())
    refusal = run("eval", "quality", a, a, "--plot", "plot.txt").refusal
    assert refusal.startswith("a plot is drawn into .png, .svg, .pdf") and not home.exists()


def test_other_tokens_are_refused_in_a_line(tmp_path: Path):
    a, config = str(tiny_folder()), tiny_config(vision=False, layers=1)
    b = write_hf_checkpoint(tmp_path / "b", config=config)
    tekken = json.loads((b / "tekken.json").read_text())
    first, second = tekken["vocab"][260], tekken["vocab"][261]
    first["token_bytes"], second["token_bytes"] = second["token_bytes"], first["token_bytes"]
    (b / "tekken.json").write_text(json.dumps(tekken))
    refusal = run("eval", "quality", a, str(b)).refusal
    assert "have different tokenizers: token 1260 is not the same." in refusal
    assert run("eval", "quality", a, f"{b}@tokenizer={a}", "--tokens", "200").status == 0
    wide = write_hf_checkpoint(tmp_path / "w", config=config | {"vocab_size": 1408})
    assert "has 1,280 tokens and " in run("eval", "quality", a, str(wide)).refusal


def test_two_decoders_are_never_in_memory_and_each_pass_keeps_to_its_plan(
    monkeypatch: pytest.MonkeyPatch,
):
    """8 layers, so that a second decoder would not go unnoticed: 5 MB beside 0.7 of the head."""
    name = f"{tiny_folder(8)}@dtype=float32"
    run_ = QualityRun(opened(name, f"{name},kv=4/4"), text_of(700))
    original, seen = measure._run, []
    held = mx.get_active_memory()

    def measured(model: Any, adapter: Any, plan: Any, *rest: Any) -> None:
        before = mx.get_active_memory() - held
        mx.reset_peak_memory()
        original(model, adapter, plan, *rest)
        seen.append((before, mx.get_peak_memory() - held, plan.peak))

    monkeypatch.setattr(measure, "_run", measured)
    run_.run()
    assert len(seen) == 2
    for before, peak, planned in seen:
        assert before <= 1.01 * planned.weights and peak <= planned.total
    assert mx.get_active_memory() - held < 100_000


def test_a_model_that_does_not_fit_is_refused_before_any_work(home: Path):
    models = opened(str(tiny_folder()), "@kv=4/4")
    with pytest.raises(OutOfMemory, match="needs"):
        QualityRun(models, text_of(4000), limit=10**6)
    assert not home.exists()
