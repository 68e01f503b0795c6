"""Drawing images: the loop over the scales, how tokens are drawn, and editing."""
