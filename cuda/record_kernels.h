// cuda/record_kernels.h: the kernels (cuda/kernels/) as a codec of whole sequences: the same pages as record_codec.h, made
// and read by what a serving engine runs; on the CUDA device where there is one, else their source lane by lane.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/record_codec.h"

struct KvcalCodebook;

namespace kvcal::codec {

/// Why the kernels run on the CPU: there is no CUDA device, or this build has none of its code. "": there is one.
[[nodiscard]] const std::string& kernels_device_problem();

/// For one layer. May be used by several threads at once.
class RecordKernels {
 public:
  /// Throws base::InvalidInput where layer and layout disagree.
  RecordKernels(const RecordLayer& layer, const KvcalRecordLayout& layout);

  /// As encode_records() and decode_records(): the same bytes, counters and numbers. Throw base::SystemError where the
  /// device fails.
  [[nodiscard]] RecordPages encode(std::span<const float> keys, std::span<const float> values) const;
  void decode(const RecordPages& pages, std::span<float> keys, std::span<float> values) const;

 private:
  struct Close {
    void operator()(KvcalCodebook* codebook) const;
  };
  RecordLayer layer_;
  KvcalRecordLayout layout_;
  std::unique_ptr<KvcalCodebook, Close> codebook_;
};

}  // namespace kvcal::codec
