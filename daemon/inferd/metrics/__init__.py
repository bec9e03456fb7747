"""Every series, how it is counted, and how it is exported."""
