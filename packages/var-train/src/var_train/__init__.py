"""Training of VAR."""
