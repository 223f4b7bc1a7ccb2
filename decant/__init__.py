"""Decant pours a big language model into a small one and proves what was lost on the way."""

__version__ = "0.1.0"
