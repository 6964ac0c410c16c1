// calib/version.h: the version that codebooks are marked with; set by CMake from the project's.
#pragma once

namespace kvcal::calib {

inline constexpr const char* kVersion = KVCAL_VERSION;

}  // namespace kvcal::calib
