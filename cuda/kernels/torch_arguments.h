// cuda/kernels/torch_arguments.h: what the operators of torch_ops.cpp are given, checked, as the C API takes it. Whatever does
// not fit is thrown as a ValueError that names the argument and says what was expected.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "cuda/kernels/kvcal_cuda.h"

namespace kvcal::codec {

inline constexpr std::size_t kLayoutNumbers = sizeof(KvcalRecordLayout) / sizeof(std::uint32_t);
inline constexpr std::int64_t kAny = -1;  ///< of a size that is expected

/// A failure of the C API as an exception: of the device a RuntimeError, of memory an OutOfMemoryError, else a ValueError.
void check_status(KvcalStatus status);

/// 0 to 2147483647.
std::uint32_t checked_u32(std::int64_t number, const char* name);

/// float16, bfloat16 or float32.
KvcalType checked_type(at::ScalarType type, const char* name);

/// The numbers of record_layout(). Whether they fit each other is the C API's to say.
KvcalRecordLayout checked_layout(at::IntArrayRef numbers);

/// The current one of PyTorch; null on the CPU. Throws where this build has none.
void* current_stream(c10::Device device);

/// An opened codebook and where it is.
class Codebook {
 public:
  Codebook(const at::Tensor& flat, c10::Device device);
  ~Codebook();
  Codebook(const Codebook&) = delete;
  Codebook& operator=(const Codebook&) = delete;

  [[nodiscard]] c10::Device device() const { return device_; }
  [[nodiscard]] const KvcalCodebook* opened() const { return opened_; }
  [[nodiscard]] KvcalCodebookInfo info() const;
  [[nodiscard]] KvcalLayerInfo layer(std::int64_t layer) const;

 private:
  c10::Device device_;
  KvcalCodebook* opened_ = nullptr;
};

/// The process's opened codebooks by their handles. One that is closed stays until the calls that use it return.
std::int64_t add_codebook(std::shared_ptr<const Codebook> codebook);
std::shared_ptr<const Codebook> find_codebook(std::int64_t handle);
/// No longer found; closed where the last one lets go of it.
std::shared_ptr<const Codebook> take_codebook(std::int64_t handle);

/// A tensor that lies in one piece. sizes: kAny where any will do; meaning: what they are.
void check_block(const at::Tensor& tensor, const char* name, c10::Device device, at::ScalarType type,
                 at::IntArrayRef sizes, const char* meaning);

/// New keys or values, [rows, kv_heads, dim]. rows: kAny where any will do.
KvcalRows rows_of(const at::Tensor& tensor, const char* name, c10::Device device, std::int64_t rows,
                  std::uint32_t kv_heads, std::uint32_t dim);

/// Pages to write, [pages, page_tokens, kv_heads, dim].
KvcalPages pages_of(const at::Tensor& tensor, const char* name, c10::Device device,
                    const KvcalRecordLayout& layout, std::uint32_t kv_heads, std::uint32_t dim);

/// The arguments that append and dequantise have in common.
struct CacheArguments {
  std::int64_t codebook, layer;
  at::IntArrayRef layout;
  const at::Tensor &records, &key_sinks, &value_sinks, &counters, &pages, &lengths;
  const std::optional<at::Tensor>& sink_slots;
};

/// The same for the C API. The pointers are those of the tensors.
struct Call {
  std::shared_ptr<const Codebook> codebook;
  c10::Device device;
  std::uint32_t layer;
  KvcalLayerInfo info;
  KvcalCache cache;
  KvcalTable table;
  const std::int32_t* lengths;
};

Call checked_call(const CacheArguments& arguments);

}  // namespace kvcal::codec
