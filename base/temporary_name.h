// base/temporary_name.h: what files and folders that appear whole have in common.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string_view>

namespace kvcal::base {

inline constexpr std::string_view kTemporaryEnding = ".tmp";
inline constexpr std::size_t kTemporaryDigits = 16;

/// .NAME.<kTemporaryDigits random hexadecimal digits>.tmp beside `path`; another with every call.
[[nodiscard]] std::filesystem::path temporary_path(const std::filesystem::path& path);

/// Makes the names in a folder durable; nothing where its file system cannot.
void sync_folder(const std::filesystem::path& folder);

}  // namespace kvcal::base
