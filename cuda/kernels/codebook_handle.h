// cuda/kernels/codebook_handle.h: an open flat codebook: its bytes on the host, and where they lie for the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/kernels/cache_view.h"
#include "cuda/kernels/flat_format.h"
#include "cuda/kernels/kvcal_cuda.h"

/// The C API's opaque codebook.
struct KvcalCodebook {
 public:
  /// Copies the bytes. Nothing but bytes() may be called before flat_problem() found nothing wrong with them, nor
  /// view(), where the device is not the CPU, before move_to_device().
  KvcalCodebook(std::span<const std::byte> flat, KvcalDevice device);
  ~KvcalCodebook();
  KvcalCodebook(const KvcalCodebook&) = delete;
  KvcalCodebook& operator=(const KvcalCodebook&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const;
  /// To the current device, and loads the kernels of its layers. What the CUDA runtime says, "" where all is well.
  [[nodiscard]] std::string move_to_device();
  /// Why it cannot be used now: another device is current than the one it lies on. "": it can.
  [[nodiscard]] std::string place_problem() const;

  [[nodiscard]] const KvcalFlatHeader& header() const;
  [[nodiscard]] KvcalDevice device() const { return device_; }
  /// Its bits and fractions too, whichever version. layer < header().layers.
  [[nodiscard]] KvcalFlatLayer layer(std::uint32_t layer) const;
  /// Why the kernels cannot serve a layer: a head dimension without a kernel, too many sinks. "": they can.
  [[nodiscard]] std::string layer_problem(std::uint32_t layer) const;
  /// As the kernels take it. layer_problem() is "".
  [[nodiscard]] kvcal::codec::LayerView view(std::uint32_t layer) const;
  /// The share of outliers that a codebook was made with: the block has the float that is nearest to it.
  [[nodiscard]] static double exact_fraction(float stored);

 private:
  std::vector<std::uint64_t> flat_;  // of 8 bytes, for what it holds is
  std::size_t size_;
  KvcalDevice device_;
  int ordinal_ = -1;  // of the CUDA device
  void* memory_ = nullptr;
};
