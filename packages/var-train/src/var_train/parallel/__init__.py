"""Many workers as one: shared gradients, a spread optimizer, and watching one another."""
