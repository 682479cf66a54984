"""The fused step on GPU, in Pallas."""
