#include "formats/dtype.h"

#include <Eigen/Core>
#include <array>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"

namespace kvcal::formats {
namespace {

struct Known {
  Dtype dtype;
  std::string_view name;
  int bits;
};

constexpr std::array kKnown = {
    Known{Dtype::BOOL, "BOOL", 8},       Known{Dtype::F4, "F4", 4},
    Known{Dtype::F6_E2M3, "F6_E2M3", 6}, Known{Dtype::F6_E3M2, "F6_E3M2", 6},
    Known{Dtype::U8, "U8", 8},           Known{Dtype::I8, "I8", 8},
    Known{Dtype::F8_E5M2, "F8_E5M2", 8}, Known{Dtype::F8_E4M3, "F8_E4M3", 8},
    Known{Dtype::F8_E8M0, "F8_E8M0", 8}, Known{Dtype::I16, "I16", 16},
    Known{Dtype::U16, "U16", 16},        Known{Dtype::F16, "F16", 16},
    Known{Dtype::BF16, "BF16", 16},      Known{Dtype::I32, "I32", 32},
    Known{Dtype::U32, "U32", 32},        Known{Dtype::F32, "F32", 32},
    Known{Dtype::C64, "C64", 64},        Known{Dtype::F64, "F64", 64},
    Known{Dtype::I64, "I64", 64},        Known{Dtype::U64, "U64", 64},
};

const Known& known(Dtype dtype) {
  for (const Known& entry : kKnown) {
    if (entry.dtype == dtype) return entry;
  }
  throw base::WrongUsage(base::concat("there is no dtype with the number ", static_cast<int>(dtype)));
}

template <typename Stored, typename Convert>
void convert_all(std::span<const std::byte> data, std::span<float> out, const Convert& convert) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, data.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = convert(stored);
  }
}

}  // namespace

std::string_view dtype_name(Dtype dtype) {
  return known(dtype).name;
}

std::optional<Dtype> dtype_from_name(std::string_view name) {
  for (const Known& entry : kKnown) {
    if (entry.name == name) return entry.dtype;
  }
  return std::nullopt;
}

int dtype_bits(Dtype dtype) {
  return known(dtype).bits;
}

std::int64_t dtype_bytes(Dtype dtype, std::int64_t count, std::string_view what) {
  const std::int64_t bits = base::checked_multiply<std::int64_t>(count, dtype_bits(dtype), what);
  if (bits % 8 != 0) {
    throw base::InvalidInput(
        base::concat(what, ": ", count, " elements of ", dtype_name(dtype), " do not fill whole bytes"));
  }
  return bits / 8;
}

void copy_to_float(Dtype dtype, std::span<const std::byte> data, std::span<float> out,
                   std::string_view what) {
  const std::size_t width = static_cast<std::size_t>(dtype_bits(dtype)) / 8;
  if (width == 0 || data.size() / width != out.size() || data.size() % width != 0) {
    throw base::InvalidInput(base::concat(what, ": ", data.size(), " bytes of ", dtype_name(dtype),
                                          " are not ", out.size(), " elements"));
  }
  switch (dtype) {
    case Dtype::F32:
      if (!out.empty()) std::memcpy(out.data(), data.data(), data.size());
      return;
    case Dtype::F64:
      return convert_all<double>(data, out, [](double value) { return static_cast<float>(value); });
    case Dtype::F16:
      return convert_all<Eigen::half>(data, out, [](Eigen::half value) { return static_cast<float>(value); });
    case Dtype::BF16:
      return convert_all<Eigen::bfloat16>(data, out,
                                          [](Eigen::bfloat16 value) { return static_cast<float>(value); });
    default:
      throw base::InvalidInput(
          base::concat(what, ": has the dtype ", dtype_name(dtype), "; expected F32, F16, BF16 or F64"));
  }
}

}  // namespace kvcal::formats
