#include "formats/internal/hdf5_guard_messages.h"

#include <utility>

#include "base/error.h"
#include "formats/internal/hdf5_guard_header.h"

namespace kvcal::formats {
namespace {

using base::concat;

constexpr std::uint64_t kMaxDimensions = 8;
constexpr std::string_view kUnknownType =
    "has an element type that schema 1 does not allow; expected little-endian integers, float32, float64 or "
    "text";

/// The messages of one object, each read by the function of its type.
class Messages {
 public:
  Messages(GuardImage& image, GuardObject& object, bool old) : image_(image), object_(object), old_(old) {}

  void read(const GuardMessage& message);

 private:
  void once(bool& seen, std::uint64_t at, std::string_view what) const {
    if (std::exchange(seen, true)) image_.damaged(at, concat("a second ", what));
  }
  template <typename Value>
  void set(std::optional<Value>& slot, Value value, const GuardCursor& from, std::string_view what) const {
    if (slot.has_value()) image_.damaged(from.at(), concat("a second ", what));
    slot = std::move(value);
  }
  // Each false where it knows no such message.
  bool read_of_dataset(std::uint64_t type_of_message, GuardCursor& from);
  bool read_of_group(std::uint64_t type_of_message, GuardCursor& from);
  bool read_of_any(std::uint64_t type_of_message, GuardCursor& from);
  void no_heap(GuardCursor& from, std::string_view what) const;
  [[nodiscard]] GuardSpace space(GuardCursor& from) const;
  [[nodiscard]] GuardType type(GuardCursor& from) const;
  [[nodiscard]] std::uint64_t fill(GuardCursor& from) const;
  [[nodiscard]] std::uint64_t old_fill(GuardCursor& from) const;
  [[nodiscard]] GuardLayout layout(GuardCursor& from) const;
  void single_chunk(GuardCursor& from, GuardLayout& layout) const;
  void filters(GuardCursor& from) const;
  void link(GuardCursor& from);
  void link_info(GuardCursor& from);
  void group_info(GuardCursor& from);
  void attribute_info(GuardCursor& from);
  void attribute(GuardCursor& from);
  [[nodiscard]] GuardAttribute attribute_value(GuardCursor& from, GuardAttribute read,
                                               std::uint64_t type_bytes, std::uint64_t space_bytes,
                                               bool padded) const;

  GuardImage& image_;
  GuardObject& object_;
  bool old_;
};

GuardSpace Messages::space(GuardCursor& from) const {
  const std::uint64_t version = from.number_to(1, 1, 2, "a dataspace of version");
  const std::uint64_t rank = from.number_to(1, 0, kMaxDimensions, "more than 8 dimensions:");
  const std::uint64_t flags = from.number_to(1, 0, 1, "a dataspace with the flags");
  GuardSpace result;
  if (version == 1) {
    (void)from.text(5);
  } else {
    const std::uint64_t kind = from.number_to(1, 0, 2, "a dataspace of the kind");
    result.null = kind == 2;
    if ((kind == 1) != (rank > 0)) image_.damaged(from.at(), "a dataspace whose kind contradicts its rank");
  }
  for (std::uint64_t i = 0; i < rank; ++i) result.extents.push_back(from.number(8));
  for (std::uint64_t i = 0; flags == 1 && i < rank; ++i) {
    const std::uint64_t most = from.number(8);
    if (most < result.extents[i]) image_.damaged(from.at(), "an extent above its own limit");
    if (most > result.extents[i]) result.grows = true;
  }
  return result;
}

/// How the file format spells a little-endian number, after the first byte (version 1 and class).
std::string number_type(std::string_view head, unsigned bytes, std::string_view tail) {
  std::string text(head);
  for (const unsigned value : {bytes, 0U, 0U, 0U, 0U, 0U, bytes * 8, 0U}) text += static_cast<char>(value);
  return text + std::string(tail);
}

/// Byte for byte as HDF5 writes H5T_STD_I8LE and its kin: libhdf5 gets no other numbers to interpret.
bool is_known_number(std::string_view encoded) {
  using namespace std::string_view_literals;
  for (const unsigned bytes : {1U, 2U, 4U, 8U}) {
    if (encoded == number_type("\x10\0\0\0"sv, bytes, "") ||
        encoded == number_type("\x10\x08\0\0"sv, bytes, ""))
      return true;
  }
  return encoded == number_type("\x11\x20\x1f\0"sv, 4, "\x17\x08\0\x17\x7f\0\0\0"sv) ||
         encoded == number_type("\x11\x20\x3f\0"sv, 8, "\x34\x0b\0\x34\xff\x03\0\0"sv);
}

GuardType Messages::type(GuardCursor& from) const {
  const std::uint64_t at = from.at();
  const auto head = static_cast<unsigned>(from.number(1));
  const std::uint64_t bits = from.number(3);
  const std::uint64_t bytes = from.number(4);
  if (head == 0x10 || head == 0x11) {
    const std::uint64_t length = head == 0x10 ? 12 : 20;
    (void)from.text(length - 8);
    if (is_known_number(image_.text(at, length))) return {false, bytes};
  } else if (head == 0x13) {
    // Padding (0 to 2) in the low four bits, ASCII or UTF-8 in the next.
    if ((bits & 0xf) <= 2 && (bits >> 4) <= 1 && bytes > 0) return {false, bytes};
  } else if (head == 0x19) {
    const std::uint64_t base_at = from.at();
    (void)from.text(12);
    const bool text = (bits & 0xf) == 1 && (bits >> 4 & 0xf) <= 2 && (bits >> 8) <= 1 && bytes == 16;
    const std::string_view base = image_.text(base_at, 12);
    using namespace std::string_view_literals;
    if (text && base == number_type("\x10\0\0\0"sv, 1, "")) return {true, bytes};
  }
  image_.foreign(at, kUnknownType);
}

std::uint64_t Messages::fill(GuardCursor& from) const {
  bool defined = false;
  if (from.number_to(1, 2, 3, "a fill value of version") == 2) {
    (void)from.number_to(1, 1, 3, "an unknown time of allocation");
    (void)from.number_to(1, 0, 2, "an unknown time of filling");
    defined = from.number_to(1, 0, 1, "a fill value that is neither set nor unset:") == 1;
  } else {
    const std::uint64_t flags = from.number_to(1, 1, 0x2b, "a fill value with the flags");
    defined = (flags & 0x20) != 0;
    if ((flags & 0x03) == 0 || (flags & 0x0c) == 0x0c || (flags & 0x10) != 0)
      image_.foreign(from.at(), concat("has a fill value with the flags ", flags));
  }
  if (!defined) {
    if (from.left() >= 4) (void)from.number_to(4, 0, 0, "an unset fill value of the size");
    return 0;
  }
  const std::uint64_t bytes = from.number(4);
  (void)from.text(bytes);
  return bytes;
}

std::uint64_t Messages::old_fill(GuardCursor& from) const {
  const std::uint64_t bytes = from.number(4);
  (void)from.text(bytes);
  return bytes;
}

GuardLayout Messages::layout(GuardCursor& from) const {
  GuardLayout result;
  result.at = from.at();
  const std::uint64_t version = from.number_to(1, 3, 4, "a data layout of version");
  const std::uint64_t kind = from.number_to(1, 0, 2, "a data layout of the class");
  if (kind == 0) {
    result.bytes = from.number(2);
    (void)from.text(result.bytes);
  } else if (kind == 1) {
    result.kind = GuardLayout::Kind::contiguous;
    result.address = from.number(8);
    result.bytes = from.number(8);
  } else if (version == 3) {
    result.kind = GuardLayout::Kind::chunk_tree;
    const std::uint64_t count = from.number_to(1, 2, kMaxDimensions + 1, "chunks of the rank");
    result.address = from.number(8);
    for (std::uint64_t i = 0; i < count; ++i) result.chunk.push_back(from.number(4));
  } else {
    single_chunk(from, result);
  }
  return result;
}

void Messages::single_chunk(GuardCursor& from, GuardLayout& layout) const {
  layout.kind = GuardLayout::Kind::single_chunk;
  const std::uint64_t flags = from.number_to(1, 0, 2, "chunks with the flags");
  if (flags == 1) image_.foreign(from.at(), "has chunks whose edges pass by the filters");
  const std::uint64_t count = from.number_to(1, 2, kMaxDimensions + 1, "chunks of the rank");
  const std::uint64_t width = from.number_to(1, 1, 8, "chunk extents of a width of");
  for (std::uint64_t i = 0; i < count; ++i) layout.chunk.push_back(from.number(static_cast<unsigned>(width)));
  (void)from.number_to(1, 1, 1, "more than one chunk, in an index of the type");
  layout.filtered = flags == 2;
  if (layout.filtered) {
    layout.bytes = from.number(8);
    (void)from.number_to(4, 0, 0, "a chunk without its checksum: filters left out:");
  }
  layout.address = from.number(8);
}

void Messages::filters(GuardCursor& from) const {
  const std::uint64_t version = from.number_to(1, 1, 2, "a filter pipeline of version");
  const std::uint64_t count = from.number(1);
  if (version == 1) (void)from.text(6);
  const std::uint64_t at = from.at();
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t filter = from.number(2);
    if (filter != 3)
      image_.foreign(at, concat("carries the filter ", filter, "; only Fletcher-32 is allowed"));
    if (i > 0) image_.foreign(at, "carries the Fletcher-32 filter twice");
    const std::uint64_t name = version == 1 ? from.number_to(2, 0, 64, "a filter's name of the length") : 0;
    (void)from.number_to(2, 0, 0, "a filter with the flags");
    (void)from.number_to(2, 0, 0, "a Fletcher-32 filter with parameters:");
    if (from.text(name + (8 - name % 8) % 8).find('\0') == std::string_view::npos && name > 0)
      image_.damaged(at, "a filter's name without an end");
  }
  if (count == 0) image_.foreign(at, "carries an empty list of filters");
}

void Messages::no_heap(GuardCursor& from, std::string_view what) const {
  // Version 0 and no flags, which would add fields.
  (void)from.number_to(2, 0, 0, concat("an index of ", what, " of the kind"));
}

void Messages::link_info(GuardCursor& from) {
  once(object_.link_info, from.at(), "link info");
  no_heap(from, "links");
  for (int i = 0; i < 2; ++i) (void)from.number_to(8, kNoAddress, kNoAddress, "its links in a heap, at");
}

void Messages::attribute_info(GuardCursor& from) {
  once(object_.attribute_info, from.at(), "attribute info");
  no_heap(from, "attributes");
  for (int i = 0; i < 2; ++i) (void)from.number_to(8, kNoAddress, kNoAddress, "its attributes in a heap, at");
}

void Messages::group_info(GuardCursor& from) {
  once(object_.group_info, from.at(), "group info");
  (void)from.number_to(1, 0, 0, "group info of version");
  const std::uint64_t flags = from.number_to(1, 0, 3, "group info with the flags");
  if ((flags & 1) != 0) (void)from.text(4);
  if ((flags & 2) != 0) (void)from.text(4);
}

void Messages::link(GuardCursor& from) {
  GuardLink result;
  result.at = from.at();
  (void)from.number_to(1, 1, 1, "a link of version");
  const std::uint64_t flags = from.number(1);
  if ((flags & ~std::uint64_t{0x1b}) != 0)
    image_.foreign(result.at, concat("holds a link with the flags ", flags));
  const std::uint64_t kind = (flags & 0x08) != 0 ? from.number(1) : 0;
  if ((flags & 0x10) != 0) (void)from.number_to(1, 0, 1, "a link's name in the characters");
  const std::uint64_t length = from.number(1U << (flags & 3));
  result.name = from.text(length);
  if (result.name.empty() || result.name.find('\0') != std::string_view::npos)
    image_.damaged(result.at, "a link's name that is empty or has a zero byte");
  if (kind != 0) {
    image_.set_place(concat(image_.place() == "/" ? "" : image_.place(), "/", result.name));
    image_.foreign(result.at, "a link to another place; refused");
  }
  result.address = from.number(8);
  object_.links.push_back(result);
}

void Messages::attribute(GuardCursor& from) {
  const std::uint64_t at = from.at();
  const std::uint64_t version = from.number_to(1, 1, 3, "an attribute of version");
  // Version 1 pads each part to 8 bytes; version 3 names the name's characters.
  (void)from.number_to(1, 0, 0, "an attribute with the flags");
  const std::uint64_t name_bytes = from.number(2);
  const std::uint64_t type_bytes = from.number(2);
  const std::uint64_t space_bytes = from.number(2);
  if (version == 3) (void)from.number_to(1, 0, 1, "an attribute's name in the characters");
  const std::string_view name = from.text(name_bytes);
  if (version == 1) from.pad(name_bytes);
  if (name.size() < 2 || name.find('\0') != name.size() - 1)
    image_.damaged(at, "an attribute's name that is empty or ends elsewhere than it should");
  const std::string object = image_.place();
  image_.set_place(concat(object, "@", name.substr(0, name.size() - 1)));
  GuardAttribute read;
  read.name = name.substr(0, name.size() - 1);
  object_.attributes.push_back(attribute_value(from, read, type_bytes, space_bytes, version == 1));
  image_.set_place(object);
}

GuardAttribute Messages::attribute_value(GuardCursor& from, GuardAttribute read, std::uint64_t type_bytes,
                                         std::uint64_t space_bytes, bool padded) const {
  const auto part = [&](std::uint64_t bytes) {
    const std::uint64_t begin = from.at();
    (void)from.text(bytes);
    if (padded) from.pad(bytes);
    return GuardCursor(image_, begin, begin + bytes);
  };
  const auto check_end = [&](const GuardCursor& part_end) {
    if (part_end.left() > 7 || (!padded && part_end.left() > 0))
      image_.damaged(part_end.at(), "a part of an attribute that is longer than what it holds");
  };
  GuardCursor type_part = part(type_bytes);
  read.type = type(type_part);
  check_end(type_part);
  GuardCursor space_part = part(space_bytes);
  const GuardSpace shape = space(space_part);
  check_end(space_part);
  read.data_at = from.at();
  const std::uint64_t bytes = shape.null ? 0 : guarded_bytes(image_, read.data_at, shape, read.type.bytes);
  read.elements = bytes / read.type.bytes;
  (void)from.text(bytes);
  return read;
}

bool Messages::read_of_dataset(std::uint64_t type_of_message, GuardCursor& from) {
  switch (type_of_message) {
    case 0x01:
      set(object_.space, space(from), from, "dataspace");
      return true;
    case 0x03:
      set(object_.type, type(from), from, "datatype");
      return true;
    case 0x04:
      set(object_.old_fill_bytes, old_fill(from), from, "old fill value");
      return true;
    case 0x05:
      set(object_.fill_bytes, fill(from), from, "fill value");
      return true;
    case 0x08:
      set(object_.layout, layout(from), from, "data layout");
      return true;
    case 0x0b:
      once(object_.fletcher, from.at(), "filter pipeline");
      filters(from);
      return true;
    default:
      return false;
  }
}

bool Messages::read_of_group(std::uint64_t type_of_message, GuardCursor& from) {
  switch (type_of_message) {
    case 0x02:
      link_info(from);
      return true;
    case 0x06:
      link(from);
      return true;
    case 0x0a:
      group_info(from);
      return true;
    case 0x11:
      set(object_.symbol_table, GuardSymbolTable{.tree = from.number(8), .heap = from.number(8)}, from,
          "symbol table");
      return true;
    default:
      return false;
  }
}

bool Messages::read_of_any(std::uint64_t type_of_message, GuardCursor& from) {
  switch (type_of_message) {
    case 0x0c:
      attribute(from);
      return true;
    case 0x12:
      once(object_.modified, from.at(), "time of modification");
      (void)from.number_to(1, 1, 1, "a time of modification of version");
      (void)from.text(7);
      return true;
    case 0x15:
      attribute_info(from);
      return true;
    case 0x16:
      once(object_.reference_count, from.at(), "reference count");
      (void)from.number_to(1, 0, 0, "a reference count of version");
      (void)from.number(4);
      return true;
    default:
      return false;
  }
}

void Messages::read(const GuardMessage& message) {
  // NIL, which is room that is free; and what read_guarded_header has followed.
  if (message.type == 0x00 || message.type == 0x10) return;
  GuardCursor from(image_, message.begin, message.end);
  if (!read_of_dataset(message.type, from) && !read_of_group(message.type, from) &&
      !read_of_any(message.type, from))
    image_.foreign(message.begin, concat("has a header message of the type ", message.type));
  if (from.left() > (old_ ? 7U : 0U))
    image_.damaged(from.at(), "a message that is longer than what it holds");
}

}  // namespace

GuardObject read_guarded_object(GuardImage& image, std::uint64_t address) {
  const GuardHeader header = read_guarded_header(image, address);
  GuardObject object;
  object.at = address;
  Messages messages(image, object, header.old);
  for (const GuardMessage& message : header.messages) messages.read(message);
  return object;
}

std::uint64_t guarded_bytes(const GuardImage& image, std::uint64_t at, const GuardSpace& space,
                            std::uint64_t element_bytes) {
  std::uint64_t bytes = element_bytes;
  bool fits = true;
  for (const std::uint64_t extent : space.extents) {
    if (extent == 0) return 0;
    fits = fits && !__builtin_mul_overflow(bytes, extent, &bytes);
  }
  if (!fits) image.foreign(at, "its size is more than the file stores for it, and than 64 bits hold");
  if (bytes > image.size())
    image.foreign(at, concat("its size of ", bytes, " bytes is more than the file stores for it"));
  return bytes;
}

}  // namespace kvcal::formats
