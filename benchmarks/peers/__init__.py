"""Benchmark clients side by side: what each says of delays that are known, and how fast it can go.

Run it as `python -m peers` from the folder above.
"""
