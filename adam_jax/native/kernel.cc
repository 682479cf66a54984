// Compiled once for each instruction set, into the namespace ADAM_JAX_ISA.
//
// Do not instantiate code of the standard library here: the linker keeps one copy of an
// inline function, which could be the copy for a machine with more instructions.

#include "kernel.h"

#include <math.h>
#include <string.h>

#include <type_traits>

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

// Adds `up` to the bits and truncates them: if `up` is random, as in
// numerics.round_to_bfloat16. NaN stays NaN: arithmetic returns only quiet ones, whose
// quiet bit is in the upper half.
inline uint32_t to_bfloat16(float x, uint32_t up) {
  const uint32_t bits = to_bits(x);
  return (x == x ? bits + up : bits) >> 16;
}

inline float from_bfloat16(uint32_t x) { return from_bits(x << 16); }

// An element of a moment: a float as it is, or a bfloat16 with random bits to round by.
inline float load(float x) { return x; }
inline float load(uint16_t x) { return from_bfloat16(x); }
// Storing returns what was stored.
inline float store(float x, uint32_t, float* out) { return *out = x; }
inline float store(float x, uint32_t random, uint16_t* out) {
  const uint32_t bits = to_bfloat16(x, random);
  *out = static_cast<uint16_t>(bits);
  return from_bfloat16(bits);
}

// Where an element is added.
struct Summands {
  Sums& sums;
  int lane;

  void add(Sum sum, float x) const { sums.lanes[sum][lane] += x; }
  void add_square(Sum sum, float x) const {
    sums.lanes[sum][lane] = multiply_add(x, x, sums.lanes[sum][lane]);
  }
  void count(Sum sum, bool x) const { sums.lanes[sum][lane] += x ? 1.0f : 0.0f; }

  void add_gradient(float grad) const {
    add_square(kGradSquare, grad);
    count(kNonfinite, (to_bits(grad) & kMagnitude) >= kInfinity);
  }

  void add_param(float param) const { add_square(kParamSquare, param); }

  void add_update(float update, float param, float landed, float large) const {
    const float size = from_bits(to_bits(update) & kMagnitude);
    add_square(kUpdateSquare, update);
    add(kUpdateSize, size);
    count(kLargeUpdate, size >= large);
    count(kMoved, update != 0);
    count(kSwallowed, (update != 0) & (landed == param));
  }

  // The inverse root is a guess and two refinements, of second and of third order: the
  // step itself already keeps the divider busy.
  void add_moments(float mu, float nu) const {
    const float size = from_bits(to_bits(mu) & kMagnitude);
    float inverse = from_bits(0x5F3759DF - (to_bits(nu) >> 1));
    inverse *= multiply_add(nu * inverse * inverse, -0.5f, 1.5f);
    const float near_one = nu * inverse * inverse;
    inverse *= multiply_add(near_one, multiply_add(near_one, 0.375f, -1.25f), 1.875f);
    inverse = to_bits(nu) == kInfinity ? 0 : inverse;
    add(kSignal, nu > 0 ? size * inverse : nu * 0);
    count(kHasSignal, nu > 0);
  }
};

// Calls visit(i, summands) for each element.
template <typename Visit>
inline void for_lanes(int64_t n, Sums& sums, Visit visit) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    ADAM_JAX_SIMD
    for (int j = 0; j < kLanes; ++j) visit(i + j, Summands{sums, j});
  }
  for (int j = 0; i + j < n; ++j) visit(i + j, Summands{sums, j});
}

// What is summed in the loop that computes a step.
enum class Summed { kNothing, kAllButMoments, kAll };

template <typename Stored>
struct Arrays {
  const float *param, *grad;
  const Stored *mu, *nu;
  float* out;
  Stored *new_mu, *new_nu;
  uint32_t key;  // of the first element, for both moments
  float large_update;
  Sums* sums;
};

template <typename Stored, bool kNesterov, bool kDecays, bool kAddsToParam, Summed kSummed>
void compute(const Arrays<Stored>& arrays, const Scalars& scalars, int64_t n) {
  const Arrays<Stored> a = arrays;  // copies, which stores cannot change
  const Scalars s = scalars;
  const auto step = [a, s](int64_t i, uint32_t key, Summands summands) {
    const float given = a.grad[i];
    const float grad = bound(given);
    const float first = s.one_minus_b1 * grad;
    const float mu = multiply_add(s.b1, load(a.mu[i]), first);
    const float nu = multiply_add(s.b2, load(a.nu[i]), s.one_minus_b2 * (grad * grad));
    const float read = kNesterov ? multiply_add(s.b1 * mu, s.look_ahead, first) : mu;
    const float divisor = sqrtf(nu / s.nu_weight + s.eps_root) + s.eps;
    // XLA rewrites (mu / weight) / divisor to this.
    const float ratio = read / (s.mu_weight * divisor);
    float update = divisor == 0 ? 0 : ratio;
    const float param = kDecays || kAddsToParam ? a.param[i] : 0;
    if (kDecays) update = multiply_add(s.weight_decay, param, update);
    const float rate = -s.learning_rate;
    const float out = kAddsToParam ? multiply_add(rate, update, param) : rate * update;
    a.out[i] = out;
    const uint32_t bits = mix(key);
    const float stored_mu = store(mu, bits >> 16, a.new_mu + i);
    const float stored_nu = store(nu, bits & 0xFFFF, a.new_nu + i);
    if (kSummed == Summed::kNothing) return;
    summands.add_gradient(given);
    summands.add_param(param);
    summands.add_update(rate * update, param, out, a.large_update);
    if (kSummed == Summed::kAll) summands.add_moments(stored_mu, stored_nu);
  };
  uint32_t key = a.key;
  if (kSummed == Summed::kNothing) {
    ADAM_JAX_SIMD
    for (int64_t i = 0; i < n; ++i) {
      step(i, key++, Summands{*a.sums, 0});
    }
  } else {
    for_lanes(n, *a.sums, [a, step](int64_t i, Summands summands) {
      step(i, a.key + static_cast<uint32_t>(i), summands);
    });
  }
}

template <typename Stored>
void compute(const Arrays<Stored>& arrays, const Scalars& scalars, int64_t n,
             bool nesterov, bool decays, bool adds_to_param, Summed summed) {
  using Compute = void (*)(const Arrays<Stored>&, const Scalars&, int64_t);
#define ADAM_JAX_COMPUTE(nesterov, decays)                           \
  compute<Stored, nesterov, decays, false, Summed::kNothing>,        \
  compute<Stored, nesterov, decays, true, Summed::kNothing>,         \
  compute<Stored, nesterov, decays, true, Summed::kAllButMoments>,   \
  compute<Stored, nesterov, decays, true, Summed::kAll>
  static constexpr Compute kTable[] = {
      ADAM_JAX_COMPUTE(false, false), ADAM_JAX_COMPUTE(false, true),
      ADAM_JAX_COMPUTE(true, false), ADAM_JAX_COMPUTE(true, true)};
#undef ADAM_JAX_COMPUTE
  const int kind = adds_to_param ? 1 + static_cast<int>(summed) : 0;
  kTable[nesterov * 8 + decays * 4 + kind](arrays, scalars, n);
}

// Codes go through a 32-bit buffer, which holds their bits as floats: loops over arrays
// of 32 and 8 bits compile to slow code.

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

inline uint32_t to_nearest_bfloat16(float x) {
  return to_bfloat16(x, 0x7FFF + ((to_bits(x) >> 16) & 1));
}

const float* load(const void* in, Dtype dtype, Chunk chunk, float* buffer) {
  if (dtype == Dtype::kFloat32) return static_cast<const float*>(in) + chunk.begin;
  const auto* values = static_cast<const uint16_t*>(in) + chunk.begin;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < chunk.size; ++i) buffer[i] = from_bfloat16(values[i]);
  return buffer;
}

// The random bits of a chunk, as in formats.LeafNoise: the upper half of a hash for a
// first moment, the lower half for a second one.
void draw(uint32_t key, Chunk chunk, float* bits) {
  key += chunk.position;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < chunk.size; ++i) bits[i] = from_bits(mix(key++));
}

template <bool kFirst>
inline uint32_t half_of(float bits) {
  return kFirst ? to_bits(bits) >> 16 : to_bits(bits) & 0xFFFF;
}

// The two kinds of codes of blocks.encode_values.
struct Signed {
  using Code = int8_t;
  static constexpr int kTopField = 7;
};
struct Unsigned {
  using Code = uint8_t;
  static constexpr int kTopField = 15;
};
constexpr int kDroppedBits = 19;
constexpr int kLeastExponent = 20;
constexpr uint32_t kSign = 0x80000000;

inline uint32_t larger(uint32_t x, uint32_t y) { return x > y ? x : y; }

inline float power_of_two(int biased_exponent) {
  return from_bits(static_cast<uint32_t>(biased_exponent) << 23);
}

template <typename Kind>
inline void decode_block(int64_t n, int exponent, float* values) {
  const float scale = exponent == 255 ? from_bits(0x7FC00000)
                                      : power_of_two(exponent - Kind::kTopField);
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const int code = static_cast<int>(to_bits(values[i]));
    const int size = code < 0 ? -code : code;
    const float high =
        from_bits((static_cast<uint32_t>(size) << kDroppedBits) + 0x3F800000);
    const float low = multiply_add(high, 2, -2);  // exact where it is the smaller one
    const uint32_t raw = to_bits(low) < to_bits(high) ? to_bits(low) : to_bits(high);
    const float value = from_bits(raw) * scale;
    values[i] = from_bits(to_bits(value) | (static_cast<uint32_t>(code) & kSign));
  }
}

template <typename Kind>
inline void encode_block(int64_t n, const float* bits, float* values,
                         uint8_t* exponents) {
  constexpr bool kSigned = Kind::kTopField == Signed::kTopField;
  constexpr uint32_t kOffset = 0x41000000 - (1 << (kDroppedBits - 17));
  uint32_t largest = 0;  // magnitudes are ordered as their bits are, NaN above all
  for (int64_t i = 0; i < n; ++i) {
    largest = larger(largest, to_bits(values[i]) & kMagnitude);
  }
  largest = largest < kInfinity ? largest : kInfinity;
  const int peak = static_cast<int>((largest + ((1 << kDroppedBits) - 1)) >> 23);
  const int exponent = peak > kLeastExponent ? peak : kLeastExponent;
  *exponents = static_cast<uint8_t>(exponent);
  const float scale = power_of_two(257 + Kind::kTopField - exponent);
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const float size = from_bits(to_bits(values[i]) & kMagnitude);
    const float steps = size * scale;
    // Positive floats are ordered as their bits are, of which the maximum takes less.
    uint32_t raw = to_bits(steps);
    if (kSigned) {
      raw = steps >= 0.25f ? raw : 0;
    } else {
      raw = larger(raw, 0x3F800000);
      raw = size > 0 ? raw : 0;
    }
    raw = larger(raw, to_bits(multiply_add(from_bits(raw), 0.5f, 8)));
    const uint32_t noise = half_of<kSigned>(bits[i]) << (kDroppedBits - 16);
    const uint32_t code = (raw - kOffset + noise) >> kDroppedBits;
    const uint32_t sign = kSigned && values[i] < 0 ? ~0u : 0;
    values[i] = from_bits((code ^ sign) - sign);
  }
}

// The default block size. As the compiler knows it, loops have no remainders.
constexpr int64_t kUsualBlock = 32;

// Calls visit(offset in the chunk, size, number of the block) for each block.
template <typename Visit>
inline void for_blocks(const Leaf& leaf, int64_t blocks, Chunk chunk, Visit visit) {
  if (blocks * kUsualBlock == leaf.columns) {
    const int64_t first = chunk.begin / kUsualBlock;
    for (int64_t i = 0; i < chunk.size; i += kUsualBlock) {
      visit(i, kUsualBlock, first + i / kUsualBlock);
    }
    return;
  }
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
void encode(const Leaf& leaf, const Moment& moment, Chunk chunk, const float* bits,
            float* values) {
  for_blocks(leaf, moment.blocks, chunk, [&](int64_t i, int64_t n, int64_t number) {
    uint8_t* exponents = moment.scales_out + number;
    if (n == kUsualBlock) {
      encode_block<Kind>(kUsualBlock, bits + i, values + i, exponents);
    } else {
      encode_block<Kind>(n, bits + i, values + i, exponents);
    }
  });
  auto* codes = static_cast<typename Kind::Code*>(moment.out) + chunk.begin;
  narrow_bits(values, chunk.size, codes);
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

template <bool kFirst>
void store_moment(const Leaf& leaf, const Moment& moment, Chunk chunk,
                  const float* bits, float* values) {
  if (moment.dtype == Dtype::kBfloat16) {
    auto* out = static_cast<uint16_t*>(moment.out) + chunk.begin;
    ADAM_JAX_SIMD
    for (int64_t i = 0; i < chunk.size; ++i) {
      out[i] = static_cast<uint16_t>(to_bfloat16(values[i], half_of<kFirst>(bits[i])));
    }
  } else if (moment.dtype != Dtype::kFloat32) {
    encode<std::conditional_t<kFirst, Signed, Unsigned>>(leaf, moment, chunk, bits, values);
  }
}

void store_moments(const Leaf& leaf, Chunk chunk, float* bits, float* mu, float* nu) {
  const bool narrow_mu = leaf.mu.dtype != Dtype::kFloat32;
  if (narrow_mu) draw(leaf.mu.key, chunk, bits);
  store_moment<true>(leaf, leaf.mu, chunk, bits, mu);
  if (leaf.nu.dtype == Dtype::kFloat32) return;
  if (!narrow_mu || leaf.mu.key != leaf.nu.key) draw(leaf.nu.key, chunk, bits);
  store_moment<false>(leaf, leaf.nu, chunk, bits, nu);
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
    const uint32_t key = leaf.param_key + chunk.position;
    ADAM_JAX_SIMD
    for (int64_t i = 0; i < chunk.size; ++i) {
      const uint32_t random = mix(key + static_cast<uint32_t>(i));
      buffer[i] = from_bfloat16(to_bfloat16(buffer[i], random >> 16));
    }
  }
}

// Writes new parameters from what round_bfloat16 left in the buffer, and leaves there what
// was added to the old ones.
void store_bfloat16(const Leaf& leaf, Rounding rounding, Chunk chunk,
                    const float* param, float* buffer) {
  auto* const out = static_cast<uint16_t*>(leaf.out) + chunk.begin;
  // round_to_params emits the difference. Adding it rounds if they are far apart.
  const bool chosen = rounding == Rounding::kStochastic;
  ADAM_JAX_SIMD
  for (int64_t i = 0; i < chunk.size; ++i) {
    const float update = chosen ? buffer[i] - param[i] : buffer[i];
    out[i] = static_cast<uint16_t>(to_nearest_bfloat16(param[i] + update));
    buffer[i] = update;
  }
}

float* destination(void* out, Dtype dtype, Chunk chunk, float* buffer) {
  return dtype == Dtype::kFloat32 ? static_cast<float*>(out) + chunk.begin : buffer;
}

// Sums over arrays that lie in memory.

void sum_gradients(int64_t n, const float* grad, Sums& sums) {
  for_lanes(n, sums, [=](int64_t i, Summands summands) { summands.add_gradient(grad[i]); });
}

void sum_params(int64_t n, const float* param, Sums& sums) {
  for_lanes(n, sums, [=](int64_t i, Summands summands) { summands.add_param(param[i]); });
}

void sum_updates(int64_t n, const float* update, const float* param, const uint16_t* landed,
                 float large, Sums& sums) {
  for_lanes(n, sums, [=](int64_t i, Summands summands) {
    summands.add_update(update[i], param[i], from_bfloat16(landed[i]), large);
  });
}

void sum_updates(int64_t n, const float* update, const float* param, float large,
                 Sums& sums) {
  for_lanes(n, sums, [=](int64_t i, Summands summands) {
    summands.add_update(update[i], param[i], param[i] + update[i], large);
  });
}

void sum_moments(int64_t n, const float* mu, const float* nu, Sums& sums) {
  for_lanes(n, sums, [=](int64_t i, Summands summands) {
    summands.add_moments(mu[i], nu[i]);
  });
}

// The parts of a step by themselves.

void load_chunk(const Leaf& leaf, Chunk chunk) {
  const Moment& moment = leaf.mu.in != nullptr ? leaf.mu : leaf.nu;
  load_moment(leaf, moment, chunk, static_cast<float*>(leaf.out) + chunk.begin);
}

void store_chunk(const Leaf& leaf, Chunk chunk, float* bits, float* values) {
  const float* const given = static_cast<const float*>(leaf.param) + chunk.begin;
  memcpy(values, given, static_cast<size_t>(chunk.size) * sizeof(float));
  const bool first = leaf.mu.out != nullptr;
  draw(first ? leaf.mu.key : leaf.nu.key, chunk, bits);
  if (first) {
    store_moment<true>(leaf, leaf.mu, chunk, bits, values);
  } else {
    store_moment<false>(leaf, leaf.nu, chunk, bits, values);
  }
}

void sum_chunk(const Leaf& leaf, Chunk chunk, Sums& sums) {
  const auto part = [&](const void* array) {
    return array == nullptr ? nullptr : static_cast<const float*>(array) + chunk.begin;
  };
  const float *const grad = part(leaf.grad), *const param = part(leaf.param);
  const float *const mu = part(leaf.mu.in), *const nu = part(leaf.nu.in);
  const float* const update = part(leaf.out);
  if (grad != nullptr) sum_gradients(chunk.size, grad, sums);
  if (param != nullptr) sum_params(chunk.size, param, sums);
  if (update != nullptr) {  // without parameters, none of it is lost in rounding
    const float* const to = param != nullptr ? param : update;
    sum_updates(chunk.size, update, to, leaf.large_update, sums);
  }
  if (mu != nullptr && nu != nullptr) sum_moments(chunk.size, mu, nu, sums);
}

// A moment after the step, to be loaded.
Moment stepped(Moment moment) {
  moment.in = moment.out;
  moment.scales_in = moment.scales_out;
  return moment;
}

}  // namespace

void step_chunk(const Leaf& leaf, const Scalars& scalars, Manner manner, Chunk chunk,
                float* buffers, int64_t stride, Sums& sums) {
  float* const mu = buffers;
  float* const nu = buffers + stride;
  float* const grad = buffers + 2 * stride;
  float* const param = buffers + 3 * stride;
  float* const out = buffers + 4 * stride;
  if (manner.work == Work::kLoad) return load_chunk(leaf, chunk);
  if (manner.work == Work::kStore) return store_chunk(leaf, chunk, grad, mu);
  if (manner.work == Work::kSum) return sum_chunk(leaf, chunk, sums);
  const bool rounds = leaf.param_dtype == Dtype::kBfloat16;
  const bool adds = manner.rounding == Rounding::kStochastic || !rounds;
  const float* const old_param = load(leaf.param, leaf.param_dtype, chunk, param);
  const float* const old_grad = load(leaf.grad, leaf.grad_dtype, chunk, grad);
  if (manner.sums && (rounds || !manner.takes)) {
    sum_gradients(chunk.size, old_grad, sums);
    sum_params(chunk.size, old_param, sums);
  }
  if (!manner.takes) {
    sum_moments(chunk.size, load_moment(leaf, leaf.mu, chunk, mu),
                load_moment(leaf, leaf.nu, chunk, nu), sums);
    return;
  }
  float* const new_param = destination(leaf.out, leaf.param_dtype, chunk, out);
  const bool wide = leaf.mu.dtype == Dtype::kFloat32 && leaf.nu.dtype == Dtype::kFloat32;
  const bool halves = leaf.mu.dtype == Dtype::kBfloat16 &&
                      leaf.nu.dtype == Dtype::kBfloat16 && leaf.mu.key == leaf.nu.key;
  const Summed summed = rounds || !manner.sums ? Summed::kNothing
                        : wide || halves       ? Summed::kAll
                                               : Summed::kAllButMoments;
  const auto run = [&](const auto& arrays) {
    compute(arrays, scalars, chunk.size, manner.nesterov, leaf.decays, adds, summed);
  };
  if (halves) {
    const auto in = [&](const Moment& moment) {
      return static_cast<const uint16_t*>(moment.in) + chunk.begin;
    };
    const auto to = [&](const Moment& moment) {
      return static_cast<uint16_t*>(moment.out) + chunk.begin;
    };
    run(Arrays<uint16_t>{old_param, old_grad, in(leaf.mu), in(leaf.nu), new_param,
                         to(leaf.mu), to(leaf.nu), leaf.mu.key + chunk.position,
                         leaf.large_update, &sums});
  } else {
    const auto to = [&](const Moment& moment, float* buffer) {
      return destination(moment.out, moment.dtype, chunk, buffer);
    };
    run(Arrays<float>{old_param, old_grad, load_moment(leaf, leaf.mu, chunk, mu),
                      load_moment(leaf, leaf.nu, chunk, nu), new_param,
                      to(leaf.mu, mu), to(leaf.nu, nu), 0, leaf.large_update, &sums});
    store_moments(leaf, chunk, grad, mu, nu);  // the gradient is no longer needed
  }
  if (rounds) {
    round_bfloat16(leaf, manner.rounding, chunk, out);
    store_bfloat16(leaf, manner.rounding, chunk, old_param, out);
  }
  if (!manner.sums) return;
  if (rounds) {
    sum_updates(chunk.size, out, old_param,
                static_cast<const uint16_t*>(leaf.out) + chunk.begin, leaf.large_update,
                sums);
  }
  if (summed != Summed::kAll) {
    sum_moments(chunk.size, load_moment(leaf, stepped(leaf.mu), chunk, mu),
                load_moment(leaf, stepped(leaf.nu), chunk, nu), sums);
  }
}

}  // namespace ADAM_JAX_ISA
}  // namespace adam_jax
