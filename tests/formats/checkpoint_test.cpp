#include "formats/checkpoint.h"

#include <vector>

#include "base/sha256.h"
#include "formats_testing.h"

namespace kvcal::formats {
namespace {

using testing::TemporaryFolder;
using testing::write_bytes;

class CheckpointTest : public ::testing::Test {
 protected:
  CheckpointTest() : large_(100'000, std::byte{7}) { large_.back() = std::byte{9}; }

  [[nodiscard]] TensorView tensor(const std::string& name) const {
    return {name, Dtype::U8, {static_cast<std::int64_t>(large_.size())}, large_, {}};
  }
  void shard(std::string_view file, const std::vector<std::string>& names) const {
    std::vector<TensorView> tensors;
    for (const std::string& name : names) tensors.push_back(tensor(name));
    write_safetensors(folder_ / file, tensors);
  }
  void index(std::string_view weight_map) const {
    write_bytes(folder_ / "model.safetensors.index.json",
                base::concat(R"({"metadata":{},"weight_map":)", weight_map, "}"));
  }
  void two_shards() const {
    shard("1.safetensors", {"c", "a"});
    shard("2.safetensors", {"b"});
    index(R"({"a":"1.safetensors","b":"2.safetensors","c":"1.safetensors"})");
  }

  TemporaryFolder folder_;
  std::vector<std::byte> large_;
};

TEST_F(CheckpointTest, ShardsAndOneFileHaveTheSameFingerprint) {
  two_shards();
  const Checkpoint sharded(folder_.path());
  ASSERT_EQ(sharded.tensors().size(), 3U);
  EXPECT_EQ(sharded.tensors()[1].name, "b");
  EXPECT_EQ(sharded.get("b").file.filename(), "2.safetensors");
  EXPECT_EQ(sharded.find("d"), nullptr);
  EXPECT_ERROR((void)sharded.get("d"), "the tensor 'd' is missing");
  sharded.advise_will_need(sharded.get("b"));
  sharded.advise_dont_need(sharded.get("b"));
  EXPECT_EQ(sharded.get("b").data.back(), std::byte{9});

  shard("model.safetensors", {"a", "b", "c"});
  const Checkpoint single(folder_.path());
  EXPECT_EQ(single.files().size(), 1U);
  EXPECT_EQ(single.weights_sha256(), sharded.weights_sha256());
}

TEST_F(CheckpointTest, TheFingerprintIsOfNamesTypesShapesAndEdges) {
  shard("model.safetensors", {"a"});
  const auto number = [](std::uint64_t value) {
    return std::string(reinterpret_cast<const char*>(&value), 8);
  };
  const std::string data(reinterpret_cast<const char*>(large_.data()), large_.size());
  const std::string expected = number(1) + "a" + number(2) + "U8" + number(1) + number(100'000) +
                               number(100'000) + data.substr(0, 32768) + data.substr(100'000 - 32768);
  EXPECT_EQ(Checkpoint(folder_.path()).weights_sha256(), base::sha256_hex(expected));
}

TEST_F(CheckpointTest, ShardsThatDisagreeWithTheIndexAreNamed) {
  two_shards();
  std::filesystem::resize_file(folder_ / "2.safetensors", 50'000);
  EXPECT_ERROR(Checkpoint{folder_.path()}, "2.safetensors: tensor 'b': its data ends");
  std::filesystem::remove(folder_ / "2.safetensors");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "the shard 2.safetensors");
  shard("2.safetensors", {"x"});
  EXPECT_ERROR(Checkpoint{folder_.path()}, "says that tensor 'b' is in 2.safetensors");
  shard("2.safetensors", {"a", "b"});
  EXPECT_ERROR(Checkpoint{folder_.path()},
               "the tensor 'a' is in two shards: 1.safetensors and 2.safetensors");
}

TEST_F(CheckpointTest, BadIndexesAreRefused) {
  for (const char* name : {"../1.safetensors", "/etc/passwd", "..", "", "a/b", "a\\\\b", "a\\u0000b"}) {
    index(base::concat(R"({"a":")", name, R"("})"));
    EXPECT_ERROR(Checkpoint{folder_.path()}, "not the name of a file in the same folder");
  }
  index(R"({"a":"1","a":"2"})");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "'a' is given twice");
  index(R"({"a":1})");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "the shard of tensor 'a' is not text");
  for (const char* map : {"{}", "[]", "1"}) {
    index(map);
    EXPECT_ERROR(Checkpoint{folder_.path()}, "no weight_map");
  }
  index("{");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "not JSON");
}

TEST_F(CheckpointTest, OtherFormatsAreNamedWithTheirConversion) {
  EXPECT_ERROR(Checkpoint{folder_ / "none"}, "there is no such folder");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "not a model folder");
  write_bytes(folder_ / "model-00001-of-00002.safetensors", "x");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "download the missing index");
  write_bytes(folder_ / "pytorch_model.bin", "x");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "found pytorch_model.bin");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "save_pretrained");
  write_bytes(folder_ / "consolidated.00.pth", "x");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "convert_llama_weights_to_hf");
  write_bytes(folder_ / "m.gguf", "x");
  EXPECT_ERROR(Checkpoint{folder_.path()}, "GGUF");
}

}  // namespace
}  // namespace kvcal::formats
