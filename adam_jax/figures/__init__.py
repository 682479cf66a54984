"""What can be said of one step of an optimizer."""
