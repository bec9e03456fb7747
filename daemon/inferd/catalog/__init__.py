"""Which versions of which models are served: routes to them, loads, swaps and unloads them."""
