"""`adam-jax report`: one web page of runs or of a study, which loads nothing else."""
