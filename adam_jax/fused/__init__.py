"""The Adam step in one pass over memory."""
