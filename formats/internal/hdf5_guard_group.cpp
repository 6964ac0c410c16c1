#include "formats/internal/hdf5_guard_group.h"

#include <algorithm>
#include <cstddef>

#include "base/error.h"

namespace kvcal::formats {
namespace {

using base::concat;

constexpr std::uint64_t kSymbolBytes = 40;

class GroupReader {
 public:
  GroupReader(GuardImage& image, const GuardSymbolTable& table, GuardGroupNodes nodes)
      : image_(image), table_(table), room_(nodes), siblings_(image) {}

  std::vector<GuardLink> read() {
    read_heap(table_.heap);
    std::vector<Node> nodes{{table_.tree, image_.number(table_.tree + 5, 1)}};
    while (!nodes.empty()) {
      const Node node = nodes.back();
      nodes.pop_back();
      read_node(node, nodes);
    }
    siblings_.check_ends();
    return std::move(links_);
  }

 private:
  struct Node {
    std::uint64_t address;
    std::uint64_t level;
  };

  void read_heap(std::uint64_t address) {
    image_.expect(address, "HEAP");
    image_.claim(address, 32, "a heap of names");
    GuardCursor from(image_, address + 4, address + 32);
    (void)from.number_to(4, 0, 0, "a heap of names of version");
    heap_bytes_ = from.number(8);
    std::uint64_t free = from.number(8);
    heap_ = from.number(8);
    image_.claim(heap_, heap_bytes_, "names");
    // A list of free stretches: the offset of the next, the size. Offset 1 ends it.
    for (std::uint64_t steps = 0; free != 1; ++steps) {
      if (steps > heap_bytes_ / 16 || free > heap_bytes_ || heap_bytes_ - free < 16)
        image_.damaged(address, "a heap of names whose list of free parts leaves it");
      const std::uint64_t size = image_.number(heap_ + free + 8, 8);
      if (size > heap_bytes_ - free)
        image_.damaged(address, "a heap of names with a free part beyond its end");
      free = image_.number(heap_ + free, 8);
    }
  }

  [[nodiscard]] std::string_view name(std::uint64_t at, std::uint64_t offset) const {
    if (offset >= heap_bytes_) image_.damaged(at, "a name outside of its heap");
    const std::string_view rest = image_.text(heap_ + offset, heap_bytes_ - offset);
    const std::size_t end = rest.find('\0');
    if (end == std::string_view::npos) image_.damaged(at, "a name without an end");
    return rest.substr(0, end);
  }

  /// Depth first, so that the nodes of a level come from left to right.
  void read_node(Node node, std::vector<Node>& nodes) {
    const std::uint64_t bytes = 24 + room_.children * 8 + (room_.children + 1) * 8;
    image_.claim(node.address, bytes, "a B-tree of names");
    image_.expect(node.address, "TREE");
    GuardCursor from(image_, node.address + 4, node.address + bytes);
    (void)from.number_to(1, 0, 0, "a B-tree of names of the type");
    (void)from.number_to(1, node.level, node.level, "a B-tree of names with a child on level");
    const std::uint64_t count = from.number_to(2, 0, room_.children, "a B-tree of names with children:");
    if (node.level > 0 && count == 0) image_.damaged(node.address, "a B-tree of names that ends above them");
    siblings_.meet(node.address, node.level);
    (void)from.text(16);
    const std::size_t held = nodes.size();
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t at = from.at();
      (void)name(at, from.number(8));
      const std::uint64_t child = from.number(8);
      if (node.level == 0) {
        read_symbols(child);
      } else {
        nodes.push_back({child, node.level - 1});
      }
    }
    std::reverse(nodes.begin() + static_cast<std::ptrdiff_t>(held), nodes.end());
    if (count > 0) (void)name(from.at(), from.number(8));
  }

  void read_symbols(std::uint64_t address) {
    const std::uint64_t bytes = 8 + room_.symbols * kSymbolBytes;
    image_.claim(address, bytes, "a table of symbols");
    image_.expect(address, "SNOD");
    GuardCursor from(image_, address + 4, address + bytes);
    (void)from.number_to(1, 1, 1, "a table of symbols of version");
    (void)from.text(1);
    const std::uint64_t count = from.number_to(2, 0, room_.symbols, "a table of symbols with entries:");
    for (std::uint64_t i = 0; i < count; ++i) read_symbol(from);
  }

  void read_symbol(GuardCursor& from) {
    GuardLink link;
    link.at = from.at();
    link.name = name(link.at, from.number(8));
    if (link.name.empty()) image_.damaged(link.at, "a link without a name");
    link.address = from.number(8);
    const std::uint64_t cached = from.number(4);
    (void)from.text(4);
    const std::uint64_t first = from.number(8);
    const std::uint64_t second = from.number(8);
    if (cached == 1) {
      link.cached_tree = first;
      link.cached_heap = second;
    } else if (cached != 0) {
      image_.set_place(concat(image_.place() == "/" ? "" : image_.place(), "/", link.name));
      image_.foreign(link.at, "a link to another place; refused");
    }
    links_.push_back(link);
  }

  GuardImage& image_;
  GuardSymbolTable table_;
  GuardGroupNodes room_;
  GuardSiblings siblings_;
  std::uint64_t heap_ = 0;
  std::uint64_t heap_bytes_ = 0;
  std::vector<GuardLink> links_;
};

}  // namespace

std::vector<GuardLink> read_guarded_group(GuardImage& image, const GuardSymbolTable& table,
                                          GuardGroupNodes nodes) {
  return GroupReader(image, table, nodes).read();
}

}  // namespace kvcal::formats
