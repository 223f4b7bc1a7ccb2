"""Measurements of a model that vLLM serves over several ranks: `python -m ranks`."""
