#include "formats/internal/hdf5_guard_data.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "base/error.h"

namespace kvcal::formats {
namespace {

using base::concat;

// A chunk B-tree's node has room for 64 children where the superblock says nothing else.
constexpr std::uint64_t kTreeChildren = 64;

/// The chunk B-tree of a dataset.
class ChunkTree {
 public:
  ChunkTree(GuardImage& image, const GuardSpace& space, const GuardLayout& layout, std::uint64_t chunk_bytes)
      : image_(image), space_(space), layout_(layout), chunk_bytes_(chunk_bytes), siblings_(image) {}

  void walk() {
    std::vector<Node> nodes{{layout_.address, image_.number(layout_.address + 5, 1), {}}};
    while (!nodes.empty()) {
      const Node node = nodes.back();
      nodes.pop_back();
      visit(node, nodes);
    }
    siblings_.check_ends();
  }

 private:
  using Offsets = std::vector<std::uint64_t>;
  struct Node {
    std::uint64_t address;
    std::uint64_t level;
    Offsets first;  ///< of its first key, where its parent says it
  };

  /// Depth first, so that the chunks come in the order of the tree.
  void visit(const Node& node, std::vector<Node>& nodes) {
    const std::uint64_t key_bytes = 8 + 8 * layout_.chunk.size();
    const std::uint64_t bytes = 24 + kTreeChildren * 8 + (kTreeChildren + 1) * key_bytes;
    image_.claim(node.address, bytes, "a B-tree of chunks");
    image_.expect(node.address, "TREE");
    GuardCursor from(image_, node.address + 4, node.address + bytes);
    (void)from.number_to(1, 1, 1, "a B-tree of chunks of the type");
    (void)from.number_to(1, node.level, node.level, "a B-tree of chunks with a child on level");
    const std::uint64_t count = from.number_to(2, 0, kTreeChildren, "a B-tree of chunks with children:");
    siblings_.meet(node.address, node.level);
    (void)from.text(16);
    if (node.level > 0 && count == 0) image_.damaged(node.address, "a B-tree of chunks that ends above them");
    const std::size_t held = nodes.size();
    Offsets offsets;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t at = from.at();
      Offsets next = read_key(from);
      if (i > 0 ? next <= offsets : !node.first.empty() && next != node.first)
        image_.damaged(at, "chunks in another order than their B-tree's");
      offsets = std::move(next);
      const std::uint64_t child = from.number(8);
      if (node.level == 0) {
        add_chunk(at, offsets, child);
      } else {
        nodes.push_back({child, node.level - 1, offsets});
      }
    }
    std::reverse(nodes.begin() + static_cast<std::ptrdiff_t>(held), nodes.end());
    if (count > 0) check_end(from, offsets);
  }

  /// The last key lies behind the last chunk, if only by an element within it.
  void check_end(GuardCursor& key, const Offsets& last) const {
    const std::uint64_t at = key.at();
    (void)key.text(8);
    Offsets end;
    for (std::size_t i = 0; i < layout_.chunk.size(); ++i) end.push_back(key.number(8));
    if (end <= last) image_.damaged(at, "a B-tree of chunks that ends before them");
  }

  /// Where in the dataset the chunk begins. Nodes repeat the key of their first child's first.
  [[nodiscard]] Offsets read_key(GuardCursor& key) const {
    (void)key.number_to(4, chunk_bytes_, chunk_bytes_,
                        concat("chunks of ", chunk_bytes_, " bytes, and one of"));
    (void)key.number_to(4, 0, 0, "a chunk without its checksum: filters left out:");
    Offsets offsets;
    for (std::size_t i = 0; i < space_.extents.size(); ++i) {
      const std::uint64_t offset = key.number(8);
      if (offset >= space_.extents[i] || offset % layout_.chunk[i] != 0)
        image_.damaged(key.at(), concat("a chunk that begins at element ", offset));
      offsets.push_back(offset);
    }
    (void)key.number_to(8, 0, 0, "a chunk that begins within an element, at");
    return offsets;
  }

  void add_chunk(std::uint64_t at, const Offsets& offsets, std::uint64_t address) {
    if (!last_.empty() && offsets <= last_) image_.damaged(at, "a chunk that is there already");
    last_ = offsets;
    image_.claim(address, chunk_bytes_, "a chunk");
  }

  GuardImage& image_;
  const GuardSpace& space_;
  const GuardLayout& layout_;
  std::uint64_t chunk_bytes_;
  GuardSiblings siblings_;
  Offsets last_;  // where the last chunk so far begins
};

void check_chunks(GuardImage& image, const GuardObject& dataset) {
  const GuardLayout& layout = *dataset.layout;
  const GuardSpace& space = *dataset.space;
  if (layout.chunk.size() != space.extents.size() + 1 || layout.chunk.back() != dataset.type->bytes)
    image.damaged(layout.at, "chunks whose rank or element size is not the dataset's");
  if (std::ranges::find(layout.chunk, std::uint64_t{0}) != layout.chunk.end())
    image.foreign(layout.at, "has chunks of no elements");
  GuardSpace chunk;
  chunk.extents.assign(layout.chunk.begin(), layout.chunk.end() - 1);
  const std::uint64_t bytes =
      guarded_bytes(image, layout.at, chunk, dataset.type->bytes) + (dataset.fletcher ? 4 : 0);
  if (layout.kind == GuardLayout::Kind::chunk_tree) {
    if (layout.address != kNoAddress) ChunkTree(image, space, layout, bytes).walk();
    return;
  }
  if (chunk.extents != space.extents || space.grows || layout.filtered != dataset.fletcher ||
      (layout.filtered && layout.bytes != bytes))
    image.damaged(layout.at, "a single chunk that is not the whole dataset");
  if (layout.address != kNoAddress) image.claim(layout.address, bytes, "a chunk");
}

}  // namespace

void check_guarded_data(GuardImage& image, const GuardObject& dataset) {
  const GuardLayout& layout = *dataset.layout;
  if (dataset.type->variable) image.foreign(dataset.at, "text of variable length in a dataset; refused");
  if (dataset.space->null) image.foreign(dataset.at, "is empty (it has no shape)");
  const std::uint64_t bytes = guarded_bytes(image, layout.at, *dataset.space, dataset.type->bytes);
  for (const std::uint64_t fill_bytes : {*dataset.fill_bytes, dataset.old_fill_bytes.value_or(0)}) {
    if (fill_bytes != 0 && fill_bytes != dataset.type->bytes)
      image.damaged(layout.at, "a fill value of another size than an element's");
  }
  if (layout.kind == GuardLayout::Kind::chunk_tree || layout.kind == GuardLayout::Kind::single_chunk) {
    check_chunks(image, dataset);
    return;
  }
  if (dataset.fletcher) image.damaged(layout.at, "a filter on data that are not in chunks");
  if (layout.bytes != bytes)
    image.damaged(layout.at, concat("data of ", layout.bytes, " bytes, where its shape asks for ", bytes));
  if (layout.kind == GuardLayout::Kind::contiguous && layout.address != kNoAddress)
    image.claim(layout.address, bytes, "data");
}

void GuardTexts::check(GuardImage& image, const GuardAttribute& attribute) {
  if (!attribute.type.variable) return;
  GuardCursor from(image, attribute.data_at, attribute.data_at + 16 * attribute.elements);
  for (std::uint64_t i = 0; i < attribute.elements; ++i) {
    const std::uint64_t at = from.at();
    const std::uint64_t length = from.number(4);
    const std::uint64_t address = from.number(8);
    const std::uint64_t index = from.number(4);
    if (length == 0 && address == 0) continue;  // no text
    if (!bytes_.contains({address, 0})) read_heap(image, address);
    const auto found = bytes_.find({address, index});
    // libhdf5 takes the memory by `length`, and fills it by what the heap says.
    if (index == 0 || found == bytes_.end() || found->second != length)
      image.damaged(at,
                    concat("text of ", length, " bytes that the heap at byte ", address, " does not hold"));
    total_ += length;
    if (total_ > image.size()) image.foreign(at, "holds with others more text than the file has bytes");
  }
}

void GuardTexts::read_heap(GuardImage& image, std::uint64_t address) {
  image.expect(address, "GCOL");
  if (image.number(address + 4, 1) != 1) image.foreign(address + 4, "has text in a heap of another version");
  const std::uint64_t size = image.number(address + 8, 8);
  if (size < 4096) image.damaged(address + 8, concat("a heap of ", size, " bytes; expected 4096 at least"));
  image.claim(address, size, "a heap of texts");
  bytes_[{address, 0}] = size;
  GuardCursor from(image, address + 16, address + size);
  while (from.left() >= 16) {
    const std::uint64_t at = from.at();
    const std::uint64_t index = from.number(2);
    (void)from.text(6);  // how many point to it; reserved
    const std::uint64_t bytes = from.number(8);
    if (index == 0) {  // what is free: the rest
      if (bytes != from.left() + 16) image.damaged(at, "a heap whose free part is not its end");
      return;
    }
    // libhdf5 makes a table as long as the largest index.
    if (index > size / 16) image.damaged(at, concat("a heap's object with the number ", index));
    (void)from.text(bytes);
    from.pad(bytes);
    if (!bytes_.insert({{address, index}, bytes}).second)
      image.damaged(at, concat("a heap's second object with the number ", index));
  }
}

}  // namespace kvcal::formats
