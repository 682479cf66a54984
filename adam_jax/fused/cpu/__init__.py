"""The step for CPUs, in C++."""
