"""Training: state, steps, workers, the loop and its checkpoints."""
