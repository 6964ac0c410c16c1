// formats/internal/hdf5_guard_messages.h: an object's header, of version 1 or 2, and the messages in it that
// hdf5_guard.h knows. Sections "Data Object Headers" of the HDF5 File Format Specification 3.0.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/internal/hdf5_guard_image.h"

namespace kvcal::formats {

struct GuardSpace {
  bool null = false;                   ///< a dataspace without elements or shape
  bool grows = false;                  ///< may be larger than it is
  std::vector<std::uint64_t> extents;  ///< empty for a scalar
};

struct GuardType {
  bool variable = false;  ///< text of variable length: in the file 16 bytes that point into a global heap
  std::uint64_t bytes = 0;
};

struct GuardLayout {
  enum class Kind { compact, contiguous, chunk_tree, single_chunk };
  Kind kind = Kind::compact;
  std::uint64_t at = 0;  ///< of the message, for errors
  std::uint64_t address = kNoAddress;
  std::uint64_t bytes = 0;           ///< stored, as the message says; chunk_tree: not said
  std::vector<std::uint64_t> chunk;  ///< extents, then the element's size
  bool filtered = false;             ///< single_chunk: goes through the filters
};

/// Name in a group, and what a symbol table repeats of the object that it names (else kNoAddress).
struct GuardLink {
  std::uint64_t at = 0;
  std::string_view name;
  std::uint64_t address = kNoAddress;
  std::uint64_t cached_tree = kNoAddress;
  std::uint64_t cached_heap = kNoAddress;
};

struct GuardSymbolTable {
  std::uint64_t tree = kNoAddress;
  std::uint64_t heap = kNoAddress;
};

struct GuardAttribute {
  std::string_view name;
  GuardType type;
  std::uint64_t data_at = 0;
  std::uint64_t elements = 0;
};

struct GuardObject {
  std::uint64_t at = 0;
  std::optional<GuardSpace> space;
  std::optional<GuardType> type;
  std::optional<GuardLayout> layout;
  std::optional<std::uint64_t> fill_bytes;
  std::optional<std::uint64_t> old_fill_bytes;  ///< the value once more, as HDF5 1.4 had it
  std::optional<GuardSymbolTable> symbol_table;
  bool fletcher = false;  ///< a filter pipeline, which then is Fletcher-32 alone
  bool link_info = false;
  bool group_info = false;
  bool attribute_info = false;
  bool reference_count = false;
  bool modified = false;  ///< says when
  std::vector<GuardLink> links;
  std::vector<GuardAttribute> attributes;
};

/// Claims the header with its continuation blocks, and reads its messages.
[[nodiscard]] GuardObject read_guarded_object(GuardImage& image, std::uint64_t address);

/// The elements' bytes; throws where they are more than the file. `at`: for the error.
[[nodiscard]] std::uint64_t guarded_bytes(const GuardImage& image, std::uint64_t at, const GuardSpace& space,
                                          std::uint64_t element_bytes);

}  // namespace kvcal::formats
