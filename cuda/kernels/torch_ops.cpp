// cuda/kernels/torch_ops.cpp: the C API (kvcal_cuda.h) as PyTorch operators, torch.ops.kvcal.*, for serving engines that live
// there. torch.ops.load_library("libkvcal_torch.so") registers them; tensors on the CPU are served lane by lane, slowly, those
// on a GPU on its current stream, where the library was built with KVCAL_CUDA.
//
//   open_codebook(flat, device) -> int           flat: uint8 [bytes] on the CPU, what `kvcal export --format flat` writes
//   close_codebook(codebook)                     handles are never used again
//   codebook_info(codebook) -> int[3]            layers, bits, sinks
//   layer_info(codebook, layer) -> int[5]        index in the model, kv_heads, key_dim, value_dim, window (0: none)
//   record_layout(codebook, layer, page_tokens, key_slots=None, value_slots=None) -> int[14]
//       KvcalRecordLayout in its order: version, key_bits, value_bits, key_dim, value_dim, page_tokens, key_slots, value_slots,
//       value_rotation_block, value_codes, value_affines, key_outliers, value_outliers, record_bytes. None: slots that hold nearly
//       all outliers.
//   append(...), dequantise(...) -> (keys, values), dequantise_into(...)
//
// Those above are called once, outside of what is compiled; these three go through torch.compile without a graph break,
// with dynamic shapes, and into CUDA graphs:
//
//   layout       of record_layout()
//   records      uint8 [pages, kv_heads, record_bytes], any contents; on the CPU aligned to 16 bytes, on a GPU to 128
//   key_sinks    float16 [sink_slots, kv_heads, sinks, key_dim]; empty without sinks; value_sinks the same with value_dim
//   counters     int64 [7], set to 0 by the engine: KvcalCounters in its order: key_outliers, value_outliers, dropped_keys,
//                dropped_values, not_finite, saturated, refused
//   keys, values float16, bfloat16 or float32; any strides that are multiples of 8 numbers, channels next to each other,
//                aligned to 16 bytes. New ones are [rows, kv_heads, dim], keys before RoPE; dequantise() gives
//                [sequences, page_count * page_tokens, kv_heads, dim], 0 beyond lengths; dequantise_into() writes
//                [target_pages, page_tokens, kv_heads, dim], the engine's own pages, of which it leaves alone what no sequence
//                begins
//   pages        int32 [sequences, max_pages]; starts int32 [sequences + 1]: sequence i brings rows starts[i] to starts[i + 1];
//                lengths int32 [sequences]: tokens, before an append; targets int32 [sequences, page_count]
//   sink_slots   int32 [sequences]; None: sequence i has slot i
//
// A wrong argument is a ValueError that names it, before anything is done. A page, a row or a length out of range is left
// out and counted in counters[6]; on the CPU it is a ValueError, too, after the rest was done. The operators have no
// gradient: an argument that requires one is a RuntimeError, unless gradients are off (torch.no_grad()).
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cuda/kernels/torch_arguments.h"

namespace kvcal::codec {
namespace {

using at::Tensor;

// ---- The operators.

std::int64_t open_codebook(const Tensor& flat, c10::Device device) {
  check_block(flat, "flat", c10::Device(c10::kCPU), at::kByte, {kAny}, "[bytes]");
  TORCH_CHECK_VALUE(device.is_cpu() || device.is_cuda(), "kvcal: device is ", device,
                    "; expected cpu or cuda");
  if (device.is_cuda()) {
    check_status(kvcal_device_status(KVCAL_DEVICE_CUDA));
    if (!device.has_index()) device = c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice();
    current_stream(device);  // throws where there is none
    const c10::DeviceGuard guard(device);
    check_status(kvcal_device_status(KVCAL_DEVICE_CUDA));  // of this one
  } else {
    device = c10::Device(c10::kCPU);  // cpu:0 is no other
  }
  return add_codebook(std::make_shared<const Codebook>(flat, device));
}

void close_codebook(std::int64_t codebook) {
  const auto last = take_codebook(codebook);
}

std::vector<std::int64_t> codebook_info(std::int64_t codebook) {
  const KvcalCodebookInfo info = find_codebook(codebook)->info();
  return {info.layers, info.bits, info.sinks};
}

std::vector<std::int64_t> layer_info(std::int64_t codebook, std::int64_t layer) {
  const KvcalLayerInfo info = find_codebook(codebook)->layer(layer);
  return {info.index, info.kv_heads, info.key_dim, info.value_dim, info.window};
}

std::vector<std::int64_t> record_layout(std::int64_t codebook, std::int64_t layer, std::int64_t page_tokens,
                                        std::optional<std::int64_t> key_slots,
                                        std::optional<std::int64_t> value_slots) {
  const auto opened = find_codebook(codebook);
  const auto slots = [](std::optional<std::int64_t> given, const char* name) {
    return given ? checked_u32(*given, name) : KVCAL_DEFAULT_SLOTS;
  };
  KvcalRecordLayout layout;
  check_status(kvcal_record_layout(opened->opened(), checked_u32(layer, "layer"),
                                   checked_u32(page_tokens, "page_tokens"), slots(key_slots, "key_slots"),
                                   slots(value_slots, "value_slots"), &layout));
  std::array<std::uint32_t, kLayoutNumbers> words{};
  std::memcpy(words.data(), &layout, sizeof(layout));
  return {words.begin(), words.end()};
}

// The order of the arguments is the schema's; what is written comes first.
void append(std::int64_t codebook, std::int64_t layer, at::IntArrayRef layout, const Tensor& records,
            const Tensor& key_sinks, const Tensor& value_sinks, const Tensor& counters, const Tensor& keys,
            const Tensor& values, const Tensor& pages, const Tensor& starts, const Tensor& lengths,
            std::int64_t max_new_tokens, const std::optional<Tensor>& sink_slots) {
  const Call call = checked_call(
      {codebook, layer, layout, records, key_sinks, value_sinks, counters, pages, lengths, sink_slots});
  check_block(starts, "starts", call.device, at::kInt, {pages.size(0) + 1}, "[sequences + 1]");
  KvcalNewTokens tokens{};
  tokens.keys = rows_of(keys, "keys", call.device, kAny, call.info.kv_heads, call.info.key_dim);
  tokens.rows = keys.size(0);
  tokens.values =
      rows_of(values, "values", call.device, tokens.rows, call.info.kv_heads, call.info.value_dim);
  tokens.starts = starts.const_data_ptr<std::int32_t>();
  tokens.lengths = call.lengths;
  tokens.max_new_tokens = checked_u32(max_new_tokens, "max_new_tokens");
  const c10::DeviceGuard guard(call.device);
  check_status(kvcal_append(call.codebook->opened(), call.layer, &call.cache, &call.table, &tokens,
                            current_stream(call.device)));
}

void run_dequantise(const Call& call, const KvcalRange& range, const KvcalPages& keys,
                    const KvcalPages& values) {
  // An empty tensor has no address, which the C API takes for a mistake.
  if (call.table.sequences == 0 || range.pages == 0) return;
  const c10::DeviceGuard guard(call.device);
  check_status(kvcal_dequantise(call.codebook->opened(), call.layer, &call.cache, &call.table, &range, &keys,
                                &values, current_stream(call.device)));
}

std::tuple<Tensor, Tensor> dequantise(std::int64_t codebook, std::int64_t layer, at::IntArrayRef layout,
                                      const Tensor& records, const Tensor& key_sinks,
                                      const Tensor& value_sinks, const Tensor& counters, const Tensor& pages,
                                      const Tensor& lengths, std::int64_t first_page, std::int64_t page_count,
                                      at::ScalarType dtype, const std::optional<Tensor>& sink_slots) {
  const Call call = checked_call(
      {codebook, layer, layout, records, key_sinks, value_sinks, counters, pages, lengths, sink_slots});
  checked_type(dtype, "dtype");
  const KvcalRange range{checked_u32(first_page, "first_page"), checked_u32(page_count, "page_count"),
                         call.lengths, nullptr};
  // Before that much is allocated.
  TORCH_CHECK_VALUE(first_page + page_count <= pages.size(1), "kvcal: first_page + page_count is ",
                    first_page + page_count, "; expected at most max_pages, ", pages.size(1));
  const std::int64_t sequences = pages.size(0), page_tokens = call.cache.layout.page_tokens;
  const auto make = [&](std::int64_t dim) {
    return at::zeros({sequences * page_count, page_tokens, call.info.kv_heads, dim},
                     records.options().dtype(dtype));
  };
  const Tensor keys = make(call.info.key_dim), values = make(call.info.value_dim);
  run_dequantise(
      call, range,
      pages_of(keys, "keys", call.device, call.cache.layout, call.info.kv_heads, call.info.key_dim),
      pages_of(values, "values", call.device, call.cache.layout, call.info.kv_heads, call.info.value_dim));
  const auto by_sequence = [&](const Tensor& read, std::int64_t dim) {
    return read.view({sequences, page_count * page_tokens, call.info.kv_heads, dim});
  };
  return {by_sequence(keys, call.info.key_dim), by_sequence(values, call.info.value_dim)};
}

void dequantise_into(std::int64_t codebook, std::int64_t layer, at::IntArrayRef layout, const Tensor& records,
                     const Tensor& key_sinks, const Tensor& value_sinks, const Tensor& counters,
                     const Tensor& keys, const Tensor& values, const Tensor& pages, const Tensor& lengths,
                     const Tensor& targets, std::int64_t first_page,
                     const std::optional<Tensor>& sink_slots) {
  const Call call = checked_call(
      {codebook, layer, layout, records, key_sinks, value_sinks, counters, pages, lengths, sink_slots});
  check_block(targets, "targets", call.device, at::kInt, {pages.size(0), kAny}, "[sequences, page_count]");
  const KvcalRange range{checked_u32(first_page, "first_page"), checked_u32(targets.size(1), "page_count"),
                         call.lengths, targets.const_data_ptr<std::int32_t>()};
  run_dequantise(
      call, range,
      pages_of(keys, "keys", call.device, call.cache.layout, call.info.kv_heads, call.info.key_dim),
      pages_of(values, "values", call.device, call.cache.layout, call.info.kv_heads, call.info.value_dim));
}

// ---- Shapes alone, for torch.compile. No data and no codebook is looked at, so that sizes may be symbols.

/// One meta tensor brings a call here: what it should write must be one, too, else nothing would be done and nobody told.
void check_meta(const Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.is_meta(), "kvcal: ", name, " is on ", tensor.device(),
      ", and another argument is a meta tensor, which holds nothing; expected all or none on meta");
}

void append_meta(std::int64_t, std::int64_t, at::IntArrayRef, const Tensor& records, const Tensor& key_sinks,
                 const Tensor& value_sinks, const Tensor& counters, const Tensor&, const Tensor&,
                 const Tensor&, const Tensor&, const Tensor&, c10::SymInt, const std::optional<Tensor>&) {
  check_meta(records, "records");
  check_meta(key_sinks, "key_sinks");
  check_meta(value_sinks, "value_sinks");
  check_meta(counters, "counters");
}

std::tuple<Tensor, Tensor> dequantise_meta(std::int64_t, std::int64_t, at::IntArrayRef layout,
                                           const Tensor& records, const Tensor&, const Tensor&,
                                           const Tensor& counters, const Tensor& pages, const Tensor&,
                                           c10::SymInt, c10::SymInt page_count, at::ScalarType dtype,
                                           const std::optional<Tensor>&) {
  check_meta(records, "records");
  check_meta(counters, "counters");
  const KvcalRecordLayout numbers = checked_layout(layout);
  TORCH_CHECK_VALUE(records.dim() == 3, "kvcal: records has ", records.dim(), " dimensions; expected 3");
  TORCH_CHECK_VALUE(pages.dim() == 2, "kvcal: pages has ", pages.dim(), " dimensions; expected 2");
  checked_type(dtype, "dtype");
  const auto make = [&](std::int64_t dim) {
    return at::empty_symint({pages.sym_size(0), page_count * c10::SymInt(numbers.page_tokens),
                             records.sym_size(1), c10::SymInt(dim)},
                            records.options().dtype(dtype));
  };
  return {make(numbers.key_dim), make(numbers.value_dim)};
}

void dequantise_into_meta(std::int64_t, std::int64_t, at::IntArrayRef, const Tensor& records, const Tensor&,
                          const Tensor&, const Tensor& counters, const Tensor& keys, const Tensor& values,
                          const Tensor&, const Tensor&, const Tensor&, c10::SymInt,
                          const std::optional<Tensor>&) {
  check_meta(records, "records");
  check_meta(counters, "counters");
  check_meta(keys, "keys");
  check_meta(values, "values");
}

// ---- Autograd: nothing here has a gradient, and nobody is to believe that it does.

/// The tensor among a call's arguments that argument `i` is, if it is one.
std::optional<Tensor> tensor_argument(const torch::jit::Stack& stack, std::size_t arguments, std::size_t i) {
  const c10::IValue& value = stack[stack.size() - arguments + i];
  if (!value.isTensor() || !value.toTensor().defined()) return std::nullopt;
  return value.toTensor();
}

/// For every operator; below autograd nobody else tells that a tensor was written.
void refuse_gradients(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  std::vector<Tensor> written;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::optional<Tensor> tensor = tensor_argument(*stack, arguments.size(), i);
    if (!tensor) continue;
    TORCH_CHECK(!c10::GradMode::is_enabled() || !tensor->requires_grad(), op.schema().name(), ": ",
                arguments[i].name(), " requires a gradient, and what is quantised has none: call it under ",
                "torch.no_grad(), or pass ", arguments[i].name(), ".detach()");
    if (arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite())
      written.push_back(*tensor);
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const Tensor& tensor : written) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace

TORCH_LIBRARY(kvcal, m) {
  m.def("open_codebook(Tensor flat, Device device) -> int", &open_codebook);
  m.def("close_codebook(int codebook) -> ()", &close_codebook);
  m.def("codebook_info(int codebook) -> int[]", &codebook_info);
  m.def("layer_info(int codebook, int layer) -> int[]", &layer_info);
  m.def(
      "record_layout(int codebook, int layer, int page_tokens, int? key_slots=None, int? value_slots=None) "
      "-> int[]",
      &record_layout);
  // Inductor is to keep the strides that an operator would see without it.
  const std::vector<at::Tag> tags{at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};
  m.def(
      "append(int codebook, int layer, int[] layout, Tensor(a!) records, Tensor(b!) key_sinks, Tensor(c!) "
      "value_sinks, "
      "Tensor(d!) counters, Tensor keys, Tensor values, Tensor pages, Tensor starts, Tensor lengths, "
      "SymInt max_new_tokens, Tensor? sink_slots=None) -> ()",
      tags);
  m.def(
      "dequantise(int codebook, int layer, int[] layout, Tensor records, Tensor key_sinks, Tensor "
      "value_sinks, "
      "Tensor(a!) counters, Tensor pages, Tensor lengths, SymInt first_page, SymInt page_count, ScalarType "
      "dtype, "
      "Tensor? sink_slots=None) -> (Tensor keys, Tensor values)",
      tags);
  m.def(
      "dequantise_into(int codebook, int layer, int[] layout, Tensor records, Tensor key_sinks, Tensor "
      "value_sinks, "
      "Tensor(a!) counters, Tensor(b!) keys, Tensor(c!) values, Tensor pages, Tensor lengths, Tensor "
      "targets, "
      "SymInt first_page, Tensor? sink_slots=None) -> ()",
      tags);
}

TORCH_LIBRARY_IMPL(kvcal, CPU, m) {
  m.impl("append", &append);
  m.impl("dequantise", &dequantise);
  m.impl("dequantise_into", &dequantise_into);
}

// The same: the codebook says where it is, and checks that the tensors are there.
TORCH_LIBRARY_IMPL(kvcal, CUDA, m) {
  m.impl("append", &append);
  m.impl("dequantise", &dequantise);
  m.impl("dequantise_into", &dequantise_into);
}

TORCH_LIBRARY_IMPL(kvcal, Meta, m) {
  m.impl("append", &append_meta);
  m.impl("dequantise", &dequantise_meta);
  m.impl("dequantise_into", &dequantise_into_meta);
}

TORCH_LIBRARY_IMPL(kvcal, Autograd, m) {
  m.impl("append", torch::CppFunction::makeFromBoxedFunction<&refuse_gradients>());
  m.impl("dequantise", torch::CppFunction::makeFromBoxedFunction<&refuse_gradients>());
  m.impl("dequantise_into", torch::CppFunction::makeFromBoxedFunction<&refuse_gradients>());
}

}  // namespace kvcal::codec
