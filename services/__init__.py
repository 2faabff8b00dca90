"""The chassis that every Evenload service stands on; it imports none of them."""

__version__ = "0.1.0"
