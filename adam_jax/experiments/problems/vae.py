"""A variational autoencoder in Flax NNX (Kingma & Welling 2013, arXiv:1312.6114)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array


class Reconstruction(NamedTuple):
    """Hold what an autoencoder makes of a batch: pixels, and how the code was drawn."""

    logits: Array  # of each pixel being on, (batch, pixels)
    mean: Array  # of the code's normal distribution, (batch, latent)
    log_variance: Array


class VAE(nnx.Module):
    """Encode images as normal distributions, and decode a draw from each."""

    def __init__(
        self,
        encoder: nnx.Sequential,
        mean: nnx.Linear,
        log_variance: nnx.Linear,
        decoder: nnx.Sequential,
    ):
        """Take the parts."""
        self.encoder = encoder
        self.mean = mean
        self.log_variance = log_variance
        self.decoder = decoder

    def __call__(self, images: Array, key: Array) -> Reconstruction:
        """Reconstruct images, (batch, height, width), with noise from a key."""
        hidden = self.encoder(images)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        noise = jax.random.normal(key, mean.shape)
        code = mean + jnp.exp(log_variance / 2) * noise
        return Reconstruction(self.decoder(code), mean, log_variance)


def negative_elbo(images: Array, made: Reconstruction) -> Array:
    """Bound the negative log-likelihood of each image from above, in nats.

    It is the cross-entropy of the pixels, with grey values in [0, 1] taken as the
    probability of being on, and the divergence of the code's distribution from the
    standard normal one:

        KL = -1/2 sum_j (1 + log_variance_j - mean_j^2 - exp(log_variance_j))

    Reference: equations 7 and 10, with one draw.
    """
    pixels = images.reshape(made.logits.shape)
    unlike = optax.sigmoid_binary_cross_entropy(made.logits, pixels).sum(-1)
    mean, log_variance = made.mean, made.log_variance
    terms = 1 + log_variance - jnp.square(mean) - jnp.exp(log_variance)
    return unlike - terms.sum(-1) / 2
