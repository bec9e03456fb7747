"""How a candidate takes over from what serves: compared, given a share of the traffic, promoted or rejected."""
