// The codebook's own datatypes: keys before RoPE by its thresholds, values by thresholds found in each token,
// non-uniform levels, outliers kept apart, sinks in fp16 (docs/method.md).
#include <cstdio>
#include <optional>

#include "base/error.h"
#include "calib/validate/cache_method.h"
#include "cuda/row_codec.h"

namespace kvcal::calib {

MethodFamily nuq_methods();

namespace {

struct NuqName {
  int bits = 0;
  double fraction = 0;
  bool qnorm = false;
};

std::string percent_text(double fraction) {
  char text[40];
  std::snprintf(text, sizeof(text), "%g%%", fraction * 100);
  return text;
}

std::string name_of(const NuqName& name) {
  std::string text = base::concat("nuq", name.bits);
  if (name.fraction > 0) text += "-" + percent_text(name.fraction);
  return text + (name.qnorm ? "-qn" : "");
}

// Every datatype that the first layer's first tensor holds.
std::vector<NuqName> held(const formats::Codebook& codebook) {
  std::vector<NuqName> names;
  if (codebook.layers.empty() || codebook.layers.front().tensors.empty()) return names;
  for (const formats::OutlierSet& set : codebook.layers.front().tensors.front().outliers) {
    for (const formats::Datatype& datatype : set.datatypes)
      if (datatype.bits >= 2 && datatype.bits <= 4) names.push_back({datatype.bits, set.fraction, false});
  }
  return names;
}

std::string list(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

/// What the codebook says of one tensor at one fraction and bits.
struct TensorFit {
  const formats::TensorCodebook& tensor;
  const formats::OutlierSet& outliers;
  const formats::Datatype& datatype;
};

codec::Datatype codec_datatype(const formats::Datatype& datatype, bool qnorm) {
  if (!qnorm) return codec::make_datatype(datatype.centroids);
  return codec::make_datatype(datatype.centroids, {static_cast<float>(datatype.qnorm_scale),
                                                   static_cast<float>(datatype.qnorm_offset)});
}

std::int64_t table_bytes(const codec::Datatype& datatype) {
  return std::int64_t{4} << datatype.bits;  // the levels in float32
}

class NuqStorage : public TensorStorage {
 public:
  NuqStorage(const TensorFit& fit, bool qnorm, std::size_t sinks)
      : datatype_(codec_datatype(fit.datatype, qnorm)), fraction_(fit.outliers.fraction), sinks_(sinks) {}

  [[nodiscard]] fisher::CachePoint point() const override { return fisher::CachePoint::cached; }
  [[nodiscard]] double outlier_fraction() const override { return fraction_; }

 protected:
  [[nodiscard]] codec::RowOptions rows() const { return {.sinks = sinks_, .threads = 1}; }
  [[nodiscard]] static StorageUse use_of(const codec::PackedRows& packed) {
    return {static_cast<std::int64_t>(packed.bytes()),
            static_cast<std::int64_t>(packed.tokens * packed.channels),
            static_cast<std::int64_t>(packed.rows() * packed.channels),
            static_cast<std::int64_t>(packed.outliers.size())};
  }

  codec::Datatype datatype_;
  double fraction_;
  std::size_t sinks_;
};

/// Thresholds by channel, from the codebook.
class ChannelStorage final : public NuqStorage {
 public:
  ChannelStorage(const TensorFit& fit, bool qnorm, std::size_t sinks)
      : NuqStorage(fit, qnorm, sinks),
        normaliser_(fit.outliers.lower, fit.outliers.upper, fit.outliers.fraction) {}

  StorageUse store(std::span<const float> x, std::span<float> read) const override {
    const codec::PackedRows packed = codec::encode_keys(x, normaliser_, datatype_, rows());
    codec::decode_keys(packed, normaliser_, datatype_, read, 1);
    return use_of(packed);
  }

  [[nodiscard]] std::int64_t static_bytes() const override {
    // Scale and zero in fp16, and where outliers are kept the two thresholds in float32.
    const std::int64_t channel = static_cast<std::int64_t>(sizeof(codec::Affine)) + (fraction_ > 0 ? 8 : 0);
    return table_bytes(datatype_) + static_cast<std::int64_t>(normaliser_.channels()) * channel;
  }

 private:
  codec::KeyNormaliser normaliser_;
};

/// Thresholds by token, found there.
class TokenStorage final : public NuqStorage {
 public:
  TokenStorage(const TensorFit& fit, bool qnorm, std::size_t sinks, bool per_head)
      : NuqStorage(fit, qnorm, sinks),
        channels_(static_cast<std::size_t>(fit.tensor.tensor.channels())),
        options_{fit.outliers.fraction, per_head ? fit.tensor.tensor.heads : 1} {}

  StorageUse store(std::span<const float> x, std::span<float> read) const override {
    const codec::PackedRows packed = codec::encode_values(x, channels_, options_, datatype_, rows());
    codec::decode_values(packed, datatype_, read, 1);
    return use_of(packed);
  }

  [[nodiscard]] std::int64_t static_bytes() const override { return table_bytes(datatype_); }

 private:
  std::size_t channels_;
  codec::ValueOptions options_;
};

class Nuq final : public CacheMethod {
 public:
  Nuq(const NuqName& name, const formats::Codebook& codebook) : name_(name), codebook_(codebook) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int layer,
                                                       const formats::CachedTensor& tensor) const override {
    const TensorFit fit = find(layer, tensor);
    const auto sinks = static_cast<std::size_t>(codebook_.calibration.sinks);
    if (tensor.thresholds == formats::ThresholdScope::channel)
      return std::make_unique<ChannelStorage>(fit, name_.qnorm, sinks);
    return std::make_unique<TokenStorage>(fit, name_.qnorm, sinks,
                                          codebook_.calibration.value_scope == "head");
  }

 private:
  [[nodiscard]] TensorFit find(int layer, const formats::CachedTensor& tensor) const {
    const auto missing = [&](const std::string& what) {
      throw base::InvalidInput(base::concat(name_of(name_), ": the codebook holds no ", what, " for layer ",
                                            layer, ", ", tensor.name, "; calibrate the whole model anew"));
    };
    for (const formats::LayerCodebook& held : codebook_.layers) {
      if (held.index != layer) continue;
      const formats::TensorCodebook* found = held.find(tensor.name);
      if (found == nullptr || found->tensor != tensor)
        missing(base::concat("tensor of ", tensor.heads, " heads of ", tensor.dim));
      for (const formats::OutlierSet& set : found->outliers) {
        if (formats::outlier_group_name(set.fraction) != formats::outlier_group_name(name_.fraction))
          continue;
        for (const formats::Datatype& datatype : set.datatypes)
          if (datatype.bits == name_.bits) return {*found, set, datatype};
      }
      missing("such datatype");
    }
    missing("layer");
    throw base::Error("unreachable");
  }

  NuqName name_;
  const formats::Codebook& codebook_;
};

std::vector<std::string> served(const formats::Codebook* codebook) {
  std::vector<std::string> names;
  if (codebook == nullptr) return names;
  for (NuqName name : held(*codebook)) {
    names.push_back(name_of(name));
    name.qnorm = true;
    names.push_back(name_of(name));
  }
  return names;
}

std::vector<std::string> by_default(const formats::Codebook* codebook) {
  std::vector<std::string> names;
  if (codebook == nullptr) return names;
  for (const NuqName& name : held(*codebook)) names.push_back(name_of(name));
  return names;
}

// "nuq3-1%-qn"; nothing where the text is no such name.
std::optional<NuqName> parse(std::string_view text) {
  if (!text.starts_with("nuq") || text.size() < 4) return std::nullopt;
  NuqName name{text[3] - '0', 0, text.ends_with("-qn")};
  if (name.bits < 1 || name.bits > 9) return std::nullopt;
  text.remove_prefix(4);
  if (name.qnorm) text.remove_suffix(3);
  if (text.empty()) return name;
  if (!text.starts_with('-') || !text.ends_with('%')) return std::nullopt;
  const std::string number(text.substr(1, text.size() - 2));
  char* end = nullptr;
  name.fraction = std::strtod(number.c_str(), &end) / 100;
  if (number.empty() || *end != '\0' || !(name.fraction >= 0 && name.fraction < 0.5)) return std::nullopt;
  return name;
}

std::unique_ptr<CacheMethod> make(std::string_view text, const formats::Codebook* codebook) {
  const std::optional<NuqName> name = parse(text);
  if (!name) return nullptr;
  if (codebook == nullptr)
    throw base::InvalidInput(base::concat(text, " needs a codebook; name one with --codebook"));
  for (const NuqName& one : held(*codebook)) {
    const bool same = one.bits == name->bits && formats::outlier_group_name(one.fraction) ==
                                                    formats::outlier_group_name(name->fraction);
    if (same) return std::make_unique<Nuq>(*name, *codebook);
  }
  throw base::InvalidInput(
      base::concat(text, ": the codebook cannot serve it; it has ", list(served(codebook))));
}

}  // namespace

MethodFamily nuq_methods() {
  return {
      {"nuqB, nuqB-P%, each with -qn", "the codebook's datatypes of B bits, P % outliers kept apart, Q-Norm"},
      make,
      served,
      by_default};
}

}  // namespace kvcal::calib
