// The step as an XLA call: the operands' layout, their checks, XLA's threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "export.h"
#include "step.h"
#include "xla/ffi/api/ffi.h"

namespace adam_jax {
namespace {

namespace ffi = xla::ffi;

// Below this many elements, to wake another thread takes longer than the work.
constexpr int64_t kInline = 1 << 15;

// Threads hold buffers of this many elements at most, a few times over.
constexpr int64_t kLargestBlock = 1 << 24;

constexpr size_t kScalars = sizeof(Scalars) / sizeof(float);

// What the threads of one call share. One may come to it when the call is over.
struct Shared {
  explicit Shared(Step step) : step(std::move(step)) {}

  void work() {
    if (next >= step.tasks()) return;
    const int64_t done_here = step.run([this] { return next.fetch_add(1); });
    const std::lock_guard<std::mutex> lock(mutex);
    done += done_here;
    if (done == step.tasks()) finished.notify_one();
  }

  const Step step;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  int64_t done = 0;
};

void run(Step step, ffi::ThreadPool& pool) {
  const auto shared = std::make_shared<Shared>(std::move(step));
  if (shared->step.elements() > kInline) {
    const int64_t threads = std::min(pool.num_threads(), shared->step.tasks());
    for (int64_t i = 1; i < threads; ++i) pool.Schedule([shared] { shared->work(); });
  }
  shared->work();
  // What is left has been taken by threads that run: this never waits for the pool.
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->finished.wait(lock, [&] { return shared->done == shared->step.tasks(); });
}

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

std::string describe(const ffi::AnyBuffer& buffer) {
  std::string sizes;
  for (const int64_t size : buffer.dimensions()) {
    sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
  }
  return text(buffer.element_type(), "[", sizes, "]");
}

bool same_shape(const ffi::AnyBuffer& x, const ffi::AnyBuffer& y) {
  return x.dimensions() == y.dimensions();
}

struct Attributes {
  ffi::Span<const int32_t> leaf_numbers, decays;
  bool has_params, mu_scaled, nu_scaled;
  uint32_t mu_seed, nu_seed, param_seed;
  Output output;
};

// Reads leaves, operand by operand, and remembers the first thing that is wrong.
class Reader {
 public:
  Reader(ffi::RemainingArgs operands, ffi::RemainingRets results,
         const Attributes& attributes, uint32_t count)
      : operands_(operands), results_(results), attributes_(attributes),
        count_(count) {}

  const std::string& error() const { return error_; }

  Leaf read(size_t i) {
    const uint32_t number = static_cast<uint32_t>(attributes_.leaf_numbers[i]);
    number_ = attributes_.leaf_numbers[i];
    Leaf leaf;
    leaf.decays = attributes_.decays[i] != 0;
    std::optional<ffi::AnyBuffer> param;
    if (attributes_.has_params) param = operand();
    const ffi::AnyBuffer grad = operand(), mu = operand(), nu = operand();
    leaf.grad = grad.untyped_data();
    leaf.grad_dtype = float_dtype("grad", grad);
    if (param) {
      leaf.param = param->untyped_data();
      leaf.param_dtype = float_dtype("param", *param);
      leaf.param_key = key({attributes_.param_seed, count_, number});
      expect_shape("param", *param, grad);
    }
    const ffi::AnyBuffer& like = param ? *param : grad;
    leaf.out_dtype = param ? leaf.param_dtype : leaf.grad_dtype;
    leaf.out = result_like("the result", like);
    leaf.mu = moment("mu", mu, grad, ffi::S8, Dtype::kInt8);
    leaf.nu = moment("nu", nu, grad, ffi::U8, Dtype::kUint8);
    leaf.mu.key = key({attributes_.mu_seed, count_, 1, number});
    leaf.nu.key = key({attributes_.nu_seed, count_, 0, number});
    if (attributes_.mu_scaled) read_scales("mu_scales", mu, leaf.mu);
    if (attributes_.nu_scaled) read_scales("nu_scales", nu, leaf.nu);
    const int64_t size = static_cast<int64_t>(grad.element_count());
    const bool coded = leaf.mu.blocks > 0 || leaf.nu.blocks > 0;
    leaf.columns = coded ? grad.dimensions().back() : size;
    leaf.rows = size == 0 ? 0 : size / leaf.columns;
    return leaf;
  }

 private:
  static uint32_t key(std::initializer_list<uint32_t> words) {
    return random_key(words.begin(), words.size());
  }

  // Their number has been checked.
  ffi::AnyBuffer operand() { return *operands_.get<ffi::AnyBuffer>(operand_++); }

  void* result_like(const char* what, const ffi::AnyBuffer& like) {
    const ffi::AnyBuffer result = **results_.get<ffi::AnyBuffer>(result_++);
    if (result.element_type() != like.element_type() || !same_shape(result, like)) {
      fail(what, result, describe(like));
    }
    return result.untyped_data();
  }

  void fail(const char* what, const ffi::AnyBuffer& found, const std::string& expected) {
    if (!error_.empty()) return;
    error_ = text("leaf ", number_, ": ", what, " is ", describe(found), ", expected ",
                  expected, ".");
  }

  void expect_shape(const char* what, const ffi::AnyBuffer& found,
                    const ffi::AnyBuffer& grad) {
    if (same_shape(found, grad)) return;
    fail(what, found, "the shape of grad, " + describe(grad));
  }

  Dtype float_dtype(const char* what, const ffi::AnyBuffer& found) {
    if (found.element_type() == ffi::BF16) return Dtype::kBfloat16;
    if (found.element_type() != ffi::F32) fail(what, found, "float32 or bfloat16");
    return Dtype::kFloat32;
  }

  Moment moment(const char* what, const ffi::AnyBuffer& found,
                const ffi::AnyBuffer& grad, ffi::DataType codes, Dtype coded) {
    expect_shape(what, found, grad);
    Moment moment;
    moment.in = found.untyped_data();
    moment.out = result_like(what, found);
    const bool scaled =
        codes == ffi::S8 ? attributes_.mu_scaled : attributes_.nu_scaled;
    if (found.element_type() == ffi::BF16) {
      moment.dtype = Dtype::kBfloat16;
    } else if (found.element_type() == codes && scaled) {
      moment.dtype = coded;
    } else if (found.element_type() != ffi::F32) {
      fail(what, found, text("float32, bfloat16 or, with scales, ", codes));
    }
    return moment;
  }

  void read_scales(const char* what, const ffi::AnyBuffer& values, Moment& moment) {
    const ffi::AnyBuffer scales = operand();
    moment.scales_in = static_cast<const uint8_t*>(scales.untyped_data());
    moment.scales_out = static_cast<uint8_t*>(result_like(what, scales));
    if (scales.element_type() != ffi::U8) fail(what, scales, "uint8");
    if (!error_.empty()) return;
    const auto shape = values.dimensions(), of_scales = scales.dimensions();
    const size_t rank = shape.size();
    if (moment.dtype == Dtype::kFloat32 || moment.dtype == Dtype::kBfloat16) {
      if (rank == 0 && of_scales.size() == 0) {
        *moment.scales_out = *moment.scales_in;  // a scalar's mean nothing, but are there
      } else if (scales.element_count() != 0) {
        fail(what, scales, "no elements beside " + describe(values));
      }
      return;
    }
    if (rank == 0 || of_scales.size() != rank || of_scales.back() < 1 ||
        !std::equal(shape.begin(), shape.end() - 1, of_scales.begin())) {
      return fail(what, scales,
                  text("the shape of ", describe(values),
                       ", but the number of blocks as its last size"));
    }
    if (shape.back() / of_scales.back() >= kLargestBlock) {
      return fail(what, scales, text("blocks of less than ", kLargestBlock, " in ",
                                     describe(values)));
    }
    moment.blocks = of_scales.back();
  }

  const ffi::RemainingArgs operands_;
  const ffi::RemainingRets results_;
  const Attributes& attributes_;
  const uint32_t count_;
  size_t operand_ = 0, result_ = 0;
  int64_t number_ = 0;
  std::string error_;
};

ffi::Error invalid(const std::string& message) {
  return ffi::Error::InvalidArgument("adam_jax: " + message);
}

ffi::Error adam_step(ffi::ThreadPool pool, ffi::AnyBuffer scalars, ffi::AnyBuffer count,
                     ffi::RemainingArgs operands, ffi::RemainingRets results,
                     ffi::Span<const int32_t> leaf_numbers,
                     ffi::Span<const int32_t> decays, bool has_params, bool mu_scaled,
                     bool nu_scaled, int64_t mu_seed, int64_t nu_seed,
                     int64_t param_seed, bool nesterov, std::string_view output) {
  Attributes attributes{leaf_numbers,
                        decays,
                        has_params,
                        mu_scaled,
                        nu_scaled,
                        static_cast<uint32_t>(mu_seed),
                        static_cast<uint32_t>(nu_seed),
                        static_cast<uint32_t>(param_seed),
                        Output::kUpdate};
  if (output == "nearest") {
    attributes.output = Output::kNearest;
  } else if (output == "stochastic") {
    attributes.output = Output::kStochastic;
  } else if (output != "update") {
    return invalid(text("output is '", output,
                        "', expected 'update', 'nearest' or 'stochastic'."));
  }
  if (scalars.element_type() != ffi::F32 || scalars.dimensions().size() != 1 ||
      scalars.element_count() != kScalars) {
    return invalid(text("the scalars are ", describe(scalars), ", expected ", ffi::F32,
                        "[", kScalars, "]."));
  }
  if (count.element_type() != ffi::S32 || count.dimensions().size() != 0) {
    return invalid(text("count is ", describe(count), ", expected ", ffi::S32, "[]."));
  }
  const size_t leaves = leaf_numbers.size();
  if (decays.size() != leaves) {
    return invalid(text("decays has ", decays.size(), " entries, expected ", leaves,
                        ", the number of leaves."));
  }
  const bool needs_params =
      attributes.output != Output::kUpdate ||
      std::any_of(decays.begin(), decays.end(), [](int32_t decay) { return decay; });
  if (needs_params && !has_params) {
    return invalid("there are no params, expected them for decay and for new params.");
  }
  const size_t results_each = 3 + mu_scaled + nu_scaled;
  const size_t operands_each = results_each + has_params;
  if (operands.size() != leaves * operands_each ||
      results.size() != leaves * results_each) {
    return invalid(text(operands.size(), " operands and ", results.size(),
                        " results, expected ", operands_each, " and ", results_each,
                        " for each of ", leaves, " leaves."));
  }
  Scalars values;
  std::memcpy(&values, scalars.untyped_data(), sizeof values);
  const auto past = static_cast<uint32_t>(*count.typed_data<int32_t>());
  Reader reader(operands, results, attributes, past);
  std::vector<Leaf> work;
  work.reserve(leaves);
  for (size_t i = 0; i < leaves; ++i) {
    work.push_back(reader.read(i));
    if (!reader.error().empty()) return invalid(reader.error());
  }
  run(Step(std::move(work), values, attributes.output, nesterov), pool);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace adam_jax

extern "C" {
ADAM_JAX_EXPORT XLA_FFI_Error* AdamJaxStep(XLA_FFI_CallFrame* call_frame);

// XLA takes handlers that were built for its own version or an older one.
ADAM_JAX_EXPORT int AdamJaxFfiMinorVersion() { return XLA_FFI_API_MINOR; }
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdamJaxStep, adam_jax::adam_step,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<xla::ffi::Span<const int32_t>>("leaf_numbers")
                                  .Attr<xla::ffi::Span<const int32_t>>("decays")
                                  .Attr<bool>("has_params")
                                  .Attr<bool>("mu_scaled")
                                  .Attr<bool>("nu_scaled")
                                  .Attr<int64_t>("mu_seed")
                                  .Attr<int64_t>("nu_seed")
                                  .Attr<int64_t>("param_seed")
                                  .Attr<bool>("nesterov")
                                  .Attr<std::string_view>("output"));
