"""Memory that clients share with the daemon, so that tensors need not go over the wire."""
