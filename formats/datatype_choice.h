// formats/datatype_choice.h: one of a codebook's datatypes, by its name.
#pragma once

#include <string>
#include <vector>

#include "formats/codebook.h"

namespace kvcal::formats {

/// nuqB: so many bits, of an outlier fraction, with or without Q-Norm.
struct DatatypeChoice {
  int bits = 0;
  double fraction = 0;
  bool qnorm = false;

  [[nodiscard]] std::string name() const;  ///< "nuq3-1%-qn"

  bool operator==(const DatatypeChoice&) const = default;
};

/// All that the first layer's first tensor holds, without Q-Norm, by fraction and bits. Every other has the same in
/// the files that calibrate writes.
[[nodiscard]] std::vector<DatatypeChoice> held_datatypes(const Codebook& codebook);

/// What a tensor holds of it; null where it does not. Fractions are the same where their groups have one name.
struct ChosenDatatype {
  const OutlierSet* outliers = nullptr;
  const Datatype* datatype = nullptr;
};
[[nodiscard]] ChosenDatatype find_datatype(const std::vector<OutlierSet>& sets, const DatatypeChoice& choice);

/// Throws InvalidInput naming the layer and the tensor where it holds no such datatype.
[[nodiscard]] ChosenDatatype require_datatype(int layer, const TensorCodebook& tensor,
                                              const DatatypeChoice& choice);

}  // namespace kvcal::formats
