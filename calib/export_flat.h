// calib/export_flat.h: the codec's own bytes (cuda/kernels/flat_format.h) as a target of kvcal export.
#pragma once

#include "formats/export/export_target.h"

namespace kvcal::calib {

/// "flat": one datatype of a codebook whose layers have keys and values of the same heads.
[[nodiscard]] formats::ExportTarget flat_target();

}  // namespace kvcal::calib
