"""What goes around a whole optimizer: rounding, guards, checks, figures, packing."""
