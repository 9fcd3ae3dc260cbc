"""Tells PyInstaller what an app that embeds this package needs beside what it finds itself.

PyInstaller reads this through the entry point `pyinstaller40`; nothing else imports it.
"""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folders with hooks."""
    return [str(Path(__file__).parent)]
