"""The native code for CPUs, in C++: the arithmetic of fused steps and of moments."""
