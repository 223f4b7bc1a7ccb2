"""What every tensor-parallel rank did for every request: recorded on the ranks, joined in the gateway.

`ring`, `steps`, `recorder`, `recording`, `collectives`, `cuda_events` and the two workers run inside vLLM's
processes, with nothing but the standard library beside vLLM. The others run in the gateway.
"""
