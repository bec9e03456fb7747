"""Several worker processes behind one port: their CPUs, their states, and their merged reports."""
