"""Drawing images: the loop over the scales, guidance, filters, refining and editing."""
