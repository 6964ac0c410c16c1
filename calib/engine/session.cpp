#include "calib/engine/session.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace kvcal::calib {

void require_finite(const Session& session, const at::Tensor& x, const std::string& place,
                    std::int64_t sample, const std::string& what) {
  const auto [low, high] = at::aminmax(x.detach());
  const at::Tensor bounds = at::stack({low, high}).to(at::kFloat);
  if (at::isfinite(bounds).all().item<bool>()) return;
  throw base::InvalidInput(base::concat(
      session.folder.path.string(), ": ", place, ", sample ", sample, ": ", what, " hold NaN or infinity",
      session.placement.dtype == at::kBFloat16 ? "; try --dtype float32"
                                               : "; the checkpoint is damaged or the text is not its kind"));
}

std::string layer_place(int layer) {
  return base::concat("layer ", layer);
}

}  // namespace kvcal::calib
