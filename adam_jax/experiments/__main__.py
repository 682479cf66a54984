"""Let `python -m adam_jax.experiments` do what `adam-jax` does."""

import sys

from adam_jax.experiments.cli import main

if __name__ == "__main__":
    sys.exit(main())
