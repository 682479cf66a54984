"""What a problem of your own is made of."""

from .problems.problem import Problem, nnx_problem

__all__ = ["Problem", "nnx_problem"]
