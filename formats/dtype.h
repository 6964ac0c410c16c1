// formats/dtype.h: element types of tensors in files, and how wide they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace kvcal::formats {

/// All the types that safetensors files know (https://github.com/huggingface/safetensors) and those of .npy
/// files that we read. The narrow ones (fp8, fp6, fp4) and C64 can be named and measured, not computed with.
enum class Dtype {
  BOOL,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64
};

/// The name that a safetensors header uses: "BF16".
[[nodiscard]] std::string_view dtype_name(Dtype dtype);
/// Empty for a name that is none of them.
[[nodiscard]] std::optional<Dtype> dtype_from_name(std::string_view name);
/// The width of one element in bits: 4 and 6 for the narrowest, which are packed.
[[nodiscard]] int dtype_bits(Dtype dtype);
/// Whether weights of this type can be used: F32, F16, BF16.
[[nodiscard]] constexpr bool is_weight_dtype(Dtype dtype) {
  return dtype == Dtype::F32 || dtype == Dtype::F16 || dtype == Dtype::BF16;
}

/// The bytes of `count` elements. Throws InvalidInput naming `what` on overflow and where packed elements do
/// not fill the last byte.
[[nodiscard]] std::int64_t dtype_bytes(Dtype dtype, std::int64_t count, std::string_view what);

/// Elements of F32, F16, BF16 or F64 as float. data.size() must be out.size() elements; it need not be
/// aligned. Throws InvalidInput naming `what` for another dtype or size.
void copy_to_float(Dtype dtype, std::span<const std::byte> data, std::span<float> out, std::string_view what);

}  // namespace kvcal::formats
