"""How each update was computed, for kernels that can redo it in one pass."""
