"""Estimates what a training step and a generation cost: ``python -m var_transformer.cost``."""
