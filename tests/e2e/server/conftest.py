"""The live server that the tests of this folder share."""

from tests.serving import server

__all__ = ["server"]
