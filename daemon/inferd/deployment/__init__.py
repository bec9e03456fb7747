"""A model version that answers: loading it, what stands for it while it does, and splitting its traffic."""
