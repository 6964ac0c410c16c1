// The walk that goes before libhdf5: files of kvcal pass; whatever else it meets, it ends with a reason.
#include "formats/internal/hdf5_guard.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "formats/codebook.h"
#include "formats/internal/hdf5_checksum.h"
#include "formats/internal/hdf5_tree.h"
#include "formats_testing.h"
#include "sample_codebook.h"

namespace kvcal::formats {
namespace {

using namespace std::string_literals;
using testing::TemporaryFolder;

// libhdf5 takes milliseconds for a file: it gets one of so many.
constexpr int kSampled = 101;
constexpr std::string_view kNowhere = "\xff\xff\xff\xff\xff\xff\xff\xff";

void check(std::string_view bytes) {
  check_hdf5_image(std::as_bytes(std::span(bytes)), "a.h5");
}

/// Whether the guard lets the bytes through. Any exception but InvalidInput fails the test.
bool passes(std::string_view bytes) {
  try {
    check(bytes);
    return true;
  } catch (const base::InvalidInput& error) {
    EXPECT_TRUE(std::string_view(error.what()).starts_with("a.h5: ")) << error.what();
    EXPECT_NE(std::string_view(error.what()).find("(byte "), std::string_view::npos) << error.what();
    return false;
  }
}

std::string number(std::uint64_t value, int width) {
  std::string text;
  for (int i = 0; i < width; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

std::uint32_t checksum(std::string_view bytes) {
  return hdf5_checksum(std::as_bytes(std::span(bytes)));
}

std::uint64_t number_at(std::string_view bytes, std::size_t at, int width) {
  std::uint64_t value = 0;
  for (int i = width; i-- > 0;)
    value = value << 8 | static_cast<unsigned char>(bytes[at + static_cast<std::size_t>(i)]);
  return value;
}

/// What lies under checksums: from where to where each is taken.
std::map<std::size_t, std::size_t> checked_parts(std::string_view bytes) {
  std::map<std::size_t, std::size_t> parts{{0, 44}};
  for (const std::string_view signature : {"OHDR", "OCHK"}) {
    for (std::size_t at = bytes.find(signature); at != std::string_view::npos;
         at = bytes.find(signature, at + 1)) {
      for (std::size_t end = at + 4; end + 4 <= bytes.size(); ++end) {
        if (checksum(bytes.substr(at, end - at)) != number_at(bytes, end, 4)) continue;
        parts[at] = end;
        break;
      }
    }
  }
  return parts;
}

void reseal(std::string& bytes, const std::map<std::size_t, std::size_t>& parts) {
  for (const auto& [begin, end] : parts)
    bytes.replace(end, 4, number(checksum(std::string_view(bytes).substr(begin, end - begin)), 4));
}

/// A file of kvcal with all kinds of its structures, and few of each.
class Hdf5Guard : public ::testing::Test {
 protected:
  void SetUp() override {
    Codebook codebook = testing::sample_codebook({0});
    for (TensorCodebook& tensor : codebook.layers[0].tensors) {
      tensor.with_sinks.clear();
      tensor.rotated.clear();
      tensor.magnitudes.reset();
      tensor.outliers.pop_back();
    }
    write_codebook(path_, codebook);
    bytes_ = base::read_text_file(path_);
    expected_ = read_codebook(path_);
    parts_ = checked_parts(bytes_);
  }

  /// The file with `from` replaced by `to` where it first stands, and its checksums right.
  [[nodiscard]] std::string edited(std::string_view from, std::string_view to) const {
    std::string bytes = bytes_;
    const std::size_t at = bytes.find(from);
    EXPECT_NE(at, std::string::npos);
    EXPECT_EQ(from.size(), to.size());
    bytes.replace(at, to.size(), to);
    reseal(bytes, parts_);
    return bytes;
  }
  [[nodiscard]] std::string edited_at(std::size_t at, std::string_view to) const {
    std::string bytes = bytes_;
    bytes.replace(at, to.size(), to);
    reseal(bytes, parts_);
    return bytes;
  }
  /// What the guard lets through, libhdf5 reads: as the undamaged codebook, or it refuses it.
  void expect_harmless(std::string_view bytes) const {
    testing::write_bytes(path_, bytes);
    try {
      EXPECT_EQ(read_codebook(path_), expected_);
    } catch (const base::InvalidInput&) {
    }
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "codebook.h5";
  std::string bytes_;
  Codebook expected_;
  std::map<std::size_t, std::size_t> parts_;
};

TEST_F(Hdf5Guard, WhatKvcalWritesPasses) {
  EXPECT_NO_THROW(check(bytes_));
  EXPECT_GT(parts_.size(), 20U);  // the checksums are found
  write_codebook(path_, testing::sample_codebook());
  EXPECT_NO_THROW(check(base::read_text_file(path_)));
}

TEST_F(Hdf5Guard, EveryFlippedBitPassesOrIsRefused) {
  int passed = 0;
  for (std::size_t i = 0; i < bytes_.size() * 8; ++i) {
    std::string damaged = bytes_;
    damaged[i / 8] = static_cast<char>(damaged[i / 8] ^ (1 << (i % 8)));
    if (!passes(damaged)) continue;
    if (passed++ % kSampled == 0) expect_harmless(damaged);
    ASSERT_FALSE(HasFailure()) << "bit " << i % 8 << " of byte " << i / 8;
  }
  // Data, whose checksums libhdf5 tests, and what nothing points to: 2048 bytes of 9877 when this was written.
  EXPECT_LT(passed, static_cast<int>(bytes_.size() * 8 / 4));
}

TEST_F(Hdf5Guard, EveryFlippedBitUnderARightChecksumPassesOrIsRefused) {
  int passed = 0;
  for (const auto& [begin, end] : parts_) {
    for (std::size_t i = begin * 8; i < end * 8; ++i) {
      std::string damaged = bytes_;
      damaged[i / 8] = static_cast<char>(damaged[i / 8] ^ (1 << (i % 8)));
      damaged.replace(end, 4, number(checksum(std::string_view(damaged).substr(begin, end - begin)), 4));
      if (!passes(damaged)) continue;
      if (passed++ % kSampled == 0) expect_harmless(damaged);
      ASSERT_FALSE(HasFailure()) << "bit " << i % 8 << " of byte " << i / 8;
    }
  }
  EXPECT_GT(passed, 1000);  // names and the values of attributes
}

TEST_F(Hdf5Guard, EveryTruncationIsRefused) {
  for (std::size_t size = 0; size < bytes_.size(); ++size) {
    EXPECT_FALSE(passes(std::string_view(bytes_).substr(0, size))) << size;
  }
  EXPECT_ERROR(check(std::string_view(bytes_).substr(0, 2000)), "truncated HDF5 file");
  EXPECT_ERROR(check(bytes_ + "x"), "should have");
}

TEST_F(Hdf5Guard, OtherSuperblocksAreNotOurs) {
  for (const char version : {'\1', '\2', '\4'}) {
    EXPECT_ERROR(check(edited_at(8, std::string(1, version))),
                 "not a codebook of kvcal: its superblock has version");
  }
  EXPECT_ERROR(check(std::string(512, '\0') + bytes_), "its signature does not come first (byte 0)");
  EXPECT_ERROR(check(edited_at(9, "\4")), "its addresses have bytes: 4");
  EXPECT_ERROR(check(edited_at(12, "\1")), "its base address is 1");
  EXPECT_ERROR(check(edited_at(20, number(2000, 8))), "its superblock has an extension, at 2000");
  EXPECT_ERROR(check(edited_at(36, number(0, 8))),
               "object header of version 137 (byte 0); kvcal did not write it");
  EXPECT_ERROR(check(edited_at(36, kNowhere)), "bytes are expected here");
}

TEST_F(Hdf5Guard, AWrongChecksumIsDamage) {
  std::string damaged = bytes_;
  damaged[60] = '\1';
  EXPECT_ERROR(check(damaged), "a damaged or truncated HDF5 file: /: a checksum that does not match");
}

TEST_F(Hdf5Guard, HeapsOfAttributesAndLinksAreNotOurs) {
  const std::string empty = "\0\0"s + std::string(kNowhere) + std::string(kNowhere);
  const std::string heap = "\0\0"s + number(48, 8) + std::string(kNowhere);
  EXPECT_ERROR(check(edited("\x15\x12\0\4"s + empty, "\x15\x12\0\4"s + heap)),
               "its attributes in a heap, at 48");
  EXPECT_ERROR(check(edited("\2\x12\0\0"s + empty, "\2\x12\0\0"s + heap)), "its links in a heap, at 48");
}

TEST_F(Hdf5Guard, ACycleOfGroupsIsRefused) {
  const std::size_t link = bytes_.find("\6layers");
  ASSERT_NE(link, std::string::npos);
  EXPECT_ERROR(check(edited_at(link + 7, number(48, 8))), "/layers: the same object under two names");
  // Into the middle of another structure, and at one of no kind.
  EXPECT_ERROR(check(edited_at(link + 7, number(50, 8))), "/layers: has an object header of version");
}

TEST_F(Hdf5Guard, AContinuationOnBytesOfAnotherStructureIsRefused) {
  const std::size_t continuation = bytes_.find("\x10\x10\0\0"s);
  ASSERT_NE(continuation, std::string::npos);
  EXPECT_ERROR(check(edited_at(continuation + 4, number(48, 8) + number(100, 8))),
               "a continuation of a header on bytes that belong to something else");
  EXPECT_ERROR(check(edited_at(continuation + 12, number(7, 8))), "too short for its checksum");
  EXPECT_ERROR(check(edited_at(continuation + 12, number(1ULL << 63, 8))), "bytes are expected here");
}

/// A file whose root has these messages, and these bytes behind it.
std::string file_of(const std::vector<std::pair<int, std::string>>& messages, std::string_view behind) {
  std::string body;
  for (const auto& [type, content] : messages) {
    body += number(static_cast<std::uint64_t>(type), 1) + number(content.size(), 2) + number(0, 1) + content;
  }
  std::string root = "OHDR\2\2"s + number(body.size(), 4) + body;
  root += number(checksum(root), 4);
  const std::size_t size = 48 + root.size() + behind.size();
  std::string superblock = "\x89HDF\r\n\x1a\n\3\x08\x08\0"s + number(0, 8) + std::string(kNowhere) +
                           number(size, 8) + number(48, 8);
  superblock += number(checksum(superblock), 4);
  return superblock + root + std::string(behind);
}

const std::string kLinkInfo = "\0\0"s + std::string(kNowhere) + std::string(kNowhere);

/// The root's attribute "t": `count` texts, all of them the one object of a heap, of `length` bytes; the
/// attribute says they have `said`.
std::string texts_file(std::uint64_t count, std::uint64_t length, std::uint64_t said,
                       std::uint64_t index = 1) {
  const std::string type =
      "\x19\1\1\0"s + number(16, 4) + "\x10\0\0\0"s + number(1, 4) + number(0, 2) + number(8, 2);
  const std::string space = "\2\1\0\1"s + number(count, 8);
  std::string attribute =
      "\3\0"s + number(2, 2) + number(type.size(), 2) + number(space.size(), 2) + "\0t\0"s + type + space;
  const std::uint64_t heap = 48 + 10 + 4 + kLinkInfo.size() + 4 + attribute.size() + 16 * count + 4;
  for (std::uint64_t i = 0; i < count; ++i) attribute += number(said, 4) + number(heap, 8) + number(index, 4);
  const std::uint64_t heap_size = std::max<std::uint64_t>(4096, (16 + 16 + length + 7) / 8 * 8 + 16);
  std::string content =
      "GCOL\1\0\0\0"s + number(heap_size, 8) + number(1, 2) + number(1, 6) + number(length, 8);
  content += std::string((length + 7) / 8 * 8, 'x');
  content += number(0, 8) + number(heap_size - content.size(), 8);
  content.resize(heap_size);
  return file_of({{2, kLinkInfo}, {0x0c, attribute}}, content);
}

TEST_F(Hdf5Guard, TextOfVariableLengthIsBoundedByTheFile) {
  EXPECT_NO_THROW(check(texts_file(3, 5, 5)));
  testing::write_bytes(path_, texts_file(3, 5, 5));
  EXPECT_EQ(read_hdf5_tree(path_).values.at("/@t").text(), "xxxxx\0xxxxx\0xxxxx\0"s);
  EXPECT_ERROR(check(texts_file(3000, 1 << 20, 1 << 20)),
               "/@t: holds with others more text than the file has bytes");
  EXPECT_ERROR(check(texts_file(1, 6, 5)), "text of 5 bytes that the heap");
  EXPECT_ERROR(check(texts_file(1, 5, 5, 2)), "text of 5 bytes that the heap");
}

// A root laid out as HDF5 1.6 did, and h5py still does: where its structures begin.
constexpr std::uint64_t kRoot = 96;
constexpr std::uint64_t kHeap = kRoot + 16 + 8 + 16;
constexpr std::uint64_t kNames = kHeap + 32;
constexpr std::uint64_t kTree = kNames + 32;
constexpr std::uint64_t kSymbols = kTree + 544;
constexpr std::uint64_t kChild = kSymbols + 328;

std::string old_message(int type, const std::string& content) {
  const std::size_t padded = (content.size() + 7) / 8 * 8;
  return number(static_cast<std::uint64_t>(type), 2) + number(padded, 2) + number(0, 4) + content +
         std::string(padded - content.size(), '\0');
}

/// An object header of version 1, with these messages (as old_message gives them).
std::string old_header(const std::vector<std::string>& messages) {
  std::string body;
  for (const std::string& message : messages) body += message;
  return number(1, 2) + number(messages.size(), 2) + number(1, 4) + number(body.size(), 4) + number(0, 4) +
         body;
}

/// The root holds one entry, "a". Each field is what the file says.
struct OldGroup {
  std::uint64_t child = kChild;
  std::uint64_t node = kSymbols;
  char level = 0;
  std::uint64_t free = 16;
  std::uint64_t next_free = 1;
  std::uint64_t name = 8;
  char name_end = 0;

  /// From kHeap on.
  [[nodiscard]] std::string structures(const std::string& object) const {
    std::string behind = "HEAP\0\0\0\0"s + number(32, 8) + number(free, 8) + number(kNames, 8);
    behind += number(0, 8) + "a"s + number(0, 7) + number(next_free, 8) + number(16, 7) + name_end;
    behind += "TREE\0"s + level + number(1, 2) + std::string(kNowhere) + std::string(kNowhere);
    behind += number(0, 8) + number(node, 8) + number(8, 8);
    behind.resize(kSymbols - kHeap);
    behind += "SNOD\1\0"s + number(1, 2) + number(name, 8) + number(child, 8);
    behind.resize(kChild - kHeap);
    return behind + object;
  }
  /// "a" is an empty group.
  [[nodiscard]] std::string structures() const {
    std::string group = "OHDR\2\0"s + number(4 + kLinkInfo.size(), 1) + "\2\x12\0\0"s + kLinkInfo;
    return structures(group + number(checksum(group), 4));
  }
  /// In a file that is of kvcal otherwise.
  [[nodiscard]] std::string file() const {
    const std::string table = number(kTree, 8) + number(kHeap, 8);
    const std::size_t before = file_of({{0x11, table}}, "").size();
    return file_of({{0x11, table}}, std::string(kHeap - before, '\0') + structures());
  }
};

/// Superblock 0, the root, and these bytes from kHeap on.
std::string h5py_file(const std::string& structures) {
  const std::string table = number(kTree, 8) + number(kHeap, 8);
  std::string bytes = "\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0\4\0\x10\0"s + number(0, 4) + number(0, 8);
  bytes += std::string(kNowhere) + number(kHeap + structures.size(), 8) + std::string(kNowhere);
  bytes += number(0, 8) + number(kRoot, 8) + number(1, 8) + table;
  return bytes + old_header({old_message(0x11, table)}) + structures;
}

/// "a" is a dataset of uint16, 7 in chunks of 4, all zero (so that its checksums are). Each field is what the
/// file says.
struct OldChunks {
  struct Chunk {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 12;
    std::uint64_t filters_left_out = 0;
    std::uint64_t within = 0;
    int address = 0;  ///< in chunks
  };
  std::vector<Chunk> chunks{{.offset = 0}, {.offset = 4, .address = 1}};
  std::uint64_t end = 4;
  std::string fill = "\2\0\0\0\0\0"s;

  [[nodiscard]] std::string file() const {
    const auto messages = [this](std::uint64_t tree) {
      return old_header({old_message(1, "\1\1\1"s + number(0, 5) + number(7, 8) + std::string(kNowhere)),
                         old_message(3, "\x10\0\0\0\2\0\0\0\0\0\x10\0"s), old_message(4, fill),
                         old_message(5, "\2\3\2\1\2\0\0\0\0\0"s),
                         old_message(8, "\3\2\2"s + number(tree, 8) + number(4, 4) + number(2, 4)),
                         old_message(0x0b, "\1\1"s + number(0, 6) + number(3, 8)),
                         old_message(0x12, "\1\0\0\0\1\2\3\4"s)});
    };
    const std::uint64_t tree = kChild + messages(0).size();
    const std::uint64_t data = tree + 24 + 64 * 8 + 65 * 24;
    std::string bytes = messages(tree) + "TREE\1\0"s + number(chunks.size(), 2);
    bytes += std::string(kNowhere) + std::string(kNowhere);
    for (const Chunk& chunk : chunks) {
      bytes += number(chunk.bytes, 4) + number(chunk.filters_left_out, 4) + number(chunk.offset, 8);
      bytes += number(chunk.within, 8) + number(data + static_cast<std::uint64_t>(12 * chunk.address), 8);
    }
    bytes += number(0, 8) + number(end, 8) + number(2, 8);
    bytes.resize(data - kChild + 24);
    return h5py_file(OldGroup().structures(bytes));
  }
};

TEST_F(Hdf5Guard, GroupsOfAnEarlierFormat) {
  EXPECT_NO_THROW(check(OldGroup().file()));
  testing::write_bytes(path_, OldGroup().file());
  EXPECT_EQ(read_hdf5_tree(path_).groups, std::set<std::string>{"/a"});
  EXPECT_ERROR(check(OldGroup{.child = 48}.file()), "/a: the same object under two names");
  EXPECT_ERROR(check(OldGroup{.node = kTree, .level = 1}.file()), "on bytes that belong to something else");
  EXPECT_ERROR(check(OldGroup{.node = kHeap}.file()), "on bytes that belong to something else");
  EXPECT_ERROR(check(OldGroup{.node = 1U << 30}.file()), "bytes are expected here");
  EXPECT_ERROR(check(OldGroup{.free = 24}.file()), "list of free parts leaves it");
  EXPECT_ERROR(check(OldGroup{.next_free = 16}.file()), "list of free parts leaves it");
  EXPECT_ERROR(check(OldGroup{.name = 32}.file()), "a name outside of its heap");
  EXPECT_ERROR(check(OldGroup{.name = 31, .name_end = 'x'}.file()), "free part beyond its end");
  EXPECT_ERROR(check(OldGroup{.free = 1, .name = 31, .name_end = 'x'}.file()), "a name without an end");
}

TEST_F(Hdf5Guard, WhatH5pyWritesIsRead) {
  const std::string bytes = h5py_file(OldGroup().structures());
  testing::write_bytes(path_, bytes);
  EXPECT_EQ(read_hdf5_tree(path_).groups, std::set<std::string>{"/a"});
  const auto with = [&](std::size_t at, std::string_view to) {
    std::string edited = bytes;
    return edited.replace(at, to.size(), to);
  };
  EXPECT_NO_THROW(check(with(72, number(0, 4) + number(0, 4) + number(1, 8) + number(2, 8))));  // not cached
  EXPECT_ERROR(check(with(9, "\1")), "not a codebook of kvcal: its free space, its root");
  EXPECT_ERROR(check(with(12, "\1")), "its shared messages have version 1");
  EXPECT_ERROR(check(with(13, "\4")), "its addresses have bytes: 4");
  EXPECT_ERROR(check(with(14, "\4")), "its lengths have bytes: 4");
  for (const std::size_t at : {16, 18}) {
    EXPECT_ERROR(check(with(at, number(0, 2))), "nodes of groups with room for twice 0");
    EXPECT_ERROR(check(with(at, number(1025, 2))), "nodes of groups with room for twice 1025");
    EXPECT_ERROR(check(with(at, number(1024, 2))), "bytes are expected here");
  }
  EXPECT_ERROR(check(with(20, "\1")), "it was not closed, flags 1");
  EXPECT_ERROR(check(with(24, "\1")), "its base address is 1");
  EXPECT_ERROR(check(with(32, number(kHeap, 8))), "its list of free space is at 136");
  EXPECT_ERROR(check(with(40, "\1")), "and should have");
  EXPECT_ERROR(check(with(48, number(kHeap, 8))), "its driver is described at 136");
  EXPECT_ERROR(check(with(64, number(0, 8))), "object header of version 137");
  EXPECT_ERROR(check(with(64, number(48, 8))), "object header of version 255");
  EXPECT_ERROR(check(with(72, "\2")), "its root is cached as the type 2");
  EXPECT_ERROR(check(with(kTree + 8, number(kTree, 8))),
               "a B-tree whose node does not name the ones beside it");
  EXPECT_ERROR(check(with(kTree + 16, number(kTree, 8))), "a B-tree whose last node names another");
  EXPECT_ERROR(check(with(80, number(kHeap, 8))), "a table of symbols that disagrees with the group");
  EXPECT_ERROR(check(with(88, number(kTree, 8))), "a table of symbols that disagrees with the group");
}

TEST_F(Hdf5Guard, ChunksOfAnEarlierFormat) {
  testing::write_bytes(path_, OldChunks().file());
  const Hdf5Value value = read_hdf5_tree(path_).values.at("/a");
  EXPECT_EQ(value.type, "uint16");
  EXPECT_EQ(value.data, std::vector<std::byte>(14));
  const auto chunk = [](OldChunks::Chunk second) { return OldChunks{.chunks = {{}, second}}.file(); };
  EXPECT_NO_THROW(check(chunk({.offset = 4, .address = 1})));
  EXPECT_ERROR(check(chunk({.address = 1})), "chunks in another order than their B-tree's");
  EXPECT_ERROR(check(chunk({.offset = 4})), "a chunk on bytes that belong to something else");
  EXPECT_ERROR(check(chunk({.offset = 4, .address = 2})), "bytes are expected here");
  EXPECT_ERROR(check(chunk({.offset = 6, .address = 1})), "a chunk that begins at element 6");
  EXPECT_ERROR(check(chunk({.offset = 8, .address = 1})), "a chunk that begins at element 8");
  EXPECT_ERROR(check(chunk({.offset = 4, .bytes = 8, .address = 1})), "chunks of 12 bytes, and one of 8");
  EXPECT_ERROR(check(chunk({.offset = 4, .filters_left_out = 1, .address = 1})),
               "a chunk without its checksum");
  EXPECT_ERROR(check(chunk({.offset = 4, .within = 1, .address = 1})), "begins within an element");
  EXPECT_ERROR(check(OldChunks{.end = 3}.file()), "a B-tree of chunks that ends before them");
  EXPECT_ERROR(check(OldChunks{.fill = "\4\0\0\0\0\0\0\0"s}.file()), "a fill value of another size");
  EXPECT_ERROR(check(OldChunks{.fill = "\x40\0\0\0\0\0\0\0"s}.file()), "a message that ends");
}

TEST_F(Hdf5Guard, EveryFlippedBitOfWhatH5pyWritesPassesOrIsRefused) {
  const std::string bytes = OldChunks().file();
  int passed = 0;
  for (std::size_t i = 0; i < bytes.size() * 8; ++i) {
    std::string damaged = bytes;
    damaged[i / 8] = static_cast<char>(damaged[i / 8] ^ (1 << (i % 8)));
    if (!passes(damaged)) continue;
    if (passed++ % kSampled == 0) {
      testing::write_bytes(path_, damaged);
      try {
        (void)read_hdf5_tree(path_);
      } catch (const base::InvalidInput&) {
      }
    }
    ASSERT_FALSE(HasFailure()) << "bit " << i % 8 << " of byte " << i / 8;
  }
  EXPECT_GT(passed, 1000);  // the room that nodes keep for more
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(passes(std::string_view(bytes).substr(0, size))) << size;
  }
}

}  // namespace
}  // namespace kvcal::formats
