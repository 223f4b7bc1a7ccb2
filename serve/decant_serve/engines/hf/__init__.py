"""The transformers engine's own process: loading, batched decoding, and the HTTP app around it."""
