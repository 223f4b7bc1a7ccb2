"""The quantization methods; each is imported only when it is chosen."""
