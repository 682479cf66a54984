// What the XLA calls share: XLA's threads, and messages about operands.

#ifndef ADAM_JAX_NATIVE_CALL_H_
#define ADAM_JAX_NATIVE_CALL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "step.h"
#include "xla/ffi/api/ffi.h"

namespace adam_jax {

namespace ffi = xla::ffi;

// Below this many elements, waking another thread takes longer than the work itself.
constexpr int64_t kInline = 1 << 16;

// Each of a thread's few buffers holds at most this many elements.
constexpr int64_t kLargestBlock = 1 << 24;

// The state that the threads of one call share. A thread may start after the call ends.
struct Shared {
  explicit Shared(Step step) : step(std::move(step)) {}

  void work() {
    if (next >= step.tasks()) return;
    const int64_t own = step.run([this] { return next.fetch_add(1); });
    const std::lock_guard<std::mutex> lock(mutex);
    done += own;
    if (done == step.tasks()) finished.notify_one();
  }

  const Step step;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  int64_t done = 0;
};

// Takes the step, and writes its sums, if it has any.
inline void run(Step step, ffi::ThreadPool& pool, const std::vector<float*>& sums) {
  const auto shared = std::make_shared<Shared>(std::move(step));
  if (shared->step.elements() > kInline) {
    const int64_t threads = std::min(pool.num_threads(), shared->step.tasks());
    for (int64_t i = 1; i < threads; ++i) pool.Schedule([shared] { shared->work(); });
  }
  shared->work();
  // Running threads have taken all remaining tasks: this never waits for the pool.
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == shared->step.tasks(); });
  for (size_t i = 0; i < sums.size(); ++i) shared->step.read_sums(i, sums[i]);
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

inline std::string describe(const ffi::AnyBuffer& buffer) {
  std::string sizes;
  for (const int64_t size : buffer.dimensions()) {
    sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
  }
  return text(buffer.element_type(), "[", sizes, "]");
}

inline bool same_shape(const ffi::AnyBuffer& x, const ffi::AnyBuffer& y) {
  return x.dimensions() == y.dimensions();
}

// Returns what the exponents of codes should be, or nothing if they are that.
inline std::string fault_of(const ffi::AnyBuffer& exponents, const ffi::AnyBuffer& codes) {
  if (exponents.element_type() != ffi::U8) return "uint8";
  const auto shape = codes.dimensions(), of_exponents = exponents.dimensions();
  const size_t rank = shape.size();
  if (rank == 0 || of_exponents.size() != rank || of_exponents.back() < 1 ||
      !std::equal(shape.begin(), shape.end() - 1, of_exponents.begin())) {
    return text("the shape of ", describe(codes),
                ", but the number of blocks as its last size");
  }
  if (shape.back() / of_exponents.back() >= kLargestBlock) {
    return text("blocks of less than ", kLargestBlock, " in ", describe(codes));
  }
  return "";
}

inline size_t width(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : dtype == Dtype::kBfloat16 ? 2 : 1;
}

inline ffi::Error invalid(const std::string& message) {
  return ffi::Error::InvalidArgument("adam_jax: " + message);
}

}  // namespace adam_jax

#endif  // ADAM_JAX_NATIVE_CALL_H_
