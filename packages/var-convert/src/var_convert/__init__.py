"""Weights of VAR in and out."""
