// The codebook's own datatypes: keys before RoPE by its thresholds, values by thresholds found in each token,
// non-uniform levels, outliers kept apart, sinks in fp16 (docs/method.md). By token, or in the pages of an engine's cache.
#include <optional>

#include "base/error.h"
#include "calib/validate/methods/codec_storage.h"
#include "calib/validate/methods/record_storage.h"
#include "calib/validate/methods/turned_storage.h"
#include "formats/datatype_choice.h"

namespace kvcal::calib {

MethodFamily nuq_methods();

namespace {

constexpr const char* kQnorm = "-qn";
constexpr const char* kNoSinks = "-nosink";

struct NuqName {
  int bits = 0;
  double fraction = 0;
  bool qnorm = false;
  bool no_sinks = false;  // nothing is kept exact, and the statistics count the sinks: a step of the ablation
  std::optional<RecordCoder> coder = std::nullopt;  // in paged records, and who writes and reads them
};

std::string name_of(const NuqName& name) {
  return formats::DatatypeChoice{name.bits, name.fraction, name.qnorm}.name() +
         (name.no_sinks ? kNoSinks : "") +
         (!name.coder                       ? ""
          : *name.coder == RecordCoder::cpu ? kPagedSuffix
                                            : kKernelsSuffix);
}

const std::vector<formats::OutlierSet>& sets_of(const formats::TensorCodebook& tensor, bool no_sinks) {
  return no_sinks ? tensor.with_sinks : tensor.outliers;
}

// Every datatype that the first layer's first tensor holds.
std::vector<NuqName> held(const formats::Codebook& codebook) {
  std::vector<NuqName> names;
  if (codebook.layers.empty() || codebook.layers.front().tensors.empty()) return names;
  for (const bool no_sinks : {false, true}) {
    for (const formats::OutlierSet& set : sets_of(codebook.layers.front().tensors.front(), no_sinks)) {
      for (const formats::Datatype& datatype : set.datatypes)
        if (datatype.bits >= 2 && datatype.bits <= 4)
          names.push_back({datatype.bits, set.fraction, false, no_sinks});
    }
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

std::int64_t table_bytes(const codec::Datatype& datatype) {
  return std::int64_t{4} << datatype.bits;  // the levels in float32
}

RecordOptions record_options(const formats::CachedTensor& tensor, RecordCoder coder,
                             const codec::Datatype& datatype, double fraction, std::int64_t sinks) {
  return {coder,
          datatype,
          static_cast<std::size_t>(tensor.heads),
          static_cast<std::size_t>(tensor.dim),
          fraction,
          static_cast<std::size_t>(sinks)};
}

/// Why paged records have no place for the codebook's tensors; "" where they have.
std::string paged_problem(const formats::Codebook& codebook) {
  codec::Datatype datatype;
  datatype.bits = 4;  // any
  for (const formats::LayerCodebook& layer : codebook.layers) {
    for (const formats::TensorCodebook& tensor : layer.tensors) {
      const std::string problem = record_problem(
          record_options(tensor.tensor, RecordCoder::cpu, datatype, 0, codebook.calibration.sinks));
      if (!problem.empty())
        return base::concat("layer ", layer.index, ", ", tensor.tensor.name, ": ", problem);
    }
  }
  return {};
}

class Nuq final : public CacheMethod {
 public:
  Nuq(const NuqName& name, const formats::Codebook& codebook) : name_(name), codebook_(codebook) {}

  [[nodiscard]] std::unique_ptr<TensorStorage> storage(int layer,
                                                       const formats::CachedTensor& tensor) const override {
    const TensorFit fit = find(layer, tensor);
    std::unique_ptr<TensorStorage> storage = plain_storage(tensor, fit);
    const auto block = static_cast<std::size_t>(fit.tensor.rotation_block);
    // Records turn what they hold by themselves.
    return block > 0 && !name_.coder ? turned_storage(std::move(storage), block) : std::move(storage);
  }

 private:
  // Of the tensor as the codebook's statistics are of it, turned perhaps; records are of it as it is.
  [[nodiscard]] std::unique_ptr<TensorStorage> plain_storage(const formats::CachedTensor& tensor,
                                                             const TensorFit& fit) const {
    const formats::CalibrationInfo& calibration = codebook_.calibration;
    const codec::Datatype datatype = codec_datatype(fit.datatype, name_.qnorm);
    if (name_.coder) return record_storage(tensor, fit, datatype);
    const CodecOptions options{datatype, fisher::CachePoint::cached,
                               name_.no_sinks ? 0 : static_cast<std::size_t>(calibration.sinks),
                               table_bytes(datatype)};
    const double fraction = fit.outliers.fraction;
    if (tensor.thresholds == formats::ThresholdScope::channel)
      return channel_storage(options, key_normaliser(fit.outliers, fit.datatype), fraction);
    return token_storage(options, static_cast<std::size_t>(tensor.channels()),
                         {fraction, calibration.value_scope == "head" ? tensor.heads : 1});
  }

  [[nodiscard]] std::unique_ptr<TensorStorage> record_storage(const formats::CachedTensor& tensor,
                                                              const TensorFit& fit,
                                                              const codec::Datatype& datatype) const {
    RecordOptions options =
        record_options(tensor, *name_.coder, datatype, fit.outliers.fraction, codebook_.calibration.sinks);
    options.value_rotation_block = fit.tensor.rotation_block;
    if (tensor.thresholds == formats::ThresholdScope::channel)
      return key_record_storage(options, key_normaliser(fit.outliers, fit.datatype));
    return value_record_storage(options);
  }

  [[nodiscard]] TensorFit find(int layer, const formats::CachedTensor& tensor) const {
    const auto missing = [&](const std::string& what) {
      throw base::InvalidInput(base::concat(name_of(name_), ": the codebook holds no ", what, " for layer ",
                                            layer, ", ", tensor.name, "; calibrate the whole model anew"));
    };
    const formats::TensorCodebook* found = codebook_.find(layer, tensor.name);
    if (found == nullptr || found->tensor != tensor)
      missing(base::concat("tensor of ", tensor.heads, " heads of ", tensor.dim));
    const formats::ChosenDatatype chosen =
        formats::find_datatype(sets_of(*found, name_.no_sinks), {name_.bits, name_.fraction, false});
    if (chosen.datatype != nullptr) return {*found, *chosen.outliers, *chosen.datatype};
    missing("such datatype");
    throw base::Error("unreachable");
  }

  NuqName name_;
  const formats::Codebook& codebook_;
};

std::vector<std::string> served(const formats::Codebook* codebook) {
  std::vector<std::string> names;
  if (codebook == nullptr) return names;
  const bool paged = paged_problem(*codebook).empty();
  for (NuqName name : held(*codebook)) {
    names.push_back(name_of(name));
    if (name.no_sinks) continue;
    for (const bool qnorm : {false, true}) {
      name.qnorm = qnorm;
      name.coder.reset();
      if (qnorm) names.push_back(name_of(name));
      if (!paged) continue;
      for (const RecordCoder coder : {RecordCoder::cpu, RecordCoder::kernels}) {
        name.coder = coder;
        names.push_back(name_of(name));
      }
    }
  }
  return names;
}

std::vector<std::string> by_default(const formats::Codebook* codebook) {
  std::vector<std::string> names;
  if (codebook == nullptr) return names;
  for (const NuqName& name : held(*codebook))
    if (!name.no_sinks) names.push_back(name_of(name));
  return names;
}

/// Takes `suffix` from the end of a name, where it has it.
bool take_suffix(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.remove_suffix(suffix.size());
  return true;
}

// "nuq3-1%-qn-paged"; nothing where the text is no such name.
std::optional<NuqName> parse(std::string_view text) {
  if (!text.starts_with("nuq") || text.size() < 4) return std::nullopt;
  NuqName name;
  name.bits = text[3] - '0';
  if (name.bits < 1 || name.bits > 9) return std::nullopt;
  text.remove_prefix(4);
  if (take_suffix(text, kPagedSuffix))
    name.coder = RecordCoder::cpu;
  else if (take_suffix(text, kKernelsSuffix))
    name.coder = RecordCoder::kernels;
  else
    name.no_sinks = take_suffix(text, kNoSinks);
  if (!name.no_sinks) name.qnorm = take_suffix(text, kQnorm);
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
    const bool same =
        one.bits == name->bits && one.no_sinks == name->no_sinks &&
        formats::outlier_group_name(one.fraction) == formats::outlier_group_name(name->fraction);
    if (!same) continue;
    const std::string problem = name->coder ? paged_problem(*codebook) : "";
    if (!problem.empty()) throw base::InvalidInput(base::concat(text, ": ", problem));
    return std::make_unique<Nuq>(*name, *codebook);
  }
  throw base::InvalidInput(base::concat(
      text, ": the codebook cannot serve it; it has ", list(served(codebook)),
      name->no_sinks ? ". What the ablation needs is stored by kvcal calibrate --ablation" : ""));
}

}  // namespace

MethodFamily nuq_methods() {
  return {{"nuqB, nuqB-P%, each with -qn, -nosink, -paged or -kernels",
           "the codebook's datatypes of B bits, P % outliers kept apart, Q-Norm, without exact sinks, in an "
           "engine's pages"},
          make,
          served,
          by_default};
}

}  // namespace kvcal::calib
