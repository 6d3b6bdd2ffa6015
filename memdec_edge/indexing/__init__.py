"""Documents into an index: tokens, their order, and how far a match is to be trusted. Knows nothing of the lookup."""
