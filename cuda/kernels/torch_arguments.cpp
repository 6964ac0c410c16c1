#include "cuda/kernels/torch_arguments.h"

#include <c10/core/DeviceGuard.h>
#ifdef KVCAL_WITH_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#include <array>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace kvcal::codec {
namespace {

using at::Tensor;

constexpr std::int64_t kCounters = sizeof(KvcalCounters) / sizeof(std::uint64_t);
constexpr std::uintptr_t kNumbersAlignment = 16;

class Registry {
 public:
  static Registry& instance() {
    // Never destroyed: at exit the CUDA runtime may be gone before it.
    static auto* const registry = new Registry;
    return *registry;
  }
  std::int64_t add(std::shared_ptr<const Codebook> codebook) {
    const std::lock_guard lock(mutex_);
    codebooks_.emplace(++last_, std::move(codebook));
    return last_;
  }
  /// The codebook of a handle; with `take` it is no longer found.
  std::shared_ptr<const Codebook> find(std::int64_t handle, bool take) {
    const std::lock_guard lock(mutex_);
    const auto found = codebooks_.find(handle);
    TORCH_CHECK_VALUE(
        found != codebooks_.end(), "kvcal: codebook ", handle,
        " is not open; expected a handle of open_codebook() that close_codebook() has not closed");
    std::shared_ptr<const Codebook> codebook = found->second;
    if (take) codebooks_.erase(found);
    return codebook;
  }

 private:
  std::mutex mutex_;
  std::map<std::int64_t, std::shared_ptr<const Codebook>> codebooks_;
  std::int64_t last_ = 0;
};

void check_sizes(const Tensor& tensor, const char* name, at::IntArrayRef sizes, const char* meaning) {
  bool fits = tensor.dim() == static_cast<std::int64_t>(sizes.size());
  std::string expected;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    fits = fits && (sizes[i] == kAny || tensor.size(static_cast<std::int64_t>(i)) == sizes[i]);
    expected += (i == 0 ? "" : ", ") + (sizes[i] == kAny ? "any" : std::to_string(sizes[i]));
  }
  TORCH_CHECK_VALUE(fits, "kvcal: ", name, " is of shape ", tensor.sizes(), "; expected ", meaning, ": [",
                    expected, "]");
}

void check_device(const Tensor& tensor, const char* name, c10::Device device) {
  TORCH_CHECK_VALUE(tensor.device() == device, "kvcal: ", name, " is on ", tensor.device(),
                    "; expected the codebook's device, ", device);
}

void check_aligned(const Tensor& tensor, const char* name, std::uintptr_t bytes) {
  TORCH_CHECK_VALUE(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % bytes == 0, "kvcal: ", name,
                    " begins at an address that is no multiple of ", bytes, " bytes: pass it with .clone()");
}

/// A stride; 0 for a dimension of one number or none, where PyTorch's may be anything.
std::int64_t checked_stride(const Tensor& tensor, const char* name, std::int64_t dimension, bool written) {
  if (tensor.size(dimension) <= 1) return 0;
  const std::int64_t stride = tensor.stride(dimension);
  TORCH_CHECK_VALUE(
      stride % 8 == 0, "kvcal: ", name, " has stride ", stride, " in dimension ", dimension,
      "; expected a multiple of 8: ", written ? "allocate it so" : "pass it with .contiguous()");
  TORCH_CHECK_VALUE(!written || stride > 0, "kvcal: ", name, " is expanded in dimension ", dimension,
                    ", so that pages would overwrite each other");
  return stride;
}

/// What keys and values have in common, whether they are read or written.
KvcalType check_numbers(const Tensor& tensor, const char* name, c10::Device device, at::IntArrayRef sizes,
                        const char* meaning) {
  check_device(tensor, name, device);
  const KvcalType type = checked_type(tensor.scalar_type(), name);
  check_sizes(tensor, name, sizes, meaning);
  TORCH_CHECK_VALUE(tensor.stride(-1) == 1, "kvcal: ", name,
                    " does not have its channels next to each other: pass it with .contiguous()");
  check_aligned(tensor, name, kNumbersAlignment);
  return type;
}

/// The layout, which is one that record_layout() makes for the layer.
KvcalRecordLayout layout_of(const CacheArguments& a, const Codebook& codebook) {
  const KvcalRecordLayout layout = checked_layout(a.layout);
  KvcalRecordLayout made;
  check_status(kvcal_record_layout(codebook.opened(), static_cast<std::uint32_t>(a.layer), layout.page_tokens,
                                   layout.key_slots, layout.value_slots, &made));
  TORCH_CHECK_VALUE(std::memcmp(&layout, &made, sizeof(layout)) == 0,
                    "kvcal: layout is not what record_layout() makes for layer ", a.layer,
                    " of the codebook");
  return layout;
}

KvcalCache cache_of(const CacheArguments& a, const Codebook& codebook, const KvcalLayerInfo& info) {
  const c10::Device device = codebook.device();
  const KvcalRecordLayout layout = layout_of(a, codebook);
  check_block(a.records, "records", device, at::kByte, {kAny, info.kv_heads, layout.record_bytes},
              "[pages, kv_heads, record_bytes]");
  // On the CPU no load is wider than 4 bytes, and PyTorch aligns to 64 there.
  check_aligned(a.records, "records", device.is_cuda() ? KVCAL_RECORD_ALIGNMENT : kNumbersAlignment);
  check_block(a.counters, "counters", device, at::kLong, {kCounters}, "[counters]");
  const std::uint32_t sinks = codebook.info().sinks;
  check_block(a.key_sinks, "key_sinks", device, at::kHalf, {kAny, info.kv_heads, sinks, info.key_dim},
              "[sink_slots, kv_heads, sinks, key_dim]");
  check_block(a.value_sinks, "value_sinks", device, at::kHalf,
              {a.key_sinks.size(0), info.kv_heads, sinks, info.value_dim},
              "[sink_slots, kv_heads, sinks, value_dim], as many slots as key_sinks");
  return {layout,
          a.records.mutable_data_ptr(),
          static_cast<std::uint64_t>(a.records.size(0)),
          a.key_sinks.mutable_data_ptr(),
          a.value_sinks.mutable_data_ptr(),
          static_cast<std::uint64_t>(a.key_sinks.size(0)),
          static_cast<KvcalCounters*>(a.counters.mutable_data_ptr())};
}

KvcalTable table_of(const CacheArguments& a, c10::Device device) {
  check_block(a.pages, "pages", device, at::kInt, {kAny, kAny}, "[sequences, max_pages]");
  const std::int64_t sequences = a.pages.size(0);
  check_block(a.lengths, "lengths", device, at::kInt, {sequences}, "[sequences]");
  if (a.sink_slots) check_block(*a.sink_slots, "sink_slots", device, at::kInt, {sequences}, "[sequences]");
  return {checked_u32(sequences, "the number of sequences"), checked_u32(a.pages.size(1), "max_pages"),
          a.pages.const_data_ptr<std::int32_t>(),
          a.sink_slots ? a.sink_slots->const_data_ptr<std::int32_t>() : nullptr};
}

}  // namespace

void check_status(KvcalStatus status) {
  if (status == KVCAL_OK) return;
  const std::string what = kvcal_last_error();
  if (status == KVCAL_OUT_OF_MEMORY) TORCH_CHECK_WITH(OutOfMemoryError, false, what);
  TORCH_CHECK(status != KVCAL_NO_DEVICE && status != KVCAL_CUDA_ERROR, what);
  TORCH_CHECK_VALUE(false, what);
}

std::uint32_t checked_u32(std::int64_t number, const char* name) {
  TORCH_CHECK_VALUE(number >= 0 && number <= INT32_MAX, "kvcal: ", name, " is ", number,
                    "; expected 0 to 2147483647");
  return static_cast<std::uint32_t>(number);
}

KvcalType checked_type(at::ScalarType type, const char* name) {
  switch (type) {
    case at::kHalf:
      return KVCAL_FLOAT16;
    case at::kBFloat16:
      return KVCAL_BFLOAT16;
    case at::kFloat:
      return KVCAL_FLOAT32;
    default:
      TORCH_CHECK_VALUE(false, "kvcal: ", name, " is of ", type, "; expected float16, bfloat16 or float32");
  }
}

KvcalRecordLayout checked_layout(at::IntArrayRef numbers) {
  TORCH_CHECK_VALUE(numbers.size() == kLayoutNumbers, "kvcal: layout has ", numbers.size(),
                    " numbers; expected the ", kLayoutNumbers, " of record_layout()");
  std::array<std::uint32_t, kLayoutNumbers> words{};
  for (std::size_t i = 0; i < kLayoutNumbers; ++i) words[i] = checked_u32(numbers[i], "a number of layout");
  KvcalRecordLayout layout;
  std::memcpy(&layout, words.data(), sizeof(layout));
  return layout;
}

void* current_stream(c10::Device device) {
  if (!device.is_cuda()) return nullptr;
#ifdef KVCAL_WITH_CUDA
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
#else
  TORCH_CHECK(false,
              "kvcal: built without KVCAL_CUDA or with a libtorch without CUDA: there are only CPU tensors");
#endif
}

Codebook::Codebook(const Tensor& flat, c10::Device device) : device_(device) {
  const c10::DeviceGuard guard(device_);
  check_status(kvcal_codebook_open(flat.const_data_ptr(), static_cast<std::size_t>(flat.numel()),
                                   device.is_cuda() ? KVCAL_DEVICE_CUDA : KVCAL_DEVICE_CPU, &opened_));
}

Codebook::~Codebook() {
  try {
    const c10::DeviceGuard guard(device_);
    kvcal_codebook_close(opened_);
  } catch (const std::exception&) {
    // The device is gone, and what was there with it.
  }
}

KvcalCodebookInfo Codebook::info() const {
  KvcalCodebookInfo info;
  check_status(kvcal_codebook_info(opened_, &info));
  return info;
}

KvcalLayerInfo Codebook::layer(std::int64_t layer) const {
  KvcalLayerInfo info;
  check_status(kvcal_layer_info(opened_, checked_u32(layer, "layer"), &info));
  return info;
}

std::int64_t add_codebook(std::shared_ptr<const Codebook> codebook) {
  return Registry::instance().add(std::move(codebook));
}

std::shared_ptr<const Codebook> find_codebook(std::int64_t handle) {
  return Registry::instance().find(handle, false);
}

std::shared_ptr<const Codebook> take_codebook(std::int64_t handle) {
  return Registry::instance().find(handle, true);
}

void check_block(const Tensor& tensor, const char* name, c10::Device device, at::ScalarType type,
                 at::IntArrayRef sizes, const char* meaning) {
  check_device(tensor, name, device);
  TORCH_CHECK_VALUE(tensor.scalar_type() == type, "kvcal: ", name, " is of ", tensor.scalar_type(),
                    "; expected ", type);
  check_sizes(tensor, name, sizes, meaning);
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "kvcal: ", name, " is not contiguous");
}

KvcalRows rows_of(const Tensor& tensor, const char* name, c10::Device device, std::int64_t rows,
                  std::uint32_t kv_heads, std::uint32_t dim) {
  const KvcalType type =
      check_numbers(tensor, name, device, {rows, kv_heads, dim},
                    rows == kAny ? "[rows, kv_heads, dim]" : "[rows, kv_heads, dim], as many rows as keys");
  return {tensor.const_data_ptr(), type, checked_stride(tensor, name, 0, false),
          checked_stride(tensor, name, 1, false)};
}

KvcalPages pages_of(const Tensor& tensor, const char* name, c10::Device device,
                    const KvcalRecordLayout& layout, std::uint32_t kv_heads, std::uint32_t dim) {
  const KvcalType type = check_numbers(tensor, name, device, {kAny, layout.page_tokens, kv_heads, dim},
                                       "[target_pages, page_tokens, kv_heads, dim]");
  return {tensor.mutable_data_ptr(),
          type,
          static_cast<std::uint64_t>(tensor.size(0)),
          checked_stride(tensor, name, 0, true),
          checked_stride(tensor, name, 1, true),
          checked_stride(tensor, name, 2, true)};
}

Call checked_call(const CacheArguments& a) {
  auto codebook = find_codebook(a.codebook);
  const KvcalLayerInfo info = codebook->layer(a.layer);
  const KvcalCache cache = cache_of(a, *codebook, info);
  const KvcalTable table = table_of(a, codebook->device());
  const c10::Device device = codebook->device();
  return {std::move(codebook),
          device,
          static_cast<std::uint32_t>(a.layer),
          info,
          cache,
          table,
          a.lengths.const_data_ptr<std::int32_t>()};
}

}  // namespace kvcal::codec
