"""Many small runs at once: optimizers compared, and hyperparameters swept."""
