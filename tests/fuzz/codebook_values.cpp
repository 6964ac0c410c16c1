// A codebook whose checksums and hash are right and whose values are any: the bytes are edits of the sample's tree. Behind four hashes no
// fuzzer comes to the rules for values by itself.
//
// An edit: the number of a value (uint16, little-endian, modulo how many there are), what to do (modulo 4), how many bytes follow, they.
#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "formats/internal/codebook_rules.h"
#include "formats/sample_codebook.h"
#include "fuzz/codebook_again.h"
#include "fuzz/target.h"

namespace kvcal::fuzz {
namespace {

using formats::Hdf5Tree;
using formats::Hdf5Value;

enum class Edit { overwrite, extent, type, erase };

/// The bytes of a number at any element; a text becomes them.
void overwrite(Hdf5Value& value, std::span<const std::byte> bytes) {
  if (value.type == "string") {
    value.data.assign(bytes.begin(), bytes.end());
  } else if (!bytes.empty()) {
    const std::size_t width = value.type.ends_with("64") ? 8 : value.type.ends_with("32") ? 4 : 1;
    const std::size_t at = std::to_integer<std::size_t>(bytes[0]) % (value.data.size() / width) * width;
    const auto content = bytes.subspan(1, std::min({bytes.size() - 1, width, value.data.size() - at}));
    std::ranges::copy(content, value.data.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

/// Another number of elements, the values repeated or cut.
void resize(Hdf5Value& value, std::span<const std::byte> bytes) {
  if (value.shape.empty() || bytes.empty()) return;
  const std::size_t row = value.data.size() / static_cast<std::size_t>(value.shape[0]);
  value.shape[0] = std::to_integer<std::int64_t>(bytes[0]) + 1;
  const std::vector<std::byte> old = value.data;
  value.data.resize(row * static_cast<std::size_t>(value.shape[0]));
  for (std::size_t i = 0; i < value.data.size(); ++i) value.data[i] = old[i % old.size()];
}

/// Another type of the same width.
void retype(Hdf5Value& value, std::span<const std::byte> bytes) {
  if (!value.type.ends_with("64") || bytes.empty()) return;
  constexpr std::array kTypes = {"int64", "uint64", "float64"};
  value.type = kTypes[std::to_integer<std::size_t>(bytes[0]) % kTypes.size()];
}

void apply(Hdf5Tree& tree, std::size_t number, Edit edit, std::span<const std::byte> bytes) {
  const auto at = std::next(tree.values.begin(), static_cast<std::ptrdiff_t>(number % tree.values.size()));
  switch (edit) {
    case Edit::overwrite:
      return overwrite(at->second, bytes);
    case Edit::extent:
      return resize(at->second, bytes);
    case Edit::type:
      return retype(at->second, bytes);
    case Edit::erase: {
      // A dataset's attributes go with it.
      const std::string key = at->first + "@";
      tree.values.erase(at);
      std::erase_if(tree.values, [&](const auto& entry) { return entry.first.starts_with(key); });
    }
  }
}

}  // namespace

void read_input(std::span<const std::byte> bytes) {
  static const Hdf5Tree sample = formats::codebook_tree(formats::testing::small_codebook());
  Hdf5Tree tree = sample;
  constexpr std::size_t kHead = 4;
  while (bytes.size() >= kHead && !tree.values.empty()) {
    std::array<std::size_t, kHead> head{};
    std::ranges::transform(bytes.first(kHead), head.begin(),
                           [](std::byte b) { return std::to_integer<std::size_t>(b); });
    bytes = bytes.subspan(kHead);
    const auto content = bytes.first(std::min(head[3], bytes.size()));
    apply(tree, head[0] | head[1] << 8, static_cast<Edit>(head[2] % 4), content);
    bytes = bytes.subspan(content.size());
  }
  tree.values["/@content_sha256"] = formats::hdf5_text(formats::content_sha256(tree));
  // Without libhdf5, which the target `codebook` runs through: that is where the time goes.
  check_again(formats::codebook_of(tree, "edited"), [](const formats::Codebook& codebook) {
    return formats::codebook_of(formats::codebook_tree(codebook), "again");
  });
}

}  // namespace kvcal::fuzz
