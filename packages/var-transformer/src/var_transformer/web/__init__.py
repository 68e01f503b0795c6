"""The web page of ``python -m var_transformer.serve``; limits.py has all of its limits."""
