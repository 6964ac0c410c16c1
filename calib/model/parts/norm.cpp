#include "calib/model/parts/norm.h"

#include <ATen/ATen.h>

namespace kvcal::calib {

at::Tensor RmsNorm::operator()(const at::Tensor& x) const {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scale = at::rsqrt(wide.square().mean(-1, /*keepdim=*/true) + epsilon);
  return weight * (wide * scale).to(x.scalar_type());
}

}  // namespace kvcal::calib
