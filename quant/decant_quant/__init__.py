"""Checkpoints made smaller: `decant quantize` and the methods behind it."""
