"""The web page of ``python -m var_transformer.serve``."""
