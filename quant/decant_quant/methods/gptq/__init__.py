"""GPTQ (Frantar et al., arXiv 2210.17323) in plain torch, one decoder layer in memory at a time."""
