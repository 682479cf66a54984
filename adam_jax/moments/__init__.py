"""What a moment is: what it gathers, how it is stored, and both over a pytree."""
