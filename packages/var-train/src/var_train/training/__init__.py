"""The two stages, the loop around them, and their checkpoints."""
