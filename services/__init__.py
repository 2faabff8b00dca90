"""The chassis that every Evenload service stands on; it imports none of them."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("evenload")
except PackageNotFoundError:  # a bare source tree that was never installed
    __version__ = "0+unknown"
