"""One run: its steps, its folder, and what is shown of it."""
