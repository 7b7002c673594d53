"""Training: what is trained, its steps and epochs, and the folder of a run."""
