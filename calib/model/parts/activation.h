// calib/model/parts/activation.h: the nonlinearities of feed-forward layers, by their names in config.json.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace kvcal::calib {

/// silu: x sigmoid(x). gelu: x Phi(x), Phi by erf (Hendrycks and Gimpel 2016, arXiv 1606.08415). gelu_tanh:
/// the same paper's approximation by tanh. relu: max(x, 0).
enum class Activation { silu, gelu, gelu_tanh, relu };

/// The names that parse_activation() knows, for errors.
inline constexpr std::string_view kActivationNames = "silu, gelu, gelu_pytorch_tanh, gelu_new and relu";

/// By the names of transformers' ACT2FN: silu or swish, gelu, gelu_pytorch_tanh or gelu_new, relu.
/// nullopt: another.
[[nodiscard]] std::optional<Activation> parse_activation(std::string_view name);

/// Element by element: the same shape and type as x.
[[nodiscard]] at::Tensor activate(Activation activation, const at::Tensor& x);

}  // namespace kvcal::calib
