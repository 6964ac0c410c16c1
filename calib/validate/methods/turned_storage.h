// calib/validate/methods/turned_storage.h: a storage of a tensor whose heads are turned before and turned back after.
#pragma once

#include <cstddef>
#include <memory>

#include "calib/validate/cache_method.h"

namespace kvcal::calib {

/// Stores what turn_hadamard() (cuda/hadamard.h) makes of blocks of so many channels by `inner`, and turns back what is read.
/// block: a power of two that divides the tensor's channels. Channels in errors are those of the turned tensor.
[[nodiscard]] std::unique_ptr<TensorStorage> turned_storage(std::unique_ptr<TensorStorage> inner,
                                                            std::size_t block);

}  // namespace kvcal::calib
