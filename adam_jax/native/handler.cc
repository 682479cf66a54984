// The step as an XLA call: layout and checks of the operands.

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "call.h"
#include "export.h"
#include "step.h"
#include "xla/ffi/api/ffi.h"

namespace adam_jax {
namespace {

constexpr size_t kScalars = sizeof(Scalars) / sizeof(float);
constexpr size_t kCounts = 2;  // then, for leaves that are pieces, where these lie

struct Attributes {
  ffi::Span<const int32_t> group_sizes, places, leaf_numbers, decays;
  ffi::Span<const int32_t> mu_coded, nu_coded;
  int64_t mu_seed = 0, nu_seed = 0, param_seed = 0;
  bool nesterov = false, sums = false;
  std::string_view rounding;
};

// The part of a moment that belongs to a leaf of a group.
Moment part(Moment moment, int64_t offset) {
  const size_t bytes = static_cast<size_t>(offset) * width(moment.dtype);
  moment.in = static_cast<const char*>(moment.in) + bytes;
  moment.out = static_cast<char*>(moment.out) + bytes;
  moment.key += static_cast<uint32_t>(offset);
  return moment;
}

// Reads groups, operand by operand, and remembers the first error.
class Reader {
 public:
  Reader(ffi::RemainingArgs operands, ffi::RemainingRets results,
         const Attributes& attributes, ffi::Span<const int32_t> counts)
      : operands_(operands), results_(results), attributes_(attributes),
        counts_(counts) {}

  const std::string& error() const { return error_; }

  // Appends the leaves of the next group.
  void read(size_t group, std::vector<Leaf>& leaves) {
    const size_t first = leaves.size();
    const auto size = static_cast<size_t>(attributes_.group_sizes[group]);
    int64_t elements = 0;
    std::optional<ffi::AnyBuffer> like;  // of the first leaf
    for (size_t i = first; i < first + size; ++i) {
      number_ = attributes_.leaf_numbers[i];
      const ffi::AnyBuffer param = operand(), grad = operand();
      Leaf leaf;
      leaf.decays = attributes_.decays[group] != 0;
      leaf.grad = grad.untyped_data();
      leaf.grad_dtype = float_dtype("grad", grad);
      leaf.param = param.untyped_data();
      leaf.param_dtype = float_dtype("param", param);
      leaf.param_key =
          key({attributes_.param_seed, number_, counts_[1]});
      expect_shape("param", param, grad);
      leaf.out = result_like("the result", param);
      leaf.columns = static_cast<int64_t>(grad.element_count());
      leaf.rows = leaf.columns == 0 ? 0 : 1;
      elements += leaf.columns;
      if (!like) like = grad;
      leaves.push_back(leaf);
    }
    number_ = attributes_.leaf_numbers[first];
    alone_ = size == 1;
    elements_ = elements;
    const ffi::AnyBuffer mu_values = operand(), nu_values = operand();
    const bool mu_coded = attributes_.mu_coded[group] != 0;
    const bool nu_coded = attributes_.nu_coded[group] != 0;
    Moment mu = moment("mu", mu_values, *like, mu_coded, ffi::S8, Dtype::kInt8);
    Moment nu = moment("nu", nu_values, *like, nu_coded, ffi::U8, Dtype::kUint8);
    const int64_t place = attributes_.places[group];
    mu.key = key({attributes_.mu_seed, 0, place, counts_[0]});
    nu.key = key({attributes_.nu_seed, 0, place, counts_[0]});
    if (mu_coded) read_exponents("mu_exponents", mu_values, mu);
    if (nu_coded) read_exponents("nu_exponents", nu_values, nu);
    if (!error_.empty()) return;
    if (mu.blocks > 0 || nu.blocks > 0) {  // blocks run along the rows of one leaf
      Leaf& leaf = leaves[first];
      leaf.columns = like->dimensions().back();
      leaf.rows = elements == 0 ? 0 : elements / leaf.columns;
    }
    if (counts_.size() > kCounts && alone_ && elements > 0) {
      cut_out(counts_.begin() + kCounts + 3 * group, *like, leaves[first], mu, nu);
    }
    int64_t offset = 0;
    for (size_t i = first; i < first + size; ++i) {
      leaves[i].mu = part(mu, offset);
      leaves[i].nu = part(nu, offset);
      offset += leaves[i].rows * leaves[i].columns;
    }
  }

 private:
  static uint32_t key(std::initializer_list<int64_t> integers) {
    std::vector<uint32_t> words(integers.begin(), integers.end());
    return random_key(words.data(), words.size());
  }

  // Lets a leaf, its moments included, be a piece of another one, if it is.
  static void cut_out(const int32_t* where, const ffi::AnyBuffer& like, Leaf& leaf,
                      Moment& mu, Moment& nu) {
    const auto start = static_cast<uint32_t>(where[0]);
    const int64_t rows = static_cast<uint32_t>(where[1]);
    const int64_t columns = static_cast<uint32_t>(where[2]);
    if (columns == 0) return;  // it is whole
    const auto shape = like.dimensions();
    const size_t rank = shape.size();
    Piece& piece = leaf.piece;
    piece.row = rank < 1 ? 1 : shape[rank - 1];
    piece.plane = rank < 2 ? piece.row : shape[rank - 2] * piece.row;
    piece.whole_row = columns;
    piece.whole_plane = rows * columns;
    if (mu.blocks == 0 && nu.blocks == 0) {
      leaf.columns = piece.run(leaf.columns);
      leaf.rows = like.element_count() / leaf.columns;
    }
    for (uint32_t* key : {&leaf.param_key, &mu.key, &nu.key}) *key += start;
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
                const ffi::AnyBuffer& grad, bool coded, ffi::DataType codes,
                Dtype dtype) {
    if (alone_) {
      expect_shape(what, found, grad);
    } else if (found.dimensions().size() != 1 ||
               static_cast<int64_t>(found.element_count()) != elements_) {
      fail(what, found, text("[", elements_, "], the elements of its group"));
    }
    Moment moment;
    moment.in = found.untyped_data();
    moment.out = result_like(what, found);
    if (coded) {
      moment.dtype = dtype;
      if (found.element_type() != codes) fail(what, found, text(codes, ", its codes"));
      if (!alone_) fail(what, found, "no codes: several leaves share it");
    } else if (found.element_type() == ffi::BF16) {
      moment.dtype = Dtype::kBfloat16;
    } else if (found.element_type() != ffi::F32) {
      fail(what, found, "float32 or bfloat16");
    }
    return moment;
  }

  void read_exponents(const char* what, const ffi::AnyBuffer& values, Moment& moment) {
    const ffi::AnyBuffer exponents = operand();
    moment.scales_in = static_cast<const uint8_t*>(exponents.untyped_data());
    moment.scales_out = static_cast<uint8_t*>(result_like(what, exponents));
    if (!error_.empty()) return;
    if (const std::string fault = fault_of(exponents, values); !fault.empty()) {
      return fail(what, exponents, fault);
    }
    moment.blocks = exponents.dimensions().back();
  }

  const ffi::RemainingArgs operands_;
  const ffi::RemainingRets results_;
  const Attributes& attributes_;
  const ffi::Span<const int32_t> counts_;
  size_t operand_ = 0, result_ = 0;
  int64_t number_ = 0, elements_ = 0;
  bool alone_ = true;
  std::string error_;
};

// Copies an array unchanged. (If it is updated in place, there is nothing to do.)
void keep(const void* in, void* out, size_t bytes) {
  if (in != out) std::memcpy(out, in, bytes);
}

// Copies a parameter and its moments unchanged.
void keep(const Leaf& leaf) {
  const auto elements = static_cast<size_t>(leaf.rows * leaf.columns);
  keep(leaf.param, leaf.out, elements * width(leaf.param_dtype));
  for (const Moment* moment : {&leaf.mu, &leaf.nu}) {
    keep(moment->in, moment->out, elements * width(moment->dtype));
    const auto exponents = static_cast<size_t>(leaf.rows * moment->blocks);
    keep(moment->scales_in, moment->scales_out, exponents);
  }
}

// Reads the attributes; returns false if one is missing or invalid.
bool read(const ffi::Dictionary& given, Attributes& attributes) {
  bool complete = true;
  const auto get = [&](const char* name, auto& value) {
    const auto found = given.get<std::decay_t<decltype(value)>>(name);
    complete = complete && found.has_value();
    if (found.has_value()) value = *found;
  };
  get("group_sizes", attributes.group_sizes);
  get("places", attributes.places);
  get("leaf_numbers", attributes.leaf_numbers);
  get("decays", attributes.decays);
  get("mu_coded", attributes.mu_coded);
  get("nu_coded", attributes.nu_coded);
  get("mu_seed", attributes.mu_seed);
  get("nu_seed", attributes.nu_seed);
  get("param_seed", attributes.param_seed);
  get("nesterov", attributes.nesterov);
  get("sums", attributes.sums);
  get("rounding", attributes.rounding);
  return complete && (attributes.rounding == "nearest" ||
                      attributes.rounding == "stochastic");
}

bool is_predicate(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::PRED && buffer.dimensions().size() == 0;
}

bool is_float(const ffi::AnyBuffer& buffer, std::initializer_list<int64_t> shape) {
  const auto found = buffer.dimensions();
  return buffer.element_type() == ffi::F32 &&
         std::equal(found.begin(), found.end(), shape.begin(), shape.end());
}

// What a call asks for.
struct Request {
  std::vector<Leaf> leaves;
  Scalars scalars;
  Manner manner;
  std::vector<float*> sums;  // where those of each leaf go, if they are wanted
};

// Reads the operands and results that follow all others, if a call may have sums.
ffi::Error read_sums(ffi::RemainingArgs operands, ffi::RemainingRets results,
                     Request& request) {
  const size_t number = request.leaves.size();
  const ffi::AnyBuffer wanted = *operands.get<ffi::AnyBuffer>(operands.size() - 2);
  const ffi::AnyBuffer large = *operands.get<ffi::AnyBuffer>(operands.size() - 1);
  if (!is_predicate(wanted) || !is_float(large, {static_cast<int64_t>(number)})) {
    return invalid(text("to sum, a call takes ", describe(wanted), " and ",
                        describe(large), ", expected ", ffi::PRED, "[] and ", ffi::F32, "[",
                        number, "]."));
  }
  request.manner.sums = *wanted.typed_data<bool>();
  for (size_t i = 0; i < number; ++i) {
    request.leaves[i].large_update = large.typed_data<float>()[i];
    const ffi::AnyBuffer sums = **results.get<ffi::AnyBuffer>(results.size() - number + i);
    if (!is_float(sums, {kSums})) {
      return invalid(text("the sums of a leaf are ", describe(sums), ", expected ",
                          ffi::F32, "[", static_cast<int>(kSums), "]."));
    }
    if (request.manner.sums) {
      request.sums.push_back(sums.typed_data<float>());
    } else {
      std::memset(sums.untyped_data(), 0, sums.size_bytes());
    }
  }
  return ffi::Error::Success();
}

// Reads and checks everything that a call is given.
ffi::Error read(ffi::AnyBuffer scalars, ffi::AnyBuffer counts,
                ffi::RemainingArgs operands, ffi::RemainingRets results,
                const ffi::Dictionary& given, Request& request) {
  Attributes attributes;
  if (!read(given, attributes)) {
    return invalid(text("rounding is '", attributes.rounding,
                        "', expected 'nearest' or 'stochastic', or an attribute is "
                        "missing."));
  }
  if (!is_float(scalars, {kScalars})) {
    return invalid(text("the scalars are ", describe(scalars), ", expected ", ffi::F32,
                        "[", kScalars, "]."));
  }
  const size_t number = attributes.leaf_numbers.size();
  const size_t groups = attributes.group_sizes.size();
  const size_t given_counts = counts.element_count();
  if (counts.element_type() != ffi::S32 || counts.dimensions().size() != 1 ||
      (given_counts != kCounts && given_counts != kCounts + 3 * groups)) {
    return invalid(text("the counts are ", describe(counts), ", expected ", ffi::S32,
                        "[2], or three more for each of ", groups, " groups."));
  }
  for (const auto& of_groups : {attributes.decays, attributes.places,
                                attributes.mu_coded, attributes.nu_coded}) {
    if (of_groups.size() != groups) {
      return invalid(text("an attribute of groups has ", of_groups.size(),
                          " entries, expected ", groups, ", the number of groups."));
    }
  }
  int64_t in_groups = 0;
  for (const int32_t size : attributes.group_sizes) {
    in_groups += size < 1 ? number + 1 : size;
  }
  if (in_groups != static_cast<int64_t>(number)) {
    return invalid(text("group_sizes are not those of ", number, " leaves."));
  }
  size_t stored = 2 * groups;
  for (size_t i = 0; i < groups; ++i) {
    stored += (attributes.mu_coded[i] != 0) + (attributes.nu_coded[i] != 0);
  }
  const size_t takes = 2 * number + stored + (attributes.sums ? 2 : 0);
  const size_t returns = number + stored + (attributes.sums ? number : 0);
  if (operands.size() != takes || results.size() != returns) {
    return invalid(text(operands.size(), " operands and ", results.size(),
                        " results, expected ", takes, " and ", returns, " for ", number,
                        " leaves in ", groups, " groups."));
  }
  Reader reader(operands, results, attributes,
                {counts.typed_data<int32_t>(), given_counts});
  request.leaves.reserve(number);
  for (size_t i = 0; i < groups; ++i) {
    reader.read(i, request.leaves);
    if (!reader.error().empty()) return invalid(reader.error());
  }
  std::memcpy(&request.scalars, scalars.untyped_data(), sizeof request.scalars);
  request.manner.rounding = attributes.rounding == "nearest" ? Rounding::kNearest
                                                             : Rounding::kStochastic;
  request.manner.nesterov = attributes.nesterov;
  return attributes.sums ? read_sums(operands, results, request)
                         : ffi::Error::Success();
}

ffi::Error adam_step(ffi::ThreadPool pool, ffi::AnyBuffer scalars, ffi::AnyBuffer counts,
                     ffi::AnyBuffer take, ffi::RemainingArgs operands,
                     ffi::RemainingRets results, ffi::Dictionary attributes) {
  if (!is_predicate(take)) {
    return invalid(text("take is ", describe(take), ", expected ", ffi::PRED, "[]."));
  }
  Request request;
  if (auto error = read(scalars, counts, operands, results, attributes, request);
      error.failure()) {
    return error;
  }
  request.manner.takes = *take.typed_data<bool>();
  if (!request.manner.takes) {
    for (const Leaf& leaf : request.leaves) keep(leaf);
  }
  if (request.manner.takes || request.manner.sums) {
    run(Step(std::move(request.leaves), request.scalars, request.manner), pool,
        request.sums);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace adam_jax

extern "C" {
ADAM_JAX_EXPORT XLA_FFI_Error* AdamJaxStep(XLA_FFI_CallFrame* call_frame);

// XLA accepts handlers that were built for its own version or an older one.
ADAM_JAX_EXPORT int AdamJaxFfiMinorVersion() { return XLA_FFI_API_MINOR; }
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdamJaxStep, adam_jax::adam_step,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs());
