#include "step.h"

#include <algorithm>
#include <numeric>

#include "kernel.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace adam_jax {
namespace {

// Measured: narrow moments take 10% longer in chunks of 1,024, as do 8 bits in 256.
constexpr int64_t kChunk = 512;
constexpr int64_t kChunksInTask = 32;  // 60 microseconds or less

Kernel* choose_kernel() {
#if defined(ADAM_JAX_MULTIVERSION)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return avx512::step_chunk;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::step_chunk;
  }
#endif
  return portable::step_chunk;
}

// Sets the floating-point mode in which XLA computes: subnormals are zero. Returns the
// previous mode.
uint64_t flush_subnormals() {
#if defined(__SSE2__) || defined(_M_X64)
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);  // flush to zero, denormals are zero
  return mode;
#elif defined(__aarch64__) && defined(__GNUC__)
  uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  __asm__ volatile("msr fpcr, %0" : : "r"(mode | (1u << 24)));
  return mode;
#else
  return 0;
#endif
}

void restore_mode(uint64_t mode) {
#if defined(__SSE2__) || defined(_M_X64)
  _mm_setcsr(static_cast<unsigned>(mode));
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#else
  (void)mode;
#endif
}

int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// The smallest number of columns after which blocks of both moments end.
int64_t unit(const Leaf& leaf) {
  int64_t unit = 1;
  for (const Moment* moment : {&leaf.mu, &leaf.nu}) {
    if (moment->dtype != Dtype::kInt8 && moment->dtype != Dtype::kUint8) continue;
    const int64_t block = divide_up(leaf.columns, moment->blocks);
    const int64_t factor = block / std::gcd(unit, block);
    unit = unit > leaf.columns / factor ? leaf.columns : unit * factor;
  }
  return unit;
}

}  // namespace

uint32_t random_key(const uint32_t* words, size_t count) {
  uint32_t key = 0;
  for (size_t i = 0; i < count; ++i) key = mix(key + words[i]);
  return key;
}

Step::Step(std::vector<Leaf> leaves, const Scalars& scalars, Manner manner)
    : leaves_(std::move(leaves)), scalars_(scalars), manner_(manner) {
  cuts_.reserve(leaves_.size());
  for (const Leaf& leaf : leaves_) {
    const int64_t elements = leaf.rows * leaf.columns;
    Cut cut{chunks_, 0, 1, 0, 1};
    if (elements > 0) {
      if (leaf.columns <= kChunk) {  // whole rows
        cut.span = leaf.piece.run(elements);
        cut.size = std::min(cut.span, kChunk / leaf.columns * leaf.columns);
      } else {  // whole blocks of a row
        const int64_t least = unit(leaf);
        cut.span = leaf.columns;
        cut.size = std::max(least, kChunk / least * least);
      }
      cut.pieces = divide_up(cut.span, cut.size);
      cut.chunks = elements / cut.span * cut.pieces;
      chunks_ += cut.chunks;
    }
    elements_ += elements;
    largest_chunk_ = std::max(largest_chunk_, cut.size);
    cuts_.push_back(cut);
  }
  tasks_ = divide_up(chunks_, kChunksInTask);
  if (manner_.sums) {
    sums_.reset(new double[(static_cast<size_t>(tasks_) + leaves_.size()) * kSums]);
  }
}

void Step::read_sums(size_t leaf, float* sums) const {
  const Cut& cut = cuts_[leaf];
  double total[kSums] = {};
  if (cut.chunks > 0) {
    const int64_t first = cut.first_chunk / kChunksInTask;
    const int64_t end = divide_up(cut.first_chunk + cut.chunks, kChunksInTask);
    for (int64_t task = first; task < end; ++task) {
      const double* part = &sums_[(static_cast<size_t>(task) + leaf) * kSums];
      for (int k = 0; k < kSums; ++k) total[k] += part[k];
    }
  }
  for (int k = 0; k < kSums; ++k) sums[k] = static_cast<float>(total[k]);
}

Step::Worker::Worker(const Step& step)
    : step_(step),
      buffers_(new (kCacheLine) float[kBuffers * step.largest_chunk_]),
      mode_(flush_subnormals()) {}

Step::Worker::~Worker() { restore_mode(mode_); }

void Step::Worker::keep_sums(int64_t task, size_t leaf) {
  double* const kept = &step_.sums_[(static_cast<size_t>(task) + leaf) * kSums];
  for (int k = 0; k < kSums; ++k) {
    kept[k] = 0;
    for (const float lane : sums_.lanes[k]) kept[k] += lane;
  }
  sums_ = {};
}

void Step::Worker::run(int64_t task) {
  static Kernel* const kernel = choose_kernel();
  const Step& step = step_;
  const int64_t first = task * kChunksInTask;
  const int64_t last = std::min(step.chunks_, first + kChunksInTask);
  // The last leaf that starts at or before the chunk; empty leaves may start there too.
  auto cut = std::upper_bound(
      step.cuts_.begin(), step.cuts_.end(), first,
      [](int64_t chunk, const Cut& cut) { return chunk < cut.first_chunk; });
  size_t i = static_cast<size_t>(cut - step.cuts_.begin()) - 1;
  for (int64_t number = first; number < last; ++number) {
    while (i + 1 < step.cuts_.size() && step.cuts_[i + 1].first_chunk <= number) ++i;
    const Leaf& leaf = step.leaves_[i];
    const Cut& cut = step.cuts_[i];
    const int64_t local = number - cut.first_chunk;
    const int64_t offset = local % cut.pieces * cut.size;
    Chunk chunk;
    chunk.begin = local / cut.pieces * cut.span + offset;
    chunk.size = std::min(cut.size, cut.span - offset);
    chunk.position = static_cast<uint32_t>(leaf.piece.position(chunk.begin));
    kernel(leaf, step.scalars_, step.manner_, chunk, buffers_.get(), step.largest_chunk_,
           sums_);
    const bool ends = number + 1 == last || number + 1 == cut.first_chunk + cut.chunks;
    if (ends && step.manner_.sums) keep_sums(task, i);
  }
}

}  // namespace adam_jax
