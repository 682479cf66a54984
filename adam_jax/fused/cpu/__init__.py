"""The native step for CPUs, in C++."""
