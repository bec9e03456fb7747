"""The demo: two real models, and file type identification with one of them."""
