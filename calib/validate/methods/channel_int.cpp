// Uniform levels, keys by channel: the steps of KVQuant's ablation (Hooper et al. 2024, sections 3.1 and 3.2)
// between int3 and the codebook's own levels. Keys on the smallest to the largest number that each channel had in
// calibration, after RoPE or before it; values on each token's. Sinks are tokens like any other.
#include <optional>

#include "base/error.h"
#include "calib/validate/methods/codec_storage.h"
#include "calib/validate/methods/token_levels.h"

namespace kvcal::calib {

MethodFamily channel_int_methods();

namespace {

struct ChannelIntName {
  int bits = 0;
  bool after_rope = false;
};

std::string name_of(const ChannelIntName& name) {
  return base::concat("int", name.bits, name.after_rope ? "-channel-rope" : "-channel");
}

// Without outliers; null where the codebook does not hold it.
const formats::OutlierSet* extremes(const formats::TensorCodebook& tensor, bool after_rope) {
  for (const formats::OutlierSet& set : after_rope ? tensor.rotated : tensor.with_sinks)
    if (set.fraction == 0) return &set;
  return nullptr;
}

class ChannelInt final : public CacheMethod {
 public:
  ChannelInt(const ChannelIntName& name, const formats::Codebook& codebook)
      : name_(name), codebook_(codebook), datatype_(codec::make_datatype(uniform_levels(name.bits))) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int layer,
                                                       const formats::CachedTensor& tensor) const override {
    if (tensor.thresholds == formats::ThresholdScope::token)
      return token_storage({datatype_}, static_cast<std::size_t>(tensor.channels()), {});
    const formats::TensorCodebook* found = codebook_.find(layer, tensor.name);
    if (found == nullptr || found->tensor != tensor) {
      throw base::InvalidInput(base::concat(name_of(name_), ": the codebook holds no tensor '", tensor.name,
                                            "' of ", tensor.heads, " heads of ", tensor.dim, " for layer ",
                                            layer, "; calibrate this model"));
    }
    if (const formats::OutlierSet* set = extremes(*found, name_.after_rope)) {
      const auto point = name_.after_rope ? point_after_rope(tensor) : fisher::CachePoint::cached;
      return channel_storage({datatype_, point}, {set->lower, set->upper, 0}, 0);
    }
    throw base::InvalidInput(base::concat(
        name_of(name_), ": the codebook holds no range of the channels of layer ", layer, ", ", tensor.name,
        name_.after_rope ? "s after RoPE; calibrate" : "s with their sinks; calibrate with --ablation",
        " and 0 among --outliers"));
  }

 private:
  ChannelIntName name_;
  const formats::Codebook& codebook_;
  codec::Datatype datatype_;
};

// Six names, by bits.
std::vector<ChannelIntName> all_names() {
  std::vector<ChannelIntName> names;
  for (const int bits : {2, 3, 4})
    for (const bool after_rope : {true, false}) names.push_back({bits, after_rope});
  return names;
}

std::unique_ptr<CacheMethod> make(std::string_view text, const formats::Codebook* codebook) {
  for (const ChannelIntName& name : all_names()) {
    if (name_of(name) != text) continue;
    if (codebook == nullptr)
      throw base::InvalidInput(base::concat(text, " needs a codebook; name one with --codebook"));
    return std::make_unique<ChannelInt>(name, *codebook);
  }
  return nullptr;
}

std::vector<std::string> served(const formats::Codebook* codebook) {
  std::vector<std::string> names;
  if (codebook == nullptr || codebook->layers.empty()) return names;
  for (const ChannelIntName& name : all_names()) {
    for (const formats::TensorCodebook& tensor : codebook->layers.front().tensors) {
      if (extremes(tensor, name.after_rope) == nullptr) continue;
      names.push_back(name_of(name));
      break;
    }
  }
  return names;
}

std::vector<std::string> by_default(const formats::Codebook* /*codebook*/) {
  return {};
}

}  // namespace

MethodFamily channel_int_methods() {
  return {{"intB-channel, intB-channel-rope",
           "uniform levels on each key channel's range, before RoPE (of calibrate --ablation) or after it"},
          make,
          served,
          by_default};
}

}  // namespace kvcal::calib
