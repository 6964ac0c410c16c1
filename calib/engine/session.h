// calib/engine/session.h: a model with its weights and the windows of tokens that go through it:
// what every job over the layers starts from, apart from what it does.
#pragma once

#include <memory>
#include <vector>

#include "calib/model/model.h"
#include "calib/model/model_folder.h"
#include "calib/model/placement.h"
#include "calib/text/text_sampler.h"

namespace kvcal::calib {

struct Session {
  ModelFolder folder;
  Placement placement;
  std::shared_ptr<const WeightLoader> weights;
  std::unique_ptr<Model> model;
  TokenWindows windows;

  [[nodiscard]] const ModelConfig& config() const { return model->config(); }
  [[nodiscard]] int num_layers() const { return model->config().num_layers(); }
  /// Tokens of each sample, without padding.
  [[nodiscard]] std::vector<std::int64_t> sample_lengths() const {
    std::vector<std::int64_t> lengths;
    for (std::int64_t i = 0; i < windows.samples; ++i)
      lengths.push_back(static_cast<std::int64_t>(windows.sample(i).size()));
    return lengths;
  }
};

/// Throws InvalidInput naming the model's folder, `place` ("layer 3", "the head"), the sample and `what`
/// where x holds NaN or infinity. It is looked at, not changed.
void require_finite(const Session& session, const at::Tensor& x, const std::string& place,
                    std::int64_t sample, const std::string& what);

/// "layer 3"
[[nodiscard]] std::string layer_place(int layer);

}  // namespace kvcal::calib
