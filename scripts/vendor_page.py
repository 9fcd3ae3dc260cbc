#!/usr/bin/env python3
"""Fetch the libraries that the chat page ships, from npm, pinned by version and by hash.

Usage: scripts/vendor_page.py          fetch with `npm pack`, check, and replace the files
       scripts/vendor_page.py --check  compare what lies there with the list, without a network

To take a new version, change it below and put in what `npm view NAME@VERSION dist.integrity` says.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("magistral_mlx/server/static/vendor")
TESTS = Path("tests/e2e/server/vendor")
LIST = "versions.json"  # beside the files: where each is from, and its SHA-256


@dataclass(frozen=True)
class Package:
    """An npm package, and what we take of it.

    files: path or pattern inside it -> path below `folder`; that of a pattern ends with "/".
    """

    name: str
    version: str
    licence: str
    integrity: str
    files: dict[str, str]
    folder: Path = PAGE


PACKAGES = (
    Package(
        "markdown-it",
        "15.0.3",
        "MIT",
        "sha512-+Az7Ojz3iRGu8KYMvJ6xVhvrxP3eE+vEtJX75Ow88XBpcQNV/0lGX5ZynIIBftREo4DC2jsveAMDaeltmm8QvQ==",
        {
            "dist/browser/markdown-it.esm.min.mjs": "markdown-it/markdown-it.js",
            "LICENSE": "markdown-it/LICENSE",
        },
    ),
    Package(
        "katex",
        "0.19.1",
        "MIT",
        "sha512-jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA==",
        {
            "dist/katex.min.js": "katex/katex.js",
            "dist/katex.min.css": "katex/katex.css",
            "dist/fonts/*.woff2": "katex/fonts/",
            "LICENSE": "katex/LICENSE",
        },
    ),
    Package(
        "dompurify",
        "3.4.18",
        "Apache-2.0 OR MPL-2.0",
        "sha512-ofe3wI/uNm68HInABYFJYqQxRw1EaKAjNdrFVKqjUY+UZurvNd2L/HuQe097s/4RivWiZyP6tT7aoT8atjfhwg==",
        {"dist/purify.es.mjs": "dompurify/purify.js", "LICENSE": "dompurify/LICENSE"},
    ),
    Package(
        "@highlightjs/cdn-assets",
        "11.12.0",
        "BSD-3-Clause",
        "sha512-KvOKXODaiFmId9xaq3xc5xCL66wVLUuOngDbO9B/kewbFTqdGbn2nJxNhN3H5R1cgDTVj6R8vH0zgiNDEGjpDw==",
        {"es/highlight.min.js": "highlight/highlight.js", "LICENSE": "highlight/LICENSE"},
    ),
    Package(
        "axe-core",
        "4.14.1",
        "MPL-2.0",
        "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
        {"axe.min.js": "axe.min.js", "LICENSE": "LICENSE"},
        TESTS,
    ),
)


def fetch(package: Package, into: Path) -> dict[str, bytes]:
    """What we take of the package: path below its folder -> content."""
    spec = f"{package.name}@{package.version}"
    packed = subprocess.run(
        ["npm", "pack", "--silent", spec], cwd=into, check=True, capture_output=True, text=True
    )
    archive = into / packed.stdout.split()[-1]
    digest = hashlib.sha512(archive.read_bytes()).digest()
    integrity = "sha512-" + base64.b64encode(digest).decode()
    if integrity != package.integrity:
        sys.exit(f"{spec}: expected {package.integrity}, got {integrity}.")
    with tarfile.open(archive) as tar:
        return {
            target + Path(name).name if target.endswith("/") else target: _member(tar, name)
            for pattern, target in package.files.items()
            for name in fnmatch.filter(tar.getnames(), f"package/{pattern}")
        }


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    if member is None:
        sys.exit(f"{name} is no file.")
    return member.read()


def write(folder: Path, packages: list[Package]) -> None:
    """Replace the packages' files below `folder`, and the list beside them."""
    listed = []
    for package in packages:
        with tempfile.TemporaryDirectory() as scratch:
            files = fetch(package, Path(scratch))
        for target, content in files.items():
            _replace(ROOT / folder / target, content)
        listed.append(
            {
                "package": package.name,
                "version": package.version,
                "licence": package.licence,
                "integrity": package.integrity,
                "files": {target: _sha256(content) for target, content in files.items()},
            }
        )
    _replace(ROOT / folder / LIST, (json.dumps(listed, indent=2) + "\n").encode())


def wrong(folder: Path) -> list[str]:
    """What does not lie below `folder` as its list says."""
    root = ROOT / folder
    expected = {
        name: digest
        for package in json.loads((root / LIST).read_text())
        for name, digest in package["files"].items()
    }
    there = {
        str(path.relative_to(root)): _sha256(path.read_bytes())
        for path in root.rglob("*")
        if path.is_file() and path.name != LIST
    }
    names = sorted(expected.keys() | there.keys())
    return [str(folder / name) for name in names if expected.get(name) != there.get(name)]


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the libraries that the chat page ships.")
    parser.add_argument("--check", action="store_true", help="only compare, without a network")
    check = parser.parse_args().check
    for folder in (PAGE, TESTS):
        if not check:
            write(folder, [package for package in PACKAGES if package.folder == folder])
        if changed := wrong(folder):
            sys.exit("not as listed: " + ", ".join(changed))


if __name__ == "__main__":
    main()
