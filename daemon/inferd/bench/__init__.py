"""Load against a server of the Open Inference Protocol, and what came of it: ``inferd bench``."""
