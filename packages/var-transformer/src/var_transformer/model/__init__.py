"""The next-scale transformer itself: its configuration, cells, weights and operators."""
