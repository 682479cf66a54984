"""Figures that describe one step of an optimizer."""
