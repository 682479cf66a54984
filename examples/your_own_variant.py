"""Your own variant: write an accumulator, write a stage, put them in a chain.

`mean_size` averages |g|. Adam averages g^2, which a single large gradient dominates.
`cautious` stops elements that would move uphill (Liang et al. 2024, arXiv:2411.16085).

Run `python examples/your_own_variant.py`. The noise is Cauchy-distributed. It prints:
    adam            uphill 34%, loss 50.0 -> 35.2
    adam, b2 = 0.9  uphill 35%, loss 50.0 -> 19.0
    mean size       uphill 37%, loss 50.0 -> 7.2
    both            uphill  0%, loss 50.0 -> 2.9
"""

import jax
import jax.numpy as jnp
import optax

import adam_jax


def mean_size(decay):
    return adam_jax.Accumulator(
        {"decay": decay},
        add=lambda moment, value, h: h.decay * moment + (1 - h.decay) * value,
        averages=True,  # so bias_correct() divides it by 1 - decay^t
        power=1,  # of |g|
        measure=lambda grad, mu, h: jnp.abs(grad),
    )


def cautious():
    def mask(mu, grad):
        downhill = mu * grad > 0
        return jnp.where(downhill, mu, 0) / jnp.maximum(downhill.mean(), 1e-3)

    return optax.stateless(
        lambda m, params: m._replace(mu=jax.tree.map(mask, m.mu, m.grads))
    )


def train(name, tx):
    def step(carry, key):
        w, state = carry
        grads = w - 1 + jax.random.cauchy(key, w.shape)
        updates, state = tx.update(grads, state, w)
        return (optax.apply_updates(w, updates), state), (updates * grads > 0).mean()

    keys = jax.random.split(jax.random.key(0), 1000)
    (w, _), uphill = jax.lax.scan(step, (jnp.zeros(100), tx.init(jnp.zeros(100))), keys)
    loss = 0.5 * jnp.sum((w - 1) ** 2)
    print(f"{name:<15} uphill {uphill.mean():3.0%}, loss 50.0 -> {loss:.1f}")
    return loss, uphill.mean()


ours = [adam_jax.scale_by_moments(b1=0.9, b2=mean_size(0.9)), adam_jax.bias_correct()]
last = [adam_jax.scale_by_lr(3e-3)]  # divides, if precondition() did not
slow, _ = train("adam", adam_jax.adam(3e-3))
quick, _ = train("adam, b2 = 0.9", adam_jax.adam(3e-3, b2=0.9))
mean, _ = train("mean size", optax.chain(*ours, *last))
both, uphill = train("both", optax.chain(*ours, cautious(), *last))
assert both < mean < quick < slow and uphill == 0
