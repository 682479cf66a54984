"""The fused step on TPU, in Pallas."""
