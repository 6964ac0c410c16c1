// calib/version.h: the version that the program reports and codebooks are marked with: the CMake project's.
#pragma once

namespace kvcal::calib {

/// "0.1.0"
[[nodiscard]] const char* version();

/// Counts the changes after which the same run gives another codebook, or keeps its checkpoints in another
/// form: two revisions do not go on from each other's work folders, nor take each other's results for done.
inline constexpr int kRevision = 5;

}  // namespace kvcal::calib
