"""Several worker processes behind one port: their CPUs, their lifecycle, and their merged reports."""
