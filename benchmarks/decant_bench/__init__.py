"""Decant's benchmarks: replaying requests, scoring stages, and the ledger that compares them."""
