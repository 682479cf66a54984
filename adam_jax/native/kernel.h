// The innermost loops, which are compiled once for each instruction set.

#ifndef ADAM_JAX_NATIVE_KERNEL_H_
#define ADAM_JAX_NATIVE_KERNEL_H_

#include "step.h"

namespace adam_jax {

// A chunk of a leaf, row by row: whole rows, or whole blocks of one row.
struct Chunk {
  int64_t begin, size;
  uint32_t position;  // of the first element in the whole leaf, for its random bits
};

constexpr int kBuffers = 5;

// Steps one chunk, or only sums, as `manner` says. `buffers` holds kBuffers times `stride`
// floats, stride >= size. Adds to `sums`, if they are asked for.
using Kernel = void(const Leaf& leaf, const Scalars& scalars, Manner manner, Chunk chunk,
                    float* buffers, int64_t stride, Sums& sums);

namespace portable { Kernel step_chunk; }
namespace avx2 { Kernel step_chunk; }
namespace avx512 { Kernel step_chunk; }

constexpr uint32_t kIncrement = 0x9E3779B9u;

// The finalizer of MurmurHash3, as in randomness.hash_index.
inline uint32_t mix(uint32_t x) {
  x += kIncrement;
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

}  // namespace adam_jax

#endif  // ADAM_JAX_NATIVE_KERNEL_H_
