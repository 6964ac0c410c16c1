// calib/version.h: the version that the program reports and codebooks are marked with: the CMake project's.
#pragma once

namespace kvcal::calib {

/// "0.1.0"
[[nodiscard]] const char* version();

}  // namespace kvcal::calib
