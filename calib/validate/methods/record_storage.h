// calib/validate/methods/record_storage.h: storages in paged records (cuda/kernels/record_format.h): what an engine's
// pages keep, with slots for outliers and values' scales by head; by the CPU codec, or by the kernels themselves.
#pragma once

#include <cstdint>
#include <memory>

#include "calib/validate/cache_method.h"
#include "cuda/kernels/codec_math.h"
#include "cuda/vector_codec.h"

namespace kvcal::calib {

enum class RecordCoder {
  cpu,     ///< cuda/record_codec.h
  kernels  ///< cuda/record_kernels.h: on the GPU there is, else their source lane by lane
};

struct RecordOptions {
  RecordCoder coder = RecordCoder::cpu;
  codec::Datatype datatype;
  std::size_t heads = 0, dim = 0;
  double outliers = 0;    ///< share of the numbers that are kept apart, slots permitting
  std::size_t sinks = 0;  ///< first tokens of a sequence, kept in fp16
  /// Channels of a head's value that are turned together (cuda/hadamard.h); 0: none.
  std::int64_t value_rotation_block = 0;
};

/// Why records have no place for a tensor, "" where they have: the head dimension, or the number of sinks.
[[nodiscard]] std::string record_problem(const RecordOptions& options);

/// Thresholds by channel, [heads * dim]. record_problem() is "".
[[nodiscard]] std::unique_ptr<TensorStorage> key_record_storage(const RecordOptions& options,
                                                                codec::KeyNormaliser normaliser);

/// Thresholds found in each token and head.
[[nodiscard]] std::unique_ptr<TensorStorage> value_record_storage(const RecordOptions& options);

}  // namespace kvcal::calib
