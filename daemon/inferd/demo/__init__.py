"""The demonstration: two real models, and file type identification with one of them."""
