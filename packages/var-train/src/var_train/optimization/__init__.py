"""From gradients to new weights: AdamW, learning rates, averages, loss scale."""
