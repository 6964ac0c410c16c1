// A damaged codebook is refused with a reason or reads as the undamaged one; it never crashes.
#include <set>

#include "formats/codebook.h"
#include "formats_testing.h"
#include "sample_codebook.h"

namespace kvcal::formats {
namespace {

using testing::TemporaryFolder;

class CodebookDamage : public ::testing::Test {
 protected:
  void SetUp() override {
    // Every byte is tried: what is laid out as the rest of the file is left out.
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
  }

  /// Whether the bytes are refused; where they are not, they must read as the undamaged codebook.
  bool refused(std::string_view bytes) {
    testing::write_bytes(path_, bytes);
    try {
      EXPECT_EQ(read_codebook(path_), expected_);
      return false;
    } catch (const base::InvalidInput& error) {
      EXPECT_NE(std::string_view(error.what()).find("codebook.h5: "), std::string_view::npos) << error.what();
      return true;
    }
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "codebook.h5";
  std::string bytes_;
  Codebook expected_;
};

TEST_F(CodebookDamage, EveryFlippedByteIsRefusedOrHarmless) {
  std::size_t refusals = 0;
  for (std::size_t i = 0; i < bytes_.size(); ++i) {
    std::string damaged = bytes_;
    damaged[i] = static_cast<char>(~damaged[i]);
    refusals += refused(damaged) ? 1 : 0;
    ASSERT_FALSE(HasFailure()) << "byte " << i << " of " << bytes_.size();
  }
  // Guards against a reader that accepts everything: 10925 of 12540 bytes were refused when this was written.
  EXPECT_GT(refusals, bytes_.size() * 8 / 10);
}

TEST_F(CodebookDamage, EveryFlippedBitOfTheFirstKilobyteIsRefusedOrHarmless) {
  for (std::size_t i = 0; i < 1024; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes_;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      (void)refused(damaged);
      ASSERT_FALSE(HasFailure()) << "bit " << bit << " of byte " << i;
    }
  }
}

TEST_F(CodebookDamage, EveryTruncationIsRefused) {
  for (std::size_t size = 0; size < bytes_.size(); size += size < 600 ? 1 : 37) {
    EXPECT_TRUE(refused(std::string_view(bytes_).substr(0, size))) << size;
  }
  EXPECT_TRUE(refused(std::string_view(bytes_).substr(0, bytes_.size() - 1)));
}

TEST_F(CodebookDamage, OverwrittenStretchesAreRefusedOrHarmless) {
  for (std::size_t at = 0; at + 64 < bytes_.size(); at += 61) {
    for (const char filler : {'\0', '\xff'}) {
      std::string damaged = bytes_;
      damaged.replace(at, 64, 64, filler);
      (void)refused(damaged);
      ASSERT_FALSE(HasFailure()) << at;
    }
  }
}

TEST_F(CodebookDamage, FilesOfOtherKindsAreNamedAsSuch) {
  for (const std::string_view bytes : {"", "x", "{\"format\": \"kvcal-codebook\"}", "\x89HDF"}) {
    testing::write_bytes(path_, bytes);
    EXPECT_ERROR((void)read_codebook(path_), "not an HDF5 file");
  }
  testing::write_bytes(path_, "\x89HDF\r\n\x1a\n");
  EXPECT_ERROR((void)read_codebook(path_), "damaged or truncated HDF5 file");
  EXPECT_THROW((void)read_codebook(folder_.path()), base::SystemError);
}

}  // namespace
}  // namespace kvcal::formats
