#include "formats/safetensors.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "formats/internal/safetensors_header.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;

constexpr std::size_t kLengthBytes = 8;

/// The header's text, once its length is known to lie inside the file.
std::string_view header_text(const base::MappedFile& map) {
  const std::span<const std::byte> bytes = map.bytes();
  const std::string file = map.path().string();
  if (bytes.size() < kLengthBytes) {
    throw InvalidInput(
        concat(file, ": ", bytes.size(), " bytes are too short for a safetensors file; download it again"));
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i)
    length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  if (length > kMaxSafetensorsHeaderBytes) {
    throw InvalidInput(concat(file, ": the header's length is said to be ", length,
                              " bytes, more than the format's limit of ", kMaxSafetensorsHeaderBytes,
                              "; this is not a safetensors file, or it is damaged"));
  }
  if (length > bytes.size() - kLengthBytes) {
    throw InvalidInput(concat(file, ": the header of ", length, " bytes is longer than the file of ",
                              bytes.size(), " bytes: truncated; download it again"));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) {
    throw InvalidInput(concat(
        file, ": the header does not begin with '{'; this is not a safetensors file, or it is damaged"));
  }
  return text;
}

/// Every byte of the data belongs to exactly one tensor. Compares with the file's size first: a truncated
/// file is the commonest damage, and must be called that.
void check_layout(const std::vector<HeaderEntry>& entries, std::uint64_t data_bytes,
                  const std::string& file) {
  std::vector<const HeaderEntry*> by_offset;
  for (const HeaderEntry& entry : entries) by_offset.push_back(&entry);
  std::ranges::sort(by_offset, {},
                    [](const HeaderEntry* entry) { return std::pair(entry->begin, entry->end); });
  for (const HeaderEntry* entry : by_offset) {
    if (entry->end > data_bytes) {
      throw InvalidInput(concat(file, ": tensor '", entry->name, "': its data ends at byte ", entry->end,
                                ", but the file holds ", data_bytes,
                                " bytes of data: truncated; download it again"));
    }
  }
  std::uint64_t covered = 0;
  const HeaderEntry* previous = nullptr;
  for (const HeaderEntry* entry : by_offset) {
    if (entry->begin < covered) {
      throw InvalidInput(concat(file, ": tensors '", previous->name, "' and '", entry->name,
                                "' overlap at byte ", entry->begin));
    }
    if (entry->begin > covered) {
      throw InvalidInput(concat(file, ": bytes ", covered, " to ", entry->begin,
                                " of the data, before tensor '", entry->name, "', belong to no tensor"));
    }
    covered = entry->end;
    previous = entry;
  }
  if (covered != data_bytes) {
    throw InvalidInput(
        concat(file, ": ", data_bytes - covered, " bytes after the last tensor belong to no tensor"));
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : map_(path) {
  const std::string_view text = header_text(map_);
  SafetensorsHeader header = parse_safetensors_header(text, path);
  const std::span<const std::byte> data = map_.bytes().subspan(kLengthBytes + text.size());
  check_layout(header.entries, data.size(), path.string());
  std::ranges::sort(header.entries, {}, &HeaderEntry::name);
  tensors_.reserve(header.entries.size());
  for (HeaderEntry& entry : header.entries) {
    tensors_.push_back({std::move(entry.name), entry.dtype, std::move(entry.shape),
                        data.subspan(entry.begin, entry.end - entry.begin), path});
  }
  metadata_ = std::move(header.metadata);
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(tensors_, name, {}, &TensorView::name);
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

const TensorView& SafetensorsFile::get(std::string_view name) const {
  const TensorView* found = find(name);
  if (found == nullptr) throw InvalidInput(concat(path().string(), ": the tensor '", name, "' is missing"));
  return *found;
}

}  // namespace kvcal::formats
