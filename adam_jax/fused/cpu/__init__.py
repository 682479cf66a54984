"""The native step for CPUs, as an XLA call."""
