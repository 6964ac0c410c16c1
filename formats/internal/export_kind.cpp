#include "formats/internal/export_kind.h"

#include <cstddef>
#include <fstream>

#include "base/error.h"

namespace kvcal::formats::export_check {
namespace {

/// A length of 8 bytes, little-endian, of which no header needs the upper 4, and then an object.
bool is_safetensors(std::string_view head) {
  constexpr std::size_t kLengthBytes = 8;
  return head.size() > kLengthBytes && head[kLengthBytes] == '{' &&
         head.substr(kLengthBytes / 2, kLengthBytes / 2) == std::string_view("\0\0\0\0", 4);
}

bool is_c_header(std::string_view head) {
  const std::size_t begin = head.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return false;
  const std::string_view text = head.substr(begin);
  return text.starts_with("/*") || text.starts_with("//") || text.starts_with('#');
}

}  // namespace

std::string kind_without_scales(std::string_view head) {
  constexpr const char* kNone = ", which holds no scales to check";
  const auto export_of = [&](const char* target) { return base::concat("an export of ", target, kNone); };
  if (head.starts_with("KVCALFLT")) return export_of("flat");     // cuda/kernels/flat_format.h
  if (head.starts_with("\x80\x02")) return export_of("kvquant");  // a pickle of protocol 2
  if (head.starts_with("\x89HDF\r\n\x1a\n")) return base::concat("HDF5, as codebooks are", kNone);
  if (is_safetensors(head)) {
    if (head.find(R"("format":"kvcal-codebook")") != std::string_view::npos) return export_of("safetensors");
    return "one file of a model, which is checked with its config.json and index; name their folder";
  }
  if (is_c_header(head)) return export_of("c-header");
  return {};
}

std::string head_of(const std::filesystem::path& path) {
  std::string head(kHeadBytes, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(head.data(), static_cast<std::streamsize>(head.size()));
  head.resize(static_cast<std::size_t>(file.gcount()));
  return head;
}

}  // namespace kvcal::formats::export_check
