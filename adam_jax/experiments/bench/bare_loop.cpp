// AdamW over float32 arrays as a bare loop: the limit that `adam-jax bench` draws.
//
// No part of the fused step: no options, no checks, no XLA, no wait between steps. It
// moves the least that a step can: 16 bytes read and 12 written per parameter.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

// One build of the loop for each instruction set, where the loader can choose.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define ADAM_JAX_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef ADAM_JAX_CLONES
#define ADAM_JAX_CLONES
#endif

#if defined(_MSC_VER)
#define ADAM_JAX_RESTRICT __restrict
#else
#define ADAM_JAX_RESTRICT __restrict__
#endif

namespace adam_jax {
namespace {

constexpr int64_t kLine = 16;  // floats that share a cache line: threads do not

ADAM_JAX_CLONES void step(int64_t size, float* ADAM_JAX_RESTRICT param,
                          const float* ADAM_JAX_RESTRICT grad,
                          float* ADAM_JAX_RESTRICT mu, float* ADAM_JAX_RESTRICT nu,
                          float learning_rate, float b1, float b2, float eps,
                          float weight_decay, float mu_factor, float nu_factor) {
  for (int64_t i = 0; i < size; ++i) {
    mu[i] = b1 * mu[i] + (1 - b1) * grad[i];
    nu[i] = b2 * nu[i] + (1 - b2) * grad[i] * grad[i];
    const float direction = mu[i] * mu_factor / (std::sqrt(nu[i] * nu_factor) + eps);
    param[i] -= learning_rate * (direction + weight_decay * param[i]);
  }
}

}  // namespace

// Takes `steps` steps in place, after `past` earlier ones. Each thread has its share of
// all elements, and goes from step to step without waiting for the others.
extern "C" void AdamJaxBareLoop(
    int64_t leaves, const int64_t* sizes, float* const* params,
    const float* const* grads, float* const* mus, float* const* nus,
    float learning_rate, float b1, float b2, float eps, float weight_decay,
    int64_t past, int64_t steps, int64_t threads) {
  int64_t total = 0;
  for (int64_t leaf = 0; leaf < leaves; ++leaf) total += sizes[leaf];
  const auto boundary = [=](int64_t thread) {
    return thread == threads ? total : total * thread / threads / kLine * kLine;
  };
  const auto work = [=](int64_t thread) {
    for (int64_t count = past + 1; count <= past + steps; ++count) {
      const double exponent = static_cast<double>(count);
      const float mu_factor = static_cast<float>(1 / (1 - std::pow(b1, exponent)));
      const float nu_factor = static_cast<float>(1 / (1 - std::pow(b2, exponent)));
      int64_t start = 0;
      for (int64_t leaf = 0; leaf < leaves; start += sizes[leaf++]) {
        const int64_t begin = std::max(boundary(thread) - start, int64_t{0});
        const int64_t end = std::min(boundary(thread + 1) - start, sizes[leaf]);
        if (begin >= end) continue;
        step(end - begin, params[leaf] + begin, grads[leaf] + begin, mus[leaf] + begin,
             nus[leaf] + begin, learning_rate, b1, b2, eps, weight_decay, mu_factor,
             nu_factor);
      }
    }
  };
  std::vector<std::thread> others;
  for (int64_t thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
}

}  // namespace adam_jax
