// One leaf as an XLA call: a moment is read from how it is stored, or stored, or sums are
// taken for figures.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "call.h"
#include "export.h"
#include "kernel.h"
#include "step.h"
#include "xla/ffi/api/ffi.h"

namespace adam_jax {
namespace {

// A leaf of the shape of a moment, whose blocks, if it has any, run along its rows.
Leaf shaped_like(const ffi::AnyBuffer& moment, int64_t blocks) {
  Leaf leaf;
  const auto elements = static_cast<int64_t>(moment.element_count());
  leaf.columns = blocks > 0 ? moment.dimensions().back() : elements;
  leaf.rows = elements == 0 ? 0 : elements / leaf.columns;
  return leaf;
}

ffi::Error take(Work work, Leaf leaf, ffi::ThreadPool& pool,
                const std::vector<float*>& sums = {}) {
  Manner manner;
  manner.work = work;
  manner.sums = !sums.empty();
  run(Step({std::move(leaf)}, Scalars{}, manner), pool, sums);
  return ffi::Error::Success();
}

bool is_code(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::S8 || buffer.element_type() == ffi::U8;
}

// Codes of first moments are signed.
Moment coded(const ffi::AnyBuffer& codes, int64_t blocks) {
  Moment moment;
  moment.dtype = codes.element_type() == ffi::S8 ? Dtype::kInt8 : Dtype::kUint8;
  moment.blocks = blocks;
  return moment;
}

ffi::Error load_moment(ffi::ThreadPool pool, ffi::AnyBuffer codes,
                       ffi::AnyBuffer exponents, ffi::Result<ffi::AnyBuffer> values) {
  if (!is_code(codes)) {
    return invalid(text("codes are ", describe(codes), ", expected int8 or uint8."));
  }
  if (const std::string fault = fault_of(exponents, codes); !fault.empty()) {
    return invalid(text("exponents are ", describe(exponents), ", expected ", fault, "."));
  }
  if (values->element_type() != ffi::F32 || !same_shape(*values, codes)) {
    return invalid(text("the values of ", describe(codes), " are ", describe(*values),
                        ", expected float32 of the same shape."));
  }
  Moment moment = coded(codes, exponents.dimensions().back());
  moment.in = codes.untyped_data();
  moment.scales_in = exponents.typed_data<uint8_t>();
  Leaf leaf = shaped_like(codes, moment.blocks);
  leaf.out = values->untyped_data();
  (moment.dtype == Dtype::kInt8 ? leaf.mu : leaf.nu) = moment;
  return take(Work::kLoad, leaf, pool);
}

ffi::Error store_moment(ffi::ThreadPool pool, ffi::AnyBuffer values,
                        ffi::Buffer<ffi::U32> known, ffi::BufferR0<ffi::U32> past,
                        ffi::RemainingRets results, int64_t order) {
  const size_t number = results.size();
  if (number < 1 || number > 2 || known.element_count() < 1) {
    return invalid(text("a moment is stored in ", number, " arrays with ",
                        known.element_count(), " known words, expected 1 or 2 with one."));
  }
  const ffi::AnyBuffer stored = **results.get<ffi::AnyBuffer>(0);
  const ffi::DataType expected = number == 1  ? ffi::BF16
                                 : order == 1 ? ffi::S8
                                              : ffi::U8;
  if (values.element_type() != ffi::F32 || stored.element_type() != expected ||
      !same_shape(stored, values)) {
    return invalid(text(describe(values), " is stored as ", describe(stored),
                        ", expected ", ffi::F32, " as ", expected,
                        " of the same shape."));
  }
  Moment moment;
  if (number == 2) {
    const ffi::AnyBuffer exponents = **results.get<ffi::AnyBuffer>(1);
    if (const std::string fault = fault_of(exponents, stored); !fault.empty()) {
      return invalid(
          text("exponents are ", describe(exponents), ", expected ", fault, "."));
    }
    moment = coded(stored, exponents.dimensions().back());
    moment.scales_out = exponents.typed_data<uint8_t>();
  } else {
    moment.dtype = Dtype::kBfloat16;
  }
  moment.out = stored.untyped_data();
  // What randomness.hash_known returns contains the increment.
  moment.key = mix(known.typed_data()[0] - kIncrement + *past.typed_data());
  Leaf leaf = shaped_like(values, moment.blocks);
  leaf.param = values.untyped_data();
  (order == 1 ? leaf.mu : leaf.nu) = moment;
  return take(Work::kStore, leaf, pool);
}

// Parts that are not given have no elements. The result is those of the sums that `order`
// names, each times its factor; what is to be 0 is so for NaN as well.
ffi::Error sum_leaf(ffi::ThreadPool pool, ffi::AnyBuffer grad, ffi::AnyBuffer param,
                    ffi::AnyBuffer update, ffi::AnyBuffer mu, ffi::AnyBuffer nu,
                    ffi::BufferR0<ffi::F32> large, ffi::BufferR1<ffi::F32> factors,
                    ffi::Result<ffi::AnyBuffer> sums, ffi::Span<const int32_t> order) {
  Leaf leaf;
  for (const ffi::AnyBuffer& x : {grad, param, update, mu, nu}) {
    leaf.columns = std::max(leaf.columns, static_cast<int64_t>(x.element_count()));
  }
  leaf.rows = leaf.columns == 0 ? 0 : 1;
  std::string fault;
  const auto part = [&](const ffi::AnyBuffer& x) -> float* {
    const auto elements = static_cast<int64_t>(x.element_count());
    if (x.element_type() != ffi::F32 || (elements != 0 && elements != leaf.columns)) {
      fault = text("a part is ", describe(x), ", expected ", ffi::F32, " of ",
                   leaf.columns, " elements.");
    }
    return elements == 0 ? nullptr : static_cast<float*>(x.untyped_data());
  };
  leaf.grad = part(grad);
  leaf.param = part(param);
  leaf.out = part(update);
  leaf.mu.in = part(mu);
  leaf.nu.in = part(nu);
  leaf.large_update = *large.typed_data();
  if (!fault.empty()) return invalid(fault);
  const size_t number = order.size();
  if (sums->element_type() != ffi::F32 || sums->element_count() != number ||
      factors.element_count() != number) {
    return invalid(text("the sums are ", describe(*sums), " with ",
                        factors.element_count(), " factors, expected ", ffi::F32, "[",
                        number, "] with ", number, "."));
  }
  for (const int32_t sum : order) {
    if (sum < 0 || sum >= kSums) return invalid(text("there is no sum ", sum, "."));
  }
  float found[kSums];
  if (auto error = take(Work::kSum, leaf, pool, {found}); error.failure()) return error;
  for (size_t i = 0; i < number; ++i) {
    const float factor = factors.typed_data()[i];
    sums->typed_data<float>()[i] = factor == 0 ? 0 : found[order[i]] * factor;
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace adam_jax

extern "C" {
ADAM_JAX_EXPORT XLA_FFI_Error* AdamJaxSumLeaf(XLA_FFI_CallFrame* call_frame);
ADAM_JAX_EXPORT XLA_FFI_Error* AdamJaxLoadMoment(XLA_FFI_CallFrame* call_frame);
ADAM_JAX_EXPORT XLA_FFI_Error* AdamJaxStoreMoment(XLA_FFI_CallFrame* call_frame);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdamJaxLoadMoment, adam_jax::load_moment,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdamJaxStoreMoment, adam_jax::store_moment,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::U32>>()
                                  .Arg<xla::ffi::BufferR0<xla::ffi::U32>>()
                                  .RemainingRets()
                                  .Attr<int64_t>("order"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(AdamJaxSumLeaf, adam_jax::sum_leaf,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::BufferR0<xla::ffi::F32>>()
                                  .Arg<xla::ffi::BufferR1<xla::ffi::F32>>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int32_t>>("order"));
