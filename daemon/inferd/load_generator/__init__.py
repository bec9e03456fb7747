"""Makes load on a server of the protocol, for inferd bench."""
