"""What `--help` shows below the options of each command: examples."""

TRAIN = """\
examples:
  adam-jax train --config digits_mlp
  adam-jax train --config digits_mlp --optimizer.learning_rate 3e-4
  adam-jax train --model.name cnn --model.widths "[32, 64]" --optimizer.name lion
  adam-jax train --resume runs/digits_mlp
  adam-jax inspect runs/digits_mlp
"""
COMPARE = """\
examples:
  adam-jax compare --config compare_digits
  adam-jax compare --config compare_digits --seeds 10 --epochs 5

A config names the optimizers:

  [[optimizers]]
  name = "adam"
  learning_rate = 0.003

  [[optimizers]]
  name = "adam"
  learning_rate = 0.003
  b2 = 0.99
  label = "adam, b2 = 0.99"
"""
SWEEP = """\
examples:
  adam-jax sweep --config sweep_digits
  adam-jax sweep --config sweep_digits --memory 500MB
  adam-jax sweep --config sweep_digits --draws 64

A config names the optimizers, and the values of their hyperparameters:

  [[optimizers]]
  name = "adamw"

  [grid]
  learning_rate = {min = 1e-5, max = 1, count = 11}
  weight_decay = [0, 0.01, 0.1, 1]

An optimizer may have values of its own, in a table [optimizers.grid] below its name.
"""
INSPECT = """\
examples:
  adam-jax inspect runs/digits_mlp
  adam-jax inspect runs/digits_mlp --json | jq '.epochs[-1].figures.update_ratio'

docs/diagnostics.md tells how to read the figures.
"""
REPORT = """\
examples:
  adam-jax report runs/digits_mlp
  adam-jax report runs/digits_mlp runs/digits_mlp_adamw --out adam_or_adamw.html

docs/diagnostics.md tells how to read the figures.
"""
TRACE = """\
examples:
  adam-jax trace --surface rosenbrock
  adam-jax trace --surface counterexample --animation none
  adam-jax trace --surface beale --optimizers '["adam", "lion"]' --learning_rate 0.02
  adam-jax trace --surface ravine --settings.adam.b1 0.5 --settings.adam.b2 0.9
  adam-jax trace --surface ravine --start "[-3, 1]" --animation none
  adam-jax trace --config trace_saddle --steps 100
"""
BENCH = """\
examples:
  adam-jax bench --quick
  adam-jax bench --json bench.json --picture bench.png
  adam-jax bench --sizes 2^24 150x2^17 gpt2 --candidates adamw fused_step
  adam-jax bench --sizes 2^24 --candidates fused_step --base torch
  adam-jax bench --compiled v5e --formats float32 8bit
"""
FAMILY = """\
examples:
  adam-jax family                                   # every optimizer, as a tree
  adam-jax family soap                              # its chain beside its parent's
  adam-jax family adopt soap

docs/family.md has the tree as a picture, and what each is good for.
"""
CONFIGS = """\
examples:
  adam-jax configs
  adam-jax train --config digits_mlp
  adam-jax configs digits_mlp > mine.toml
"""
CONVERT = """\
examples:
  adam-jax convert adam.safetensors                 # what is in it
  adam-jax convert adam.safetensors small.safetensors --to 8bit
  adam-jax convert orbax_folder adam.safetensors
  adam-jax convert adam.safetensors adam.msgpack --to optax.adamw
  adam-jax convert old.pt adam.safetensors --names names.txt --turned '*kernel'
  adam-jax convert adam.safetensors new.pt --to torch --like fresh.pt --names names.txt
  adam-jax convert old.keras adam.safetensors --names names.txt

docs/states.md says how programs write and read these files.
"""
