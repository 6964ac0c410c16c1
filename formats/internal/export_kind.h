// formats/internal/export_kind.h: what a file is that holds no scales to check, told by its first bytes.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace kvcal::formats::export_check {

/// How many bytes are looked at: a safetensors header says within them whether it is a codebook's.
inline constexpr std::size_t kHeadBytes = 4096;

/// What can be checked instead.
inline constexpr std::string_view kCheckable =
    "--check reads folders of compressed-tensors and modelopt and scale files of onnx-genai";

/// "an export of flat, which holds no scales to check". Empty: nothing that is known; it may be JSON.
[[nodiscard]] std::string kind_without_scales(std::string_view head);

/// The first kHeadBytes bytes, or all of a shorter file; nothing where it cannot be read.
[[nodiscard]] std::string head_of(const std::filesystem::path& path);

}  // namespace kvcal::formats::export_check
