"""Images and tokens: finding, reading and caching them."""
