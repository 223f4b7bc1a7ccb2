"""The gateway and the engines behind it: an OpenAI-compatible endpoint for one model."""
