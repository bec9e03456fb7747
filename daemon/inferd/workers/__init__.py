"""Several worker processes behind one port: what each gets, what has become of it, and what all say together."""
