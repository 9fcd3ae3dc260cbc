"""Small data sets in the formats of published ones, written for tests.

Of the two questions of AIME, DocVQA and MathVista one has the answer 7, so a model that always
says 7 gets half of them right.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import zlib
from pathlib import Path

from PIL import Image

from tests.fake_hub import FakeHub, write_repo

# The commits that inspect-evals names.
AIME24, AIME25 = "Maxwell-Jia/AIME_2024", "math-ai/aime25"
DOCVQA, MATHVISTA, MMMU = "lmms-lab-encoder/DocVQA", "AI4Math/MathVista", "MMMU/MMMU"
LIVECODEBENCH = "livecodebench/code_generation_lite"


def image_bytes(size: tuple[int, int] = (60, 40), colour: str = "red") -> bytes:
    """A PNG."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def add_aime(hub: FakeHub, folder: Path) -> None:
    """AIME 2024 and 2025, two problems each."""
    from inspect_evals.aime2024.aime2024 import AIME2024_DATASET_REVISION
    from inspect_evals.aime2025.aime2025 import AIME2025_DATASET_REVISION

    old = [
        {"ID": f"2024-I-{n}", "Problem": f"What is {n} + 1?", "Solution": "…", "Answer": answer}
        for n, answer in ((1, 7), (2, 3))
    ]
    new = [
        {"id": str(n), "problem": f"What is {n} - 1?", "answer": a} for n, a in ((8, "7"), (5, "4"))
    ]
    for name, rows, revision in (
        (AIME24, old, AIME2024_DATASET_REVISION),
        (AIME25, new, AIME2025_DATASET_REVISION),
    ):
        split = "train" if name == AIME24 else "test"
        files = {f"{split}.jsonl": "\n".join(map(json.dumps, rows))}
        hub.add(name, write_repo(folder / name.replace("/", "--"), files), revision)


def add_images(hub: FakeHub, folder: Path) -> None:
    """DocVQA, MathVista and MMMU: Parquet files with images."""
    from datasets import Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature
    from inspect_evals.docvqa.docvqa import DOCVQA_DATASET_REVISION
    from inspect_evals.mathvista.mathvista import MATHVISTA_DATASET_REVISION

    image = {"bytes": image_bytes(), "path": "letter.png"}
    text = Value("string")
    docvqa = Dataset.from_list(
        [
            {
                "questionId": str(n), "question": "Which letter?", "question_types": ["form"],
                "image": image, "docId": 1, "ucsf_document_id": f"doc{n}",
                "ucsf_document_page_no": "1", "answers": answers, "data_split": "val",
            }
            for n, answers in ((1, ["7", "seven"]), (2, ["none of these"]))
        ],
        features=Features(
            questionId=text, question=text, question_types=Sequence(text), image=ImageFeature(),
            docId=Value("int64"), ucsf_document_id=text, ucsf_document_page_no=text,
            answers=Sequence(text), data_split=text,
        ),
    )  # fmt: skip
    _add_parquet(hub, folder, DOCVQA, "DocVQA/validation-00000-of-00001.parquet", docvqa,
                 DOCVQA_DATASET_REVISION, config="DocVQA")  # fmt: skip
    metadata = {"category": "general", "context": "chart", "grade": "none", "img_height": 40,
                "img_width": 60, "language": "english", "skills": ["numeric"],
                "source": "ours", "split": "testmini", "task": "figure"}  # fmt: skip
    mathvista = Dataset.from_list(
        [
            {
                "pid": str(n), "question": "How many?", "image": f"images/{n}.jpg",
                "decoded_image": image, "choices": None, "unit": None, "precision": None,
                "answer": answer, "question_type": "free_form", "answer_type": "integer",
                "metadata": metadata, "query": "How many are there?",
            }
            for n, answer in ((1, "7"), (2, "5"))
        ],
    )  # fmt: skip
    mathvista = mathvista.cast_column("decoded_image", ImageFeature())
    _add_parquet(hub, folder, MATHVISTA, "data/testmini-00000-of-00001.parquet", mathvista,
                 MATHVISTA_DATASET_REVISION)  # fmt: skip


def gpqa_file(file: Path) -> Path:
    """GPQA Diamond as CSV, two questions."""
    wrong = [f"Incorrect Answer {n}" for n in (1, 2, 3)]
    columns = ["Record ID", "Question", "Correct Answer", *wrong, "High-level domain", "Subdomain"]
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        for n in range(2):
            writer.writerow([f"rec{n}", f"Which is {n}?", "right", "wrong", "worse", "worst",
                             "Physics", "Physics (general)"])  # fmt: skip
    return file


def problem(n: int, solution_of: str = "stdin") -> dict[str, str]:
    """A line of LiveCodeBench: add two numbers, from stdin or as a method."""
    called = solution_of == "method"
    kind = "functional" if called else "stdin"
    tests = [
        {"input": f"{a}\n{b}" if called else f"{a} {b}\n", "output": str(a + b), "testtype": kind}
        for a, b in ((1, 2), (30, 12), (0, -5))
    ]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests[1:])))).decode()
    starter = (
        "class Solution:\n    def add(self, a: int, b: int) -> int:\n        " if called else ""
    )
    return {
        "question_title": f"sum {n}", "question_content": "Add two numbers.", "platform": "ours",
        "question_id": f"sum-{n}", "contest_id": "1", "contest_date": "2026-01-01T00:00:00",
        "starter_code": starter if called else "", "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]), "private_test_cases": packed,
        "metadata": json.dumps({"func_name": "add"} if called else {}),
    }  # fmt: skip


def problems_file(file: Path, *problems: dict[str, str]) -> Path:
    """A file of LiveCodeBench."""
    file.write_text("".join(json.dumps(each) + "\n" for each in problems))
    return file


def _add_parquet(
    hub: FakeHub,
    folder: Path,
    name: str,
    path: str,
    rows: object,
    sha: str,
    config: str = "default",
) -> None:
    repo = folder / name.replace("/", "--")
    file = repo / path
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(file)  # type: ignore[attr-defined]
    split = "validation" if "validation" in path else "testmini"
    card = (
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: {split}\n"
        f"    path: {path}\n---\n"
    )
    (repo / "README.md").write_text(card)
    hub.add(name, repo, sha)
