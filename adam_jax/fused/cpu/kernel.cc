// Compiled once for each instruction set, into the namespace ADAM_JAX_ISA.
//
// Do not instantiate code of the standard library here: the linker keeps one copy of an
// inline function, which could be the copy for a machine with more instructions.

#include "kernel.h"

#include <math.h>
#include <string.h>

#if defined(__clang__)
#define ADAM_JAX_SIMD _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ADAM_JAX_SIMD _Pragma("GCC ivdep")
#else
#define ADAM_JAX_SIMD
#endif

namespace adam_jax {
namespace ADAM_JAX_ISA {
namespace {

// Read and write in one loop: arrays that are updated in place alias exactly.

inline uint32_t to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr uint32_t kMagnitude = 0x7FFFFFFF;
constexpr uint32_t kInfinity = 0x7F800000;

// x * y + z, rounded once where the machine can: LLVM fuses them in XLA's code as well.
inline float multiply_add(float x, float y, float z) {
#if defined(__FMA__) || defined(__AVX2__) || defined(__aarch64__) || defined(_M_ARM64)
  return fmaf(x, y, z);
#else
  return x * y + z;
#endif
}

// numerics.bound
inline float bound(float x) {
  constexpr float kLimit = 0x1p60f;
  const float size = from_bits(to_bits(x) & kMagnitude);
  const float limit = x < 0 ? -kLimit : kLimit;
  return (size > kLimit) & (to_bits(size) != kInfinity) ? limit : x;
}

struct Arrays {
  const float *param, *grad, *mu, *nu;
  float *out, *new_mu, *new_nu;
};

template <bool kNesterov, bool kDecays, bool kAddsToParam>
void compute(const Arrays& arrays, const Scalars& scalars, int64_t n) {
  const Arrays a = arrays;  // copies, which stores to float cannot change
  const Scalars s = scalars;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const float grad = bound(a.grad[i]);
    const float first = s.one_minus_b1 * grad;
    const float mu = multiply_add(s.b1, a.mu[i], first);
    const float nu = multiply_add(s.b2, a.nu[i], s.one_minus_b2 * (grad * grad));
    const float read = kNesterov ? multiply_add(s.b1 * mu, s.look_ahead, first) : mu;
    const float divisor = sqrtf(nu / s.nu_weight + s.eps_root) + s.eps;
    // XLA rewrites (mu / weight) / divisor to this.
    const float ratio = read / (s.mu_weight * divisor);
    float update = divisor == 0 ? 0 : ratio;
    const float param = kDecays || kAddsToParam ? a.param[i] : 0;
    if (kDecays) update = multiply_add(s.weight_decay, param, update);
    const float rate = -s.learning_rate;
    a.out[i] = kAddsToParam ? multiply_add(rate, update, param) : rate * update;
    a.new_mu[i] = mu;
    a.new_nu[i] = nu;
  }
}

using Compute = void (*)(const Arrays&, const Scalars&, int64_t);

Compute choose_compute(bool nesterov, bool decays, bool adds_to_param) {
  static constexpr Compute kTable[] = {
      compute<false, false, false>, compute<false, false, true>,
      compute<false, true, false>,  compute<false, true, true>,
      compute<true, false, false>,  compute<true, false, true>,
      compute<true, true, false>,   compute<true, true, true>,
  };
  return kTable[nesterov * 4 + decays * 2 + adds_to_param];
}

// Loops over arrays of a single width compile to the best code. So narrower arrays go
// through a 32-bit buffer, which holds their bits as floats.

template <typename Narrow>
void widen_bits(const Narrow* in, int64_t n, float* buffer) {
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    buffer[i] = from_bits(static_cast<uint32_t>(static_cast<int>(in[i])));
  }
}

template <typename Narrow>
void narrow_bits(const float* buffer, int64_t n, Narrow* out) {
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Narrow>(to_bits(buffer[i]));
}

// Adds `up` to the bits of a finite number and truncates them: if `up` is random, as in
// numerics.round_to_bfloat16. NaN stays NaN: arithmetic
// returns only quiet ones, whose quiet bit is in the upper half.
inline uint32_t to_bfloat16(float x, uint32_t up) {
  const uint32_t bits = to_bits(x);
  return ((bits & kMagnitude) < kInfinity ? bits + up : bits) >> 16;
}

inline uint32_t to_nearest_bfloat16(float x) {
  return to_bfloat16(x, 0x7FFF + ((to_bits(x) >> 16) & 1));
}

inline float from_bfloat16(uint32_t x) { return from_bits(x << 16); }

const float* load(const void* in, Dtype dtype, Chunk chunk, float* buffer) {
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(in) + chunk.begin;
  const auto* values = static_cast<const uint16_t*>(in) + chunk.begin;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < chunk.size; ++i) buffer[i] = from_bfloat16(values[i]);
  return buffer;
}

// The two kinds of codes of formats.encode_blocks.
struct Signed {
  using Code = int8_t;
  static constexpr int kTopField = 7;
};
struct Unsigned {
  using Code = uint8_t;
  static constexpr int kTopField = 15;
};
constexpr int kMantissaBits = 4;
constexpr int kLeastExponent = 20;

template <typename Kind>
inline void decode_block(int64_t n, int exponent, float* values) {
  const int lowest = exponent - Kind::kTopField - kMantissaBits;
  const uint32_t unknown = exponent == 255 ? 0x7FC00000 : 0;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const int code = static_cast<int>(to_bits(values[i]));
    const int size = code < 0 ? -code : code;
    const int field = size >> kMantissaBits > 1 ? size >> kMantissaBits : 1;
    const int mantissa = size - ((field - 1) << kMantissaBits);
    const float scale = from_bits(static_cast<uint32_t>(lowest + field) << 23);
    const float value = static_cast<float>(code < 0 ? -mantissa : mantissa) * scale;
    values[i] = unknown ? from_bits(unknown) : value;
  }
}

// The random bits of an element, in the upper 16. As in formats.make_noise, a second
// moment drops the upper half of its hash, a first moment none.
struct Noise {
  uint32_t key;
  int dropped;

  uint32_t operator()(int64_t i) const {
    return mix(key + static_cast<uint32_t>(i)) << dropped >> 16;
  }
  Noise from(int64_t i) const { return {key + static_cast<uint32_t>(i), dropped}; }
};

template <typename Kind, bool kFinite>
inline void encode_values(int64_t n, Noise noise, int exponent, float* values) {
  constexpr int kTop = Kind::kTopField;
  constexpr bool kSigned = kTop == Signed::kTopField;
  constexpr int kLargest = ((kTop + 1) << kMantissaBits) - 1;
  const int lowest = exponent - kTop;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const float value = values[i];
    const uint32_t bits = to_bits(value) & kMagnitude;
    // At most kTop: no element's exponent is above the block's.
    int field = static_cast<int>(bits >> 23) - lowest;
    field = field < 1 ? 1 : field;
    const int shift = 254 - (lowest + field - kMantissaBits);
    const float steps = from_bits(bits) * from_bits(static_cast<uint32_t>(shift) << 23);
    // All but the last sum are exact: fused or not, it is the same.
    const float uniform =
        multiply_add(static_cast<float>(static_cast<int>(noise(i))), 0x1p-16f, 0x1p-17f);
    const float sum = steps + uniform;
    uint32_t mantissa;
    if (kFinite) {
      mantissa = static_cast<uint32_t>(static_cast<int>(sum));
    } else {  // as XLA converts: NaN to 0, infinity to the largest
      mantissa = static_cast<uint32_t>(static_cast<int>(bits < kInfinity ? sum : 0.0f));
      mantissa = bits == kInfinity ? 0x7FFFFFFFu : mantissa;
    }
    const uint32_t base = static_cast<uint32_t>(field - 1) << kMantissaBits;
    int code = static_cast<int>(base + mantissa);  // wraps for infinity, as in XLA
    code = code < kLargest ? code : kLargest;
    if (kSigned) {
      code = steps < 0.25f ? 0 : code;
      code = value < 0 ? -code : code;
    } else {
      code = code > 1 ? code : 1;
      code = from_bits(bits) > 0 ? code : 0;
    }
    values[i] = from_bits(static_cast<uint32_t>(code));
  }
}

template <typename Kind>
inline void encode_block(int64_t n, Noise noise, float* values, uint8_t* scale) {
  constexpr float kRoom = 1 + 0x1p-5f;
  uint32_t largest = 0;  // magnitudes are ordered as their bits are, NaN above all
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t size = to_bits(values[i]) & kMagnitude;
    largest = size > largest ? size : largest;
  }
  const int peak = static_cast<int>(to_bits(from_bits(largest) * kRoom) >> 23);
  const int exponent = peak > kLeastExponent ? peak : kLeastExponent;
  if (exponent < 255) {
    encode_values<Kind, true>(n, noise, exponent, values);
  } else {
    encode_values<Kind, false>(n, noise, exponent, values);
  }
  *scale = static_cast<uint8_t>(exponent);
}

// Calls visit(offset in the chunk, size, number of the block) for each block.
template <typename Visit>
inline void for_blocks(const Leaf& leaf, int64_t blocks, Chunk chunk, Visit visit) {
  const int64_t block = (leaf.columns + blocks - 1) / blocks;
  int64_t column = chunk.begin % leaf.columns;
  int64_t number = chunk.begin / leaf.columns * blocks + column / block;
  for (int64_t i = 0; i < chunk.size;) {
    const int64_t left = leaf.columns - column;
    const int64_t size = block < left ? block : left;
    visit(i, size, number++);
    i += size;
    column += size;
    if (column == leaf.columns) {
      column = 0;
      // A row may have more blocks than it needs: the others are empty.
      while (number % blocks) visit(i, 0, number++);
    }
  }
}

// The default block size. As the compiler knows it, loops have no remainders.
constexpr int64_t kUsualBlock = 32;

template <typename Kind>
void decode(const Leaf& leaf, const Moment& moment, Chunk chunk, float* buffer) {
  const auto* codes = static_cast<const typename Kind::Code*>(moment.in) + chunk.begin;
  widen_bits(codes, chunk.size, buffer);
  for_blocks(leaf, moment.blocks, chunk, [&](int64_t i, int64_t n, int64_t number) {
    const int exponent = moment.scales_in[number];
    if (n == kUsualBlock) {
      decode_block<Kind>(kUsualBlock, exponent, buffer + i);
    } else {
      decode_block<Kind>(n, exponent, buffer + i);
    }
  });
}

template <typename Kind>
void encode(const Leaf& leaf, const Moment& moment, Chunk chunk, Noise noise,
            float* buffer) {
  for_blocks(leaf, moment.blocks, chunk, [&](int64_t i, int64_t n, int64_t number) {
    const Noise from_block = noise.from(i);
    uint8_t* scale = moment.scales_out + number;
    if (n == kUsualBlock) {
      encode_block<Kind>(kUsualBlock, from_block, buffer + i, scale);
    } else {
      encode_block<Kind>(n, from_block, buffer + i, scale);
    }
  });
  auto* codes = static_cast<typename Kind::Code*>(moment.out) + chunk.begin;
  narrow_bits(buffer, chunk.size, codes);
}

const float* load_moment(const Leaf& leaf, const Moment& moment, Chunk chunk,
                         float* buffer) {
  if (moment.dtype == Dtype::kInt8) {
    decode<Signed>(leaf, moment, chunk, buffer);
  } else if (moment.dtype == Dtype::kUint8) {
    decode<Unsigned>(leaf, moment, chunk, buffer);
  } else {
    return load(moment.in, moment.dtype, chunk, buffer);
  }
  return buffer;
}

void store_moment(const Leaf& leaf, const Moment& moment, Chunk chunk, int dropped,
                  float* buffer) {
  const Noise noise = Noise{moment.key, dropped}.from(chunk.begin);
  if (moment.dtype == Dtype::kInt8) {
    encode<Signed>(leaf, moment, chunk, noise, buffer);
  } else if (moment.dtype == Dtype::kUint8) {
    encode<Unsigned>(leaf, moment, chunk, noise, buffer);
  } else if (moment.dtype == Dtype::kBfloat16) {
    ADAM_JAX_SIMD
    for (int64_t i = 0; i < chunk.size; ++i) {
      buffer[i] = from_bits(to_bfloat16(buffer[i], noise(i)));
    }
    narrow_bits(buffer, chunk.size,
                static_cast<uint16_t*>(moment.out) + chunk.begin);
  }
}

// Rounds what is in `buffer` to bfloat16: for kNearest an update, for kStochastic the
// parameter that it leads to.
void round_bfloat16(const Leaf& leaf, Rounding rounding, Chunk chunk, float* buffer) {
  if (rounding == Rounding::kNearest) {
    ADAM_JAX_SIMD
    for (int64_t i = 0; i < chunk.size; ++i) {
      buffer[i] = from_bfloat16(to_nearest_bfloat16(buffer[i]));
    }
  } else {
    const uint32_t key = leaf.param_key + static_cast<uint32_t>(chunk.begin);
    ADAM_JAX_SIMD
    for (int64_t i = 0; i < chunk.size; ++i) {
      const uint32_t random = mix(key + static_cast<uint32_t>(i));
      buffer[i] = from_bfloat16(to_bfloat16(buffer[i], random >> 16));
    }
  }
}

// Writes new parameters from what round_bfloat16 left in `buffer`.
void store_bfloat16(const Leaf& leaf, Rounding rounding, Chunk chunk,
                    const float* param, float* buffer) {
  // round_to_params emits the difference. Adding it rounds if they are far apart.
  const bool chosen = rounding == Rounding::kStochastic;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < chunk.size; ++i) {
    const float update = chosen ? buffer[i] - param[i] : buffer[i];
    buffer[i] = from_bits(to_nearest_bfloat16(param[i] + update));
  }
  narrow_bits(buffer, chunk.size, static_cast<uint16_t*>(leaf.out) + chunk.begin);
}

bool are_finite(const float* values, int64_t n) {
  uint32_t largest = 0;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t size = to_bits(values[i]) & kMagnitude;
    largest = size > largest ? size : largest;
  }
  return largest < kInfinity;
}

float* destination(void* out, Dtype dtype, Chunk chunk, float* buffer) {
  return dtype == Dtype::kFloat32 ? static_cast<float*>(out) + chunk.begin : buffer;
}

}  // namespace

bool step_chunk(const Leaf& leaf, const Scalars& scalars, Rounding rounding,
                bool nesterov, Chunk chunk, float* buffers, int64_t stride) {
  float* const mu = buffers;
  float* const nu = buffers + stride;
  float* const grad = buffers + 2 * stride;
  float* const param = buffers + 3 * stride;
  float* const out = buffers + 4 * stride;
  Arrays arrays;
  arrays.param = load(leaf.param, leaf.param_dtype, chunk, param);
  arrays.grad = load(leaf.grad, leaf.grad_dtype, chunk, grad);
  arrays.mu = load_moment(leaf, leaf.mu, chunk, mu);
  arrays.nu = load_moment(leaf, leaf.nu, chunk, nu);
  const bool rounds = leaf.param_dtype == Dtype::kBfloat16;
  if (leaf.out == nullptr) {
    arrays.out = out;
    arrays.new_mu = mu;
    arrays.new_nu = nu;
    const bool adds = rounds && rounding == Rounding::kStochastic;
    choose_compute(nesterov, leaf.decays, adds)(arrays, scalars, chunk.size);
    if (rounds) round_bfloat16(leaf, rounding, chunk, out);
    return are_finite(out, chunk.size);
  }
  arrays.out = destination(leaf.out, leaf.param_dtype, chunk, out);
  arrays.new_mu = destination(leaf.mu.out, leaf.mu.dtype, chunk, mu);
  arrays.new_nu = destination(leaf.nu.out, leaf.nu.dtype, chunk, nu);
  const bool adds = rounding == Rounding::kStochastic || !rounds;
  choose_compute(nesterov, leaf.decays, adds)(arrays, scalars, chunk.size);
  store_moment(leaf, leaf.mu, chunk, 0, mu);
  store_moment(leaf, leaf.nu, chunk, 16, nu);
  if (rounds) {
    round_bfloat16(leaf, rounding, chunk, out);
    store_bfloat16(leaf, rounding, chunk, arrays.param, out);
  }
  return true;
}

}  // namespace ADAM_JAX_ISA
}  // namespace adam_jax
