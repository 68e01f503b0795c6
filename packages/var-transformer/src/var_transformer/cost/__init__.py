"""What a training step and a generation cost on paper: ``python -m var_transformer.cost``."""
