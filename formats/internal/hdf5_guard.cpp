#include "formats/internal/hdf5_guard.h"

#include <set>
#include <vector>

#include "base/error.h"
#include "formats/internal/hdf5_guard_data.h"
#include "formats/internal/hdf5_guard_group.h"
#include "formats/internal/hdf5_guard_image.h"
#include "formats/internal/hdf5_guard_messages.h"

namespace kvcal::formats {
namespace {

using base::concat;

constexpr int kMaxDepth = 16;
// A short name in a deep group costs its whole path in memory. Ours take less than the file.
constexpr std::uint64_t kPathBytesPerFileByte = 4;
// HDF5 has 4 for symbols and 16 for children; who asks for more gets nodes that take kilobytes each.
constexpr std::uint64_t kMaxHalfNode = 1024;

struct Superblock {
  GuardLink root;
  GuardGroupNodes nodes;
};

class SuperblockReader {
 public:
  explicit SuperblockReader(GuardImage& image) : image_(image) {}

  Superblock read() {
    constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
    if (image_.size() < kSignature.size() || image_.text(0, kSignature.size()) != kSignature)
      foreign(0, "its signature does not come first");
    const std::uint64_t version = image_.number(8, 1);
    if (version == 0) return read_version_0();
    if (version == 3) return read_version_3();
    foreign(8, concat("its superblock has version ", version, ", not 0 or 3"));
  }

 private:
  [[noreturn]] void foreign(std::uint64_t at, std::string_view what) const {
    image_.foreign(at, concat("an HDF5 file, but not a codebook of kvcal: ", what));
  }

  void field(std::uint64_t at, unsigned width, std::uint64_t expected, std::string_view what) const {
    const std::uint64_t value = image_.number(at, width);
    if (value != expected) foreign(at, concat(what, " ", value, ", not ", expected));
  }

  void check_end(std::uint64_t at) const {
    if (const std::uint64_t end = image_.number(at, 8); end != image_.size())
      image_.damaged(at, concat("the file has ", image_.size(), " bytes, and should have ", end));
  }

  /// What kvcal writes.
  Superblock read_version_3() {
    image_.claim(0, 48, "the superblock");
    image_.check_sum(0, 44);
    field(9, 1, 8, "its addresses have bytes:");
    field(10, 1, 8, "its lengths have bytes:");
    field(11, 1, 0, "it was not closed, flags");
    field(12, 8, 0, "its base address is");
    field(20, 8, kNoAddress, "its superblock has an extension, at");
    check_end(28);
    Superblock result;
    result.root.address = image_.number(36, 8);
    return result;
  }

  /// What h5py writes. It has no checksum.
  Superblock read_version_0() {
    image_.claim(0, 96, "the superblock");
    field(9, 3, 0, "its free space, its root and what lies between have versions:");
    field(12, 1, 0, "its shared messages have version");
    field(13, 1, 8, "its addresses have bytes:");
    field(14, 1, 8, "its lengths have bytes:");
    field(15, 1, 0, "a reserved byte is");
    Superblock result;
    result.nodes.symbols = 2 * half_a_node(16);
    result.nodes.children = 2 * half_a_node(18);
    field(20, 4, 0, "it was not closed, flags");
    field(24, 8, 0, "its base address is");
    field(32, 8, kNoAddress, "its list of free space is at");
    check_end(40);
    field(48, 8, kNoAddress, "its driver is described at");
    field(56, 8, 0, "its root has a name, at");
    result.root = root_entry();
    return result;
  }

  [[nodiscard]] std::uint64_t half_a_node(std::uint64_t at) const {
    const std::uint64_t half = image_.number(at, 2);
    if (half == 0 || half > kMaxHalfNode) foreign(at, concat("nodes of groups with room for twice ", half));
    return half;
  }

  /// The root as an entry in a table of symbols.
  [[nodiscard]] GuardLink root_entry() const {
    GuardLink root;
    root.at = 56;
    root.address = image_.number(64, 8);
    const std::uint64_t cached = image_.number(72, 4);
    if (cached > 1) foreign(72, concat("its root is cached as the type ", cached));
    field(76, 4, 0, "a reserved number of its root is");
    if (cached == 1) {
      root.cached_tree = image_.number(80, 8);
      root.cached_heap = image_.number(88, 8);
    }
    return root;
  }

  GuardImage& image_;
};

class Walk {
 public:
  Walk(GuardImage& image, GuardGroupNodes nodes) : image_(image), nodes_(nodes) {}

  void run(const GuardLink& root) {
    found_.push_back({root, 0, 0});
    // found_ grows as groups are met.
    for (std::size_t i = 0; i < found_.size(); ++i) visit(i);
  }

 private:
  struct Found {
    GuardLink link;
    std::size_t parent;
    int depth;
  };

  [[nodiscard]] std::string path(std::size_t index) const {
    std::string text;
    for (; index != 0; index = found_[index].parent) text = concat("/", found_[index].link.name, text);
    return text.empty() ? "/" : text;
  }

  void spend(std::uint64_t at, std::uint64_t bytes) {
    path_bytes_ += bytes;
    if (path_bytes_ > kPathBytesPerFileByte * image_.size())
      image_.foreign(at, "has with others paths longer than the file");
  }

  void visit(std::size_t index) {
    const Found found = found_[index];
    image_.set_place(path(index));
    spend(found.link.at, image_.place().size());
    if (found.depth > kMaxDepth)
      image_.foreign(found.link.at, concat("groups nested deeper than ", kMaxDepth));
    if (!visited_.insert(found.link.address).second)
      image_.foreign(found.link.at, "the same object under two names; refused");
    const GuardObject object = read_guarded_object(image_, found.link.address);
    check_attributes(object);
    const GuardSymbolTable table = object.symbol_table.value_or(GuardSymbolTable{});
    const bool cached = found.link.cached_tree != kNoAddress || found.link.cached_heap != kNoAddress;
    if (cached && (found.link.cached_tree != table.tree || found.link.cached_heap != table.heap))
      image_.damaged(found.link.at, "a table of symbols that disagrees with the group it names");
    if (is_dataset(object, index == 0)) {
      check_guarded_data(image_, object);
    } else {
      add_links(object, index);
    }
  }

  void check_attributes(const GuardObject& object) {
    const std::string place = image_.place();
    for (const GuardAttribute& attribute : object.attributes) {
      image_.set_place(concat(place, "@", attribute.name));
      spend(object.at, image_.place().size());
      texts_.check(image_, attribute);
    }
    image_.set_place(place);
  }

  /// A dataset or, else, a group: nothing between.
  [[nodiscard]] bool is_dataset(const GuardObject& object, bool root) const {
    const bool data = object.space && object.type && object.layout && object.fill_bytes;
    const bool any_data = object.space || object.type || object.layout || object.fill_bytes ||
                          object.old_fill_bytes || object.fletcher;
    const bool any_group =
        object.link_info || object.symbol_table || object.group_info || !object.links.empty();
    const bool group = object.link_info != object.symbol_table.has_value() &&
                       !(object.symbol_table && (object.group_info || !object.links.empty()));
    if (root && any_data) image_.foreign(object.at, "a root that is no group");
    if (data && !any_group) return true;
    if (!group || any_data) image_.foreign(object.at, "neither a group nor a dataset; refused");
    return false;
  }

  void add_links(const GuardObject& object, std::size_t index) {
    const std::vector<GuardLink> links =
        object.symbol_table ? read_guarded_group(image_, *object.symbol_table, nodes_) : object.links;
    for (const GuardLink& link : links) found_.push_back({link, index, found_[index].depth + 1});
  }

  GuardImage& image_;
  GuardGroupNodes nodes_;
  std::vector<Found> found_;
  std::set<std::uint64_t> visited_;
  GuardTexts texts_;
  std::uint64_t path_bytes_ = 0;
};

}  // namespace

void check_hdf5_image(std::span<const std::byte> file, const std::string& name) {
  GuardImage image(file, name);
  const Superblock superblock = SuperblockReader(image).read();
  Walk(image, superblock.nodes).run(superblock.root);
}

}  // namespace kvcal::formats
