"""A transformer that stays in its file: weights are read when they are needed."""
