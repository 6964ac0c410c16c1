#include "calib/model/parts/gated_mlp.h"

#include <ATen/ATen.h>

namespace kvcal::calib {

at::Tensor GatedMlp::operator()(const at::Tensor& x) const {
  return down(activate(activation, gate(x)) * up(x));
}

}  // namespace kvcal::calib
