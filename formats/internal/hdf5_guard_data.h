// formats/internal/hdf5_guard_data.h: what lies outside of object headers: the data of datasets, and the text of
// variable length that attributes point to.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "formats/internal/hdf5_guard_messages.h"

namespace kvcal::formats {

/// Claims the data of a dataset, and its chunks' B-tree where it has one.
void check_guarded_data(GuardImage& image, const GuardObject& dataset);

/// The global heaps (GCOL) of a file, each claimed when first met.
class GuardTexts {
 public:
  /// All texts together may be as long as the file: one that many point to is read as often.
  void check(GuardImage& image, const GuardAttribute& attribute);

 private:
  void read_heap(GuardImage& image, std::uint64_t address);

  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t>
      bytes_;  // of (heap, index); (heap, 0): read
  std::uint64_t total_ = 0;
};

}  // namespace kvcal::formats
