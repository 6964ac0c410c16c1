#include "calib/model/parts/linear.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string_view>

#include "base/cpu.h"

namespace kvcal::calib {
namespace {

// oneDNN's product as libtorch registers it for its own compiler:
// linear(x, weight, bias) and then, here, nothing.
using OneDnnLinear = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                                c10::string_view, c10::List<std::optional<at::Scalar>>,
                                std::optional<c10::string_view>);

std::optional<c10::TypedOperatorHandle<OneDnnLinear>> find_onednn_linear() {
  if (base::cpu_is_intel()) return std::nullopt;
  const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  if (!found || !found->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
  return found->typed<OneDnnLinear>();
}

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  static const auto onednn = find_onednn_linear();
  if (!onednn || !x.is_cpu() || x.scalar_type() != at::kFloat || x.dim() != 2)
    return at::linear(x, weight, bias);
  const c10::List<std::optional<at::Scalar>> no_scalars;
  return onednn->call(x.contiguous(), weight, bias, "none", no_scalars, "");
}

class FixedLinear : public torch::autograd::Function<FixedLinear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    context->save_for_backward({weight});
    return product(x, weight, bias);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const at::Tensor weight = context->get_saved_variables()[0];
    return {product(gradients[0], weight.t(), std::nullopt), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor fixed_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return FixedLinear::apply(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
}

}  // namespace kvcal::calib
