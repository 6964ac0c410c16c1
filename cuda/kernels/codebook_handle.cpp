#include "cuda/kernels/codebook_handle.h"

#include <array>
#include <charconv>
#include <cstring>

#include "cuda/kernels/flat_reader.h"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/text.h"

namespace {

using kvcal::codec::Datatype;

Datatype datatype_at(const std::byte* block, unsigned bits, std::uint64_t midpoints, std::uint64_t levels) {
  Datatype datatype;
  datatype.bits = static_cast<int>(bits);
  std::memcpy(datatype.midpoints, block + midpoints, sizeof(float) * ((1U << bits) - 1U));
  std::memcpy(datatype.levels, block + levels, sizeof(float) * (1U << bits));
  return datatype;
}

}  // namespace

KvcalCodebook::KvcalCodebook(std::span<const std::byte> flat, KvcalDevice device)
    : flat_(flat.size() / 8 + 1), size_(flat.size()), device_(device) {
  std::memcpy(flat_.data(), flat.data(), flat.size());
}

KvcalCodebook::~KvcalCodebook() {
  if (memory_ != nullptr) kvcal::codec::free_on_device(memory_);
}

std::span<const std::byte> KvcalCodebook::bytes() const {
  return std::as_bytes(std::span(flat_)).first(size_);
}

std::string KvcalCodebook::move_to_device() {
  using namespace kvcal::codec;
  std::string problem = current_device(ordinal_);
  if (problem.empty()) problem = copy_to_device(flat_.data(), size_, &memory_);
  for (std::uint32_t i = 0; problem.empty() && i < header().layers; ++i) {
    if (layer_problem(i).empty()) problem = load_kernels(layer(i));
  }
  return problem;
}

std::string KvcalCodebook::place_problem() const {
  using namespace kvcal::codec;
  if (device_ == KVCAL_DEVICE_CPU) return {};
  int current = -1;
  std::string problem = current_device(current);
  if (!problem.empty() || current == ordinal_) return problem;
  return text("the codebook lies on CUDA device ", ordinal_, ", the current one is ", current);
}

const KvcalFlatHeader& KvcalCodebook::header() const {
  return *reinterpret_cast<const KvcalFlatHeader*>(flat_.data());
}

KvcalFlatLayer KvcalCodebook::layer(std::uint32_t layer) const {
  return kvcal::codec::flat_layer(reinterpret_cast<const std::byte*>(flat_.data()), layer);
}

std::string KvcalCodebook::layer_problem(std::uint32_t layer) const {
  using kvcal::codec::text;
  const KvcalFlatLayer flat = this->layer(layer);
  const std::string place = text("layer ", flat.index, " of the codebook: ");
  if (flat.kv_heads == 0) return place + "it has no kv heads";
  for (const std::uint32_t dim : {flat.key_dim, flat.value_dim}) {
    if (!kvcal::codec::has_kernel(flat.key_bits, dim))
      return text(place, "head_dim ", dim, "; there are kernels for 64, 128 and 256");
  }
  if (header().sinks > KVCAL_TILE_TOKENS) {
    return text(place, header().sinks, " sinks; the kernels keep up to ", KVCAL_TILE_TOKENS,
                ": calibrate with fewer");
  }
  for (const float fraction : {flat.key_outliers, flat.value_outliers})
    if (!(fraction >= 0 && fraction < 0.5F)) return text(place, "an outlier fraction of ", fraction);
  return {};
}

double KvcalCodebook::exact_fraction(float stored) {
  // The shortest text of the float is that of the number which was rounded to it.
  std::array<char, 32> digits{};
  const auto written = std::to_chars(digits.begin(), digits.end(), stored);
  double fraction = 0;
  std::from_chars(digits.begin(), written.ptr, fraction);
  return fraction;
}

kvcal::codec::LayerView KvcalCodebook::view(std::uint32_t layer) const {
  const KvcalFlatLayer flat = this->layer(layer);
  const auto* host = reinterpret_cast<const std::byte*>(flat_.data());
  const std::byte* there = memory_ != nullptr ? static_cast<const std::byte*>(memory_) : host;
  kvcal::codec::LayerView view;
  view.kv_heads = flat.kv_heads;
  view.key_dim = flat.key_dim;
  view.value_dim = flat.value_dim;
  view.sinks = header().sinks;
  view.key_affines = reinterpret_cast<const kvcal::codec::Affine*>(there + flat.key_affines);
  if (flat.key_outliers > 0) {
    view.key_lower = reinterpret_cast<const float*>(there + flat.key_lower);
    view.key_upper = reinterpret_cast<const float*>(there + flat.key_upper);
  }
  view.key = datatype_at(host, flat.key_bits, flat.key_midpoints, flat.key_levels);
  view.value = datatype_at(host, flat.value_bits, flat.value_midpoints, flat.value_levels);
  const double fraction = exact_fraction(flat.value_outliers);
  view.value_low = kvcal::codec::quantile_place(fraction / 2, flat.value_dim);
  view.value_high = kvcal::codec::quantile_place(1 - fraction / 2, flat.value_dim);
  view.value_rotation = kvcal::codec::rotation_of(flat.value_rotation_block);
  return view;
}
