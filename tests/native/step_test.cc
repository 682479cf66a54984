// Random steps against a scalar reference, bit for bit. `make sanitize` runs it under
// AddressSanitizer and UndefinedBehaviorSanitizer.
//
// Usage: step_test [trials] [seed]. Prints the trial that differs and exits with 1.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernel.h"
#include "step.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace adam_jax {
namespace {

std::mt19937_64 generator;
uint64_t current_seed;

int64_t draw(int64_t low, int64_t high) {  // both are drawn
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}
bool chance(int percent) { return draw(1, 100) <= percent; }

size_t width(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : dtype == Dtype::kBfloat16 ? 2 : 1;
}

// Memory that ends where the array ends, and starts where vectors do not.
class Array {
 public:
  Array() = default;
  Array(int64_t size, Dtype dtype)
      : dtype_(dtype), size_(size), offset_(draw(0, 9)),
        bytes_(static_cast<size_t>(offset_ + size) * width(dtype), 0x5A) {}

  void* data() { return bytes_.data() + static_cast<size_t>(offset_) * width(dtype_); }
  int64_t size() const { return size_; }
  Dtype dtype() const { return dtype_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }
  bool border_untouched() const {
    const auto end = bytes_.begin() + static_cast<int64_t>(offset_ * width(dtype_));
    return std::all_of(bytes_.begin(), end, [](uint8_t byte) { return byte == 0x5A; });
  }

 private:
  Dtype dtype_ = Dtype::kFloat32;
  int64_t size_ = 0, offset_ = 0;
  std::vector<uint8_t> bytes_;
};

float bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

bool is_code(Dtype dtype) { return dtype == Dtype::kInt8 || dtype == Dtype::kUint8; }

// ------------------------------------------------------------------ the reference

uint32_t reference_mix(uint32_t x) {
  x += 2654435769u;
  x ^= x >> 16;
  x *= 2246822507u;
  x ^= x >> 13;
  x *= 3266489909u;
  x ^= x >> 16;
  return x;
}

// Truncates |x| to a bfloat16 after adding `up`, a fraction of its last place.
uint16_t reference_bfloat16(float x, double up, bool nearest) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7FC0;
  if (std::isinf(x)) return sign | 0x7F80;
  if (x == 0) return sign;
  const int exponent = std::ilogb(x);  // no subnormals: they have been flushed
  const double places = std::ldexp(std::fabs(static_cast<double>(x)), 7 - exponent);
  const double kept = nearest ? std::nearbyint(places) : std::floor(places + up);
  const double value = std::ldexp(kept, exponent - 7);
  if (value > 3.3961e38) return sign | 0x7F80;
  const float narrow = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &narrow, 4);
  return static_cast<uint16_t>(sign | (bits >> 16));
}

uint16_t reference_random_bfloat16(float x, uint32_t random) {
  return reference_bfloat16(x, (random >> 16) / 65536.0, false);
}

int exponent_field(float x) {
  if (!std::isfinite(x)) return 255;
  return x == 0 ? 0 : std::ilogb(x) + 127;
}

// The position of an element in the leaf that its own was cut from.
uint32_t reference_position(const Leaf& leaf, int64_t i) {
  const Piece& p = leaf.piece;
  if (p.row == 0) return static_cast<uint32_t>(i);
  const int64_t row = i / p.row, rows = p.plane / p.row, whole = p.whole_plane / p.whole_row;
  return static_cast<uint32_t>((row / rows * whole + row % rows) * p.whole_row + i % p.row);
}

int64_t block_size(const Leaf& leaf, const Moment& moment) {
  return (leaf.columns + moment.blocks - 1) / moment.blocks;
}

std::vector<float> reference_load(const Leaf& leaf, const Moment& moment, Array& values,
                                  Array& scales) {
  std::vector<float> loaded(static_cast<size_t>(values.size()));
  for (int64_t i = 0; i < values.size(); ++i) {
    float& x = loaded[static_cast<size_t>(i)];
    if (moment.dtype == Dtype::kFloat32) x = values.as<float>()[i];
    if (moment.dtype == Dtype::kBfloat16) x = bfloat16(values.as<uint16_t>()[i]);
    if (!is_code(moment.dtype)) continue;
    const bool is_signed = moment.dtype == Dtype::kInt8;
    const int code = is_signed ? values.as<int8_t>()[i] : values.as<uint8_t>()[i];
    const int64_t row = i / leaf.columns, column = i % leaf.columns;
    const int exponent =
        scales.as<uint8_t>()[row * moment.blocks + column / block_size(leaf, moment)];
    const int size = std::abs(code);
    const int field = std::max(1, size / 16);
    const int place = exponent - (is_signed ? 7 : 15) + field - 4 - 127;
    x = static_cast<float>(std::ldexp(size - 16 * (field - 1), place));
    if (code < 0) x = -x;
    if (exponent == 255) x = std::numeric_limits<float>::quiet_NaN();
  }
  return loaded;
}

void reference_store(const Leaf& leaf, const Moment& moment,
                     const std::vector<float>& moments, int dropped, Array& values,
                     Array& scales) {
  const int64_t n = values.size();
  if (is_code(moment.dtype)) {
    // Blocks without elements are as blocks of zeros.
    std::fill_n(scales.as<uint8_t>(), scales.size(), 20);
  }
  const bool is_signed = moment.dtype == Dtype::kInt8;
  const int top = is_signed ? 7 : 15;
  for (int64_t i = 0; i < n; ++i) {
    const float x = moments[static_cast<size_t>(i)];
    const uint32_t random = reference_mix(reference_position(leaf, i) + moment.key)
                            << dropped;
    if (moment.dtype == Dtype::kFloat32) values.as<float>()[i] = x;
    if (moment.dtype == Dtype::kBfloat16) {
      values.as<uint16_t>()[i] = reference_random_bfloat16(x, random);
    }
    if (!is_code(moment.dtype)) continue;
    const int64_t row = i / leaf.columns, column = i % leaf.columns;
    const int64_t block = block_size(leaf, moment);
    const int64_t first = row * leaf.columns + column / block * block;
    const int64_t last = std::min(first + block, (row + 1) * leaf.columns);
    float peak = 0;
    for (int64_t j = first; j < last; ++j) {
      const float size = std::fabs(moments[static_cast<size_t>(j)]);
      peak = std::isnan(size) || size > peak ? size : peak;
      if (std::isnan(peak)) break;
    }
    // The largest code stands for 31/16 times a power of two.
    int power = 0;
    const bool beyond = std::isfinite(peak) && std::frexp(peak, &power) > 31.0f / 32;
    const int exponent = std::max(20, exponent_field(peak) + beyond);
    scales.as<uint8_t>()[row * moment.blocks + column / block] =
        static_cast<uint8_t>(exponent);
    const float size = std::fabs(x);
    const int field = std::clamp(exponent_field(size) - (exponent - top), 1, top);
    int code;
    if (std::isnan(x)) {
      code = 0;
    } else if (std::isinf(x)) {  // it stands for NaN in any case
      code = (0x7F800000 - 0x41000000) >> 19;
    } else {
      const double steps = std::ldexp(size, 127 + 4 - (exponent - top) - field);
      const double parts = std::nearbyint(std::ldexp(steps, 19)) + (random >> 16) * 8 + 4;
      code = 16 * (field - 1) + static_cast<int>(std::floor(std::ldexp(parts, -19)));
      if (is_signed && steps < 0.25) code = 0;
      if (!is_signed) code = size > 0 ? std::max(code, 1) : 0;
    }
    if (is_signed) values.as<int8_t>()[i] = static_cast<int8_t>(x < 0 ? -code : code);
    if (!is_signed) values.as<uint8_t>()[i] = static_cast<uint8_t>(code);
  }
}

float sum_of_product(bool fused, float x, float y, float z) {
  volatile float product = x * y;  // not to be fused by the compiler
  return fused ? std::fma(x, y, z) : product + z;
}

// ----------------------------------------------------------------------- one trial

struct LeafArrays {
  Array param, grad, mu, nu, mu_scales, nu_scales;
};

struct Trial {
  std::vector<Leaf> leaves;
  std::vector<LeafArrays> before;
  Scalars scalars;
  Manner manner;
  bool in_place;
};

bool specials;  // whether a trial has values that are not ordinary

float random_value(bool positive) {
  static const float special[] = {0,
                                  std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN(),
                                  1e30f,
                                  3e38f,
                                  1e-30f,
                                  2e-38f,
                                  1,
                                  // These, or their squares, are at most rounded up
                                  // beyond the largest code.
                                  0x1.f05p3f,
                                  0x1.6475p0f};
  std::normal_distribution<float> normal;
  float x = normal(generator) * std::pow(10.0f, static_cast<float>(draw(-6, 2)));
  if (specials && chance(3)) x = special[draw(0, 9)];
  if (!positive && chance(50)) x = -x;
  return positive ? std::fabs(x) : x;
}

void fill(Array& array, bool positive) {
  for (int64_t i = 0; i < array.size(); ++i) {
    if (array.dtype() == Dtype::kFloat32) array.as<float>()[i] = random_value(positive);
    if (array.dtype() == Dtype::kBfloat16) {
      array.as<uint16_t>()[i] = reference_bfloat16(random_value(positive), 0, true);
    }
    if (array.dtype() == Dtype::kInt8) {
      array.as<int8_t>()[i] = static_cast<int8_t>(draw(-127, 127));
    }
    if (array.dtype() == Dtype::kUint8) {
      array.as<uint8_t>()[i] = static_cast<uint8_t>(draw(0, 255));
    }
  }
}

Dtype draw_float() { return chance(50) ? Dtype::kFloat32 : Dtype::kBfloat16; }

void draw_moment(Leaf& leaf, Moment& moment, Dtype codes, Array& values, Array& scales) {
  static const int64_t blocks[] = {1, 2, 7, 31, 32, 32, 32, 33, 64, 1000};
  const int64_t n = leaf.rows * leaf.columns;
  const Dtype choices[] = {Dtype::kFloat32, Dtype::kBfloat16, codes};
  moment.dtype = n == 0 ? Dtype::kFloat32 : choices[draw(0, 2)];
  values = Array(n, moment.dtype);
  fill(values, codes == Dtype::kUint8);
  if (!is_code(moment.dtype)) return;
  const int64_t block = blocks[draw(0, 9)];
  moment.blocks = (leaf.columns + block - 1) / block + (chance(5) ? draw(0, 3) : 0);
  scales = Array(leaf.rows * moment.blocks, Dtype::kUint8);
  for (int64_t i = 0; i < scales.size(); ++i) {
    scales.as<uint8_t>()[i] = static_cast<uint8_t>(specials && chance(2) ? 255 : draw(20, 180));
  }
}

Trial draw_trial() {
  Trial trial;
  specials = chance(70);
  const float weights[] = {1, 0.1f, 0.40951f};
  trial.scalars = {0.9f, 0.1f, 0.999f, 0.001f, 1e-3f, 1e-8f, 0, 0.01f,
                   weights[draw(0, 2)], weights[draw(0, 2)], 0.87f};
  if (chance(10)) trial.scalars.b1 = trial.scalars.b2 = 0;
  if (trial.scalars.b1 == 0) trial.scalars.one_minus_b1 = trial.scalars.one_minus_b2 = 1;
  if (chance(20)) trial.scalars.eps = 0;
  if (chance(30)) trial.scalars.eps_root = 1e-10f;
  trial.manner.rounding = static_cast<Rounding>(draw(0, 1));
  trial.manner.nesterov = chance(50);
  trial.manner.takes = !chance(20);
  trial.manner.sums = !trial.manner.takes || chance(70);
  trial.in_place = chance(50);
  const int64_t count = chance(30) ? draw(1, 40) : 1;
  for (int64_t i = 0; i < count; ++i) {
    Leaf leaf;
    leaf.rows = chance(50) ? 1 : draw(0, 40);
    const int64_t most = 10000 / std::max<int64_t>(1, leaf.rows * count);
    leaf.columns = chance(5) ? 0 : draw(1, std::max<int64_t>(1, most));
    const int64_t n = leaf.rows * leaf.columns;
    LeafArrays arrays;
    leaf.grad_dtype = draw_float();
    leaf.param_dtype = draw_float();
    leaf.decays = chance(50);
    leaf.large_update = chance(50) ? 1e-3f : std::numeric_limits<float>::infinity();
    leaf.param_key = static_cast<uint32_t>(generator());
    if (n > 0 && chance(40)) {
      const int64_t most_rows = draw(1, 4), rows = leaf.rows % most_rows ? 1 : most_rows;
      const int64_t whole_row = leaf.columns * draw(1, 3);
      leaf.piece = {leaf.columns, rows * leaf.columns, whole_row,
                    rows * draw(1, 3) * whole_row};
    }
    arrays.grad = Array(n, leaf.grad_dtype);
    fill(arrays.grad, false);
    arrays.param = Array(n, leaf.param_dtype);
    fill(arrays.param, false);
    draw_moment(leaf, leaf.mu, Dtype::kInt8, arrays.mu, arrays.mu_scales);
    draw_moment(leaf, leaf.nu, Dtype::kUint8, arrays.nu, arrays.nu_scales);
    leaf.mu.key = static_cast<uint32_t>(generator());
    leaf.nu.key = chance(50) ? leaf.mu.key : static_cast<uint32_t>(generator());
    trial.leaves.push_back(leaf);
    trial.before.push_back(std::move(arrays));
  }
  return trial;
}

// What a step writes.
struct Results {
  Array out, mu, nu, mu_scales, nu_scales;
  std::vector<double> sums = std::vector<double>(kSums);
};

float load(Array& array, int64_t i) {
  return array.dtype() == Dtype::kFloat32 ? array.as<float>()[i]
                                          : bfloat16(array.as<uint16_t>()[i]);
}

// Adds one element to the sums. `landed` is the parameter after the update.
void reference_add(float grad, float param, float update, float landed, float large,
                   float mu, float nu, std::vector<double>& sums) {
  const auto square = [](float x) {
    const volatile float squared = x * x;  // rounded to float32: it may overflow
    return static_cast<double>(squared);
  };
  sums[kGradSquare] += square(grad);
  sums[kNonfinite] += !std::isfinite(grad);
  sums[kParamSquare] += square(param);
  sums[kUpdateSquare] += square(update);
  sums[kUpdateSize] += std::fabs(update);
  sums[kLargeUpdate] += std::fabs(update) >= large;
  sums[kMoved] += update != 0;
  sums[kSwallowed] += update != 0 && landed == param;
  const double root = std::sqrt(static_cast<double>(nu));
  sums[kSignal] += nu == 0 ? 0 : std::fabs(static_cast<double>(mu)) / root;
  sums[kHasSignal] += nu > 0;
}

void reference_step(const Trial& trial, size_t i, bool fused, Results& results,
                    std::vector<float>& updates) {
  const Leaf& leaf = trial.leaves[i];
  const Scalars& s = trial.scalars;
  LeafArrays before = trial.before[i];
  const int64_t n = leaf.rows * leaf.columns;
  auto mu = reference_load(leaf, leaf.mu, before.mu, before.mu_scales);
  auto nu = reference_load(leaf, leaf.nu, before.nu, before.nu_scales);
  for (int64_t j = 0; j < n; ++j) {
    const auto at = [j](Array& array) { return load(array, j); };
    float grad = at(before.grad);
    if (std::isfinite(grad)) grad = std::clamp(grad, -std::exp2(60.0f), std::exp2(60.0f));
    float& m = mu[static_cast<size_t>(j)];
    float& v = nu[static_cast<size_t>(j)];
    const float first = s.one_minus_b1 * grad;
    m = sum_of_product(fused, s.b1, m, first);
    v = sum_of_product(fused, s.b2, v, s.one_minus_b2 * (grad * grad));
    const float read =
        trial.manner.nesterov ? sum_of_product(fused, s.b1 * m, s.look_ahead, first) : m;
    const float divisor = std::sqrt(v / s.nu_weight + s.eps_root) + s.eps;
    float update = divisor == 0 ? 0 : read / (s.mu_weight * divisor);
    const float param = at(before.param);
    if (leaf.decays) update = sum_of_product(fused, s.weight_decay, param, update);
    const float rate = -s.learning_rate;
    const float added = sum_of_product(fused, rate, update, param);
    const bool narrow = leaf.param_dtype == Dtype::kBfloat16;
    updates[static_cast<size_t>(j)] = rate * update;
    if (!narrow) {
      results.out.as<float>()[j] = added;
      continue;
    }
    uint16_t& out = results.out.as<uint16_t>()[j];
    if (trial.manner.rounding == Rounding::kNearest) {
      const float rounded = bfloat16(reference_bfloat16(rate * update, 0, true));
      out = reference_bfloat16(param + rounded, 0, true);
      updates[static_cast<size_t>(j)] = rounded;
    } else {
      const uint32_t random =
          reference_mix(reference_position(leaf, j) + leaf.param_key);
      const float chosen = bfloat16(reference_random_bfloat16(added, random));
      out = reference_bfloat16(param + (chosen - param), 0, true);
      updates[static_cast<size_t>(j)] = chosen - param;
    }
  }
  reference_store(leaf, leaf.mu, mu, 0, results.mu, results.mu_scales);
  reference_store(leaf, leaf.nu, nu, 16, results.nu, results.nu_scales);
}

// A step, or none, and its sums.
void reference_result(const Trial& trial, size_t i, bool fused, Results& results) {
  const Leaf& leaf = trial.leaves[i];
  LeafArrays before = trial.before[i];
  const int64_t n = leaf.rows * leaf.columns;
  std::vector<float> updates(static_cast<size_t>(n));
  if (trial.manner.takes) {
    reference_step(trial, i, fused, results, updates);
  } else {
    results.out = before.param;
    results.mu = before.mu;
    results.nu = before.nu;
    results.mu_scales = before.mu_scales;
    results.nu_scales = before.nu_scales;
  }
  if (!trial.manner.sums) return;
  const auto mu = reference_load(leaf, leaf.mu, results.mu, results.mu_scales);
  const auto nu = reference_load(leaf, leaf.nu, results.nu, results.nu_scales);
  for (int64_t j = 0; j < n; ++j) {
    const auto k = static_cast<size_t>(j);
    reference_add(load(before.grad, j), load(before.param, j), updates[k],
                  load(results.out, j), leaf.large_update, mu[k], nu[k], results.sums);
  }
}

Results make_results(const Trial& trial, size_t i) {
  const Leaf& leaf = trial.leaves[i];
  const int64_t n = leaf.rows * leaf.columns;
  Results results;
  results.out = Array(n, leaf.param_dtype);
  results.mu = Array(n, leaf.mu.dtype);
  results.nu = Array(n, leaf.nu.dtype);
  results.mu_scales = Array(leaf.rows * leaf.mu.blocks, Dtype::kUint8);
  results.nu_scales = Array(leaf.rows * leaf.nu.blocks, Dtype::kUint8);
  return results;
}

void check(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAILED: step_test 1 %llu: %s\n",
              static_cast<unsigned long long>(current_seed), what.c_str());
  std::exit(1);
}

void compare(Array& found, Array& expected, const std::string& what) {
  check(found.border_untouched(), what + ": written before its start");
  for (int64_t i = 0; i < found.size(); ++i) {
    const size_t bytes = width(found.dtype());
    const auto at = [&](Array& array) { return array.as<uint8_t>() + i * bytes; };
    bool same = std::memcmp(at(found), at(expected), bytes) == 0;
    if (found.dtype() == Dtype::kFloat32) {
      same |= std::isnan(found.as<float>()[i]) && std::isnan(expected.as<float>()[i]);
    }
    if (found.dtype() == Dtype::kBfloat16) {
      same |= std::isnan(bfloat16(found.as<uint16_t>()[i])) &&
              std::isnan(bfloat16(expected.as<uint16_t>()[i]));
    }
    check(same, what + " differs at " + std::to_string(i) + " of " +
                    std::to_string(found.size()));
  }
}

// Flushes subnormals, as a step does by itself and kernel and reference do not.
struct Flushing {
#if defined(__SSE2__)
  Flushing() { _mm_setcsr(before | 0x8040); }
  ~Flushing() { _mm_setcsr(before); }
  const unsigned before = _mm_getcsr();
#endif
};

// Compares sums, which are rounded: counts are exact, others to a few units.
void compare_sums(const float* found, const std::vector<double>& expected,
                  const std::string& where) {
  for (int k = 0; k < kSums; ++k) {
    const double sum = expected[static_cast<size_t>(k)];
    const auto rounded = static_cast<float>(sum);
    const bool same = std::isfinite(rounded)
                          ? std::fabs(found[k] - sum) <= 2e-6 * sum
                          : found[k] == rounded || (std::isnan(found[k]) && std::isnan(sum));
    check(same, where + "sum " + std::to_string(k) + " is " + std::to_string(found[k]) +
                    ", expected " + std::to_string(sum));
  }
}

// Makes arrays for one run, has `run` step them, and compares with the reference. `run`
// returns the sums.
template <typename Run>
void test(const Trial& trial, const std::string& name, bool fused, Run run) {
  std::vector<LeafArrays> inputs = trial.before;
  std::vector<Results> results;
  std::vector<Leaf> leaves = trial.leaves;
  for (size_t i = 0; i < leaves.size(); ++i) results.push_back(make_results(trial, i));
  for (size_t i = 0; i < leaves.size(); ++i) {
    Leaf& leaf = leaves[i];
    LeafArrays& in = inputs[i];
    Results& out = results[i];
    const auto bind = [&](Moment& moment, Array& values, Array& scales, Array& new_values,
                          Array& new_scales) {
      if (trial.in_place) {
        new_values = values;
        new_scales = scales;
      }
      moment.in = trial.in_place ? new_values.data() : values.data();
      moment.out = new_values.data();
      moment.scales_in = trial.in_place ? new_scales.as<uint8_t>() : scales.as<uint8_t>();
      moment.scales_out = new_scales.as<uint8_t>();
    };
    bind(leaf.mu, in.mu, in.mu_scales, out.mu, out.mu_scales);
    bind(leaf.nu, in.nu, in.nu_scales, out.nu, out.nu_scales);
    leaf.grad = in.grad.data();
    if (trial.in_place) out.out = in.param;
    leaf.param = trial.in_place ? out.out.data() : in.param.data();
    leaf.out = out.out.data();
  }
  // A step that is not taken leaves it to its caller to copy what is not in place.
  const bool writes = trial.manner.takes || trial.in_place;
  const std::vector<float> sums = run(leaves);
  const Flushing flushing;
  for (size_t i = 0; i < leaves.size(); ++i) {
    Results expected = make_results(trial, i);
    reference_result(trial, i, fused, expected);
    const std::string where = name + ", leaf " + std::to_string(i) + " of " +
                              std::to_string(leaves.size()) + ": ";
    if (trial.manner.sums) compare_sums(&sums[i * kSums], expected.sums, where);
    if (!writes) continue;
    compare(results[i].out, expected.out, where + "out");
    compare(results[i].mu, expected.mu, where + "mu");
    compare(results[i].nu, expected.nu, where + "nu");
    compare(results[i].mu_scales, expected.mu_scales, where + "mu_scales");
    compare(results[i].nu_scales, expected.nu_scales, where + "nu_scales");
  }
}

// Each leaf as one chunk, whatever its size; of a piece, each run.
void test_kernel(const Trial& trial, const char* name, bool fused, Kernel* kernel) {
  test(trial, name, fused, [&](const std::vector<Leaf>& leaves) {
    const Flushing flushing;
    std::vector<float> found;
    for (const Leaf& leaf : leaves) {
      Sums sums = {};
      const int64_t n = leaf.rows * leaf.columns;
      std::vector<float> buffers(static_cast<size_t>(kBuffers * n));
      const int64_t run = leaf.piece.run(n);
      for (int64_t i = 0; i < n; i += run) {
        const auto position = static_cast<uint32_t>(leaf.piece.position(i));
        kernel(leaf, trial.scalars, trial.manner, {i, run, position}, buffers.data(), n,
               sums);
      }
      for (const auto& lanes : sums.lanes) {
        found.push_back(std::accumulate(std::begin(lanes), std::end(lanes), 0.0f));
      }
    }
    return found;
  });
}

// Returns the sums.
std::vector<float> test_threads(const Trial& trial, bool fused, int threads) {
  std::vector<float> found(trial.leaves.size() * kSums);
  const std::string name = std::to_string(threads) + " threads";
  test(trial, name, fused, [&](const std::vector<Leaf>& leaves) {
    const Step step(leaves, trial.scalars, trial.manner);
    std::atomic<int64_t> next{0}, done{0};
    const auto work = [&] { done += step.run([&] { return next++; }); };
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& thread : others) thread.join();
    check(done == step.tasks(), name + ": a task was left out, or done twice");
    for (size_t i = 0; trial.manner.sums && i < leaves.size(); ++i) {
      step.read_sums(i, &found[i * kSums]);
    }
    return found;
  });
  return found;
}

// Does the work on one leaf, and returns its sums, if it takes any.
std::vector<float> run_alone(const Leaf& leaf, Work work) {
  Manner manner;
  manner.work = work;
  manner.sums = work == Work::kSum;
  const Step step({leaf}, Scalars{}, manner);
  int64_t next = 0;
  step.run([&] { return next++; });
  std::vector<float> sums(kSums);
  if (manner.sums) step.read_sums(0, sums.data());
  return sums;
}

// The sums over given arrays, of which some may be missing.
void test_sums(const Leaf& of) {
  const int64_t n = of.rows * of.columns;
  Leaf leaf;
  leaf.rows = n == 0 ? 0 : 1;
  leaf.columns = n;
  leaf.large_update = of.large_update;
  Array arrays[5];  // grad, param, update, mu, nu
  for (Array& array : arrays) {
    array = Array(n, Dtype::kFloat32);
    fill(array, &array == &arrays[4]);
  }
  const bool given[] = {chance(80), chance(80), chance(80), chance(80), true};
  leaf.grad = given[0] ? arrays[0].data() : nullptr;
  leaf.param = given[1] ? arrays[1].data() : nullptr;
  leaf.out = given[2] ? arrays[2].data() : nullptr;
  leaf.mu.in = given[3] ? arrays[3].data() : nullptr;
  leaf.nu.in = arrays[4].data();
  const std::vector<float> found = run_alone(leaf, Work::kSum);
  const Flushing flushing;
  std::vector<double> expected(kSums);
  for (int64_t i = 0; i < n; ++i) {
    const auto at = [&](int k) { return given[k] ? arrays[k].as<float>()[i] : 0; };
    const float param = given[1] ? at(1) : at(2);
    std::vector<double> before = expected;
    reference_add(at(0), param, at(2), param + at(2), of.large_update, at(3),
                  given[3] ? at(4) : 0, expected);
    if (!given[1]) expected[kParamSquare] = before[kParamSquare];
    if (!given[2]) expected[kLargeUpdate] = before[kLargeUpdate];
  }
  compare_sums(found.data(), expected, "sums alone: ");
}

// One moment of a leaf by itself: read, if it is coded, and other values stored in it.
void test_moment(const Leaf& of, bool first, Array& before, Array& scales_before) {
  const Moment& own = first ? of.mu : of.nu;
  if (own.dtype == Dtype::kFloat32) return;
  Leaf leaf = of;
  leaf.mu = leaf.nu = Moment{};
  Moment& moment = first ? leaf.mu : leaf.nu;
  moment = own;
  const int64_t n = leaf.rows * leaf.columns;
  const auto floats = [n](const std::vector<float>& from) {
    Array array(n, Dtype::kFloat32);
    std::copy(from.begin(), from.end(), array.as<float>());
    return array;
  };
  if (is_code(own.dtype)) {
    Array found(n, Dtype::kFloat32);
    moment.in = before.data();
    moment.scales_in = scales_before.as<uint8_t>();
    leaf.out = found.data();
    run_alone(leaf, Work::kLoad);
    const Flushing flushing;
    Array expected = floats(reference_load(of, own, before, scales_before));
    compare(found, expected, "a moment that is read");
  }
  std::vector<float> given(static_cast<size_t>(n));
  for (float& x : given) x = random_value(!first);
  Array values = floats(given);
  Array found(n, own.dtype), expected(n, own.dtype);
  Array scales(leaf.rows * own.blocks, Dtype::kUint8);
  Array expected_scales(leaf.rows * own.blocks, Dtype::kUint8);
  leaf.param = values.data();
  moment.in = nullptr;
  moment.out = found.data();
  moment.scales_out = scales.as<uint8_t>();
  run_alone(leaf, Work::kStore);
  const Flushing flushing;
  reference_store(of, own, given, first ? 0 : 16, expected, expected_scales);
  compare(found, expected, "a moment that is stored");
  compare(scales, expected_scales, "exponents that are stored");
}

bool has_fma() {
#if defined(ADAM_JAX_MULTIVERSION)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
  return true;
#else
  return false;
#endif
}

void run_trials(int64_t trials, uint64_t seed) {
  for (int64_t i = 0; i < trials; ++i) {
    current_seed = seed + static_cast<uint64_t>(i);
    generator.seed(current_seed);
    const Trial trial = draw_trial();
#if defined(ADAM_JAX_MULTIVERSION)
    test_kernel(trial, "portable", false, portable::step_chunk);
    if (has_fma()) test_kernel(trial, "avx2", true, avx2::step_chunk);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      test_kernel(trial, "avx512", true, avx512::step_chunk);
    }
#else
    test_kernel(trial, "portable", has_fma(), portable::step_chunk);
#endif
    const std::vector<float> alone = test_threads(trial, has_fma(), 1);
    for (const int threads : {2, 8}) {
      const std::vector<float> sums = test_threads(trial, has_fma(), threads);
      check(std::memcmp(alone.data(), sums.data(), sums.size() * sizeof(float)) == 0,
            "sums depend on the number of threads");
    }
    for (size_t j = 0; j < trial.leaves.size(); ++j) {
      LeafArrays arrays = trial.before[j];
      test_sums(trial.leaves[j]);
      test_moment(trial.leaves[j], true, arrays.mu, arrays.mu_scales);
      test_moment(trial.leaves[j], false, arrays.nu, arrays.nu_scales);
    }
  }
  std::printf("%lld trials passed.\n", static_cast<long long>(trials));
}

}  // namespace
}  // namespace adam_jax

int main(int argc, char** argv) {
  const int64_t trials = argc > 1 ? std::atoll(argv[1]) : 1000;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  adam_jax::run_trials(trials, seed);
}
