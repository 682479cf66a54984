"""The lines of Adam, each as its own transformation.

    gradients --scale_by_moments--> Moments --bias_correct--> Moments
              --precondition--> updates --(any Optax transform)--> updates
              --scale_by_lr--> updates

Stages without state are pure functions. Arithmetic is done in float32 or wider.
"""
