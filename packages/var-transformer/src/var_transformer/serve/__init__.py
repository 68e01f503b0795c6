"""A web page for a trained model: ``python -m var_transformer.serve``."""
