#include "formats/datatype_choice.h"

#include <cstdio>

#include "base/error.h"

namespace kvcal::formats {

std::string DatatypeChoice::name() const {
  std::string text = base::concat("nuq", bits);
  if (fraction > 0) {
    char percent[40];
    std::snprintf(percent, sizeof(percent), "-%g%%", fraction * 100);
    text += percent;
  }
  return text + (qnorm ? "-qn" : "");
}

std::vector<DatatypeChoice> held_datatypes(const Codebook& codebook) {
  std::vector<DatatypeChoice> held;
  if (codebook.layers.empty() || codebook.layers.front().tensors.empty()) return held;
  for (const OutlierSet& set : codebook.layers.front().tensors.front().outliers)
    for (const Datatype& datatype : set.datatypes) held.push_back({datatype.bits, set.fraction, false});
  return held;
}

ChosenDatatype find_datatype(const std::vector<OutlierSet>& sets, const DatatypeChoice& choice) {
  for (const OutlierSet& set : sets) {
    if (outlier_group_name(set.fraction) != outlier_group_name(choice.fraction)) continue;
    for (const Datatype& datatype : set.datatypes)
      if (datatype.bits == choice.bits) return {&set, &datatype};
  }
  return {};
}

ChosenDatatype require_datatype(int layer, const TensorCodebook& tensor, const DatatypeChoice& choice) {
  const ChosenDatatype found = find_datatype(tensor.outliers, choice);
  if (found.datatype == nullptr) {
    throw base::InvalidInput(base::concat("layer ", layer, ", ", tensor.tensor.name,
                                          "s: the codebook holds no ", choice.name(),
                                          "; calibrate with these --bits and --outliers"));
  }
  return found;
}

}  // namespace kvcal::formats
