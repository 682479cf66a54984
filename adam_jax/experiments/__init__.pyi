"""What a problem of your own is made of."""

from .problems import Problem, nnx_problem

__all__ = ["Problem", "nnx_problem"]
