"""What the gateway adds to its engines, measured against them and against others, both sides in one run."""
