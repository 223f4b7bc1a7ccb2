"""What a training run costs beside others, and what it survives: each script prints its own table."""
