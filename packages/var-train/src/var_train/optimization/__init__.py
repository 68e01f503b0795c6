"""How a gradient becomes a change of the weights."""
