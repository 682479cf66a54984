"""The lines of Adam, each a transformation of its own.

    gradients --scale_by_moments--> Moments --bias_correct--> Moments
              --precondition--> updates --(any Optax transform)--> updates
              --scale_by_lr--> updates

Stages that hold no state are pure functions. Arithmetic is done in float32 at least.
"""
