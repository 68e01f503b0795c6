"""How good images are, by the features of a network that was trained on others."""
