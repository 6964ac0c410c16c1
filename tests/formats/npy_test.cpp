#include "formats/npy.h"

#include "formats_testing.h"

namespace kvcal::formats {
namespace {

using testing::TemporaryFolder;
using testing::write_bytes;

std::string npy(std::string_view header, std::string_view data, char version = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += version;
  bytes += '\0';
  bytes += static_cast<char>(header.size());
  bytes += '\0';
  if (version > 1) bytes += std::string(2, '\0');
  return bytes.append(header).append(data);
}

std::string header(std::string_view descr, std::string_view shape, std::string_view fortran = "False") {
  return base::concat("{'descr': ", descr, ", 'fortran_order': ", fortran, ", 'shape': ", shape, ", }\n");
}

class Npy : public ::testing::Test {
 protected:
  void expect_refused(const std::string& bytes, std::string_view part) const {
    write_bytes(path_, bytes);
    EXPECT_ERROR(NpyFile{path_}, part);
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "a.npy";
};

TEST_F(Npy, ReadsBackWhatWasWritten) {
  const std::vector<std::int64_t> shape = {2, 3};
  write_npy(path_, std::vector<float>{1, 2, 3, 4, 5, 6}, shape);
  const NpyFile floats(path_);
  EXPECT_EQ(floats.floats(), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(std::vector(floats.shape().begin(), floats.shape().end()), shape);
  EXPECT_EQ((base::read_text_file(path_).size() - 24) % 64, 0U);
  EXPECT_ERROR((void)floats.integers(), "elements of F32; expected an integer");
  write_npy(path_, std::vector<double>{-0.5}, {});
  EXPECT_EQ(NpyFile(path_).floats(), std::vector<float>{-0.5F});
  write_npy(path_, std::vector<std::int32_t>{-1, 7}, std::vector<std::int64_t>{2});
  EXPECT_EQ(NpyFile(path_).integers(), (std::vector<std::int64_t>{-1, 7}));
  write_npy(path_, std::vector<std::int64_t>{}, std::vector<std::int64_t>{0, 5});
  EXPECT_EQ(NpyFile(path_).size(), 0);
  EXPECT_ERROR(write_npy(path_, std::vector<float>{1}, shape), "the shape holds 6 elements, but 1");
}

TEST_F(Npy, ReadsEveryVersionAndElement) {
  for (const char version : {'\1', '\2', '\3'}) {
    write_bytes(path_, npy(header("'<i4'", "(1,)"), std::string_view("\1\0\0\0", 4), version));
    EXPECT_EQ(NpyFile(path_).integers(), std::vector<std::int64_t>{1});
  }
  write_bytes(path_, npy(header("'<f2'", "(1,)"), std::string_view("\0\x3c", 2)));
  EXPECT_EQ(NpyFile(path_).floats(), std::vector<float>{1});
  write_bytes(path_, npy(header("'|u1'", "(2L,)"), "\xff\x01"));
  EXPECT_EQ(NpyFile(path_).integers(), (std::vector<std::int64_t>{255, 1}));
  write_bytes(path_, npy(header("'|b1'", "()"), "\x01"));
  EXPECT_EQ(NpyFile(path_).dtype(), Dtype::BOOL);
  write_bytes(path_, npy(header("'<u8'", "(1,)"), std::string(8, '\xff')));
  EXPECT_ERROR((void)NpyFile(path_).integers(), "overflows int64");
}

TEST_F(Npy, RefusesByName) {
  expect_refused("", "not a .npy file");
  expect_refused("PK\x03\x04 a zip archive", "not a .npy file");
  expect_refused(npy(header("'<f4'", "(1,)"), "1234", 4), ".npy version 4.0 is unknown");
  expect_refused(npy(header("'<f4'", "(1,)", "True"), "1234"), "Fortran order");
  expect_refused(npy(header("'>f4'", "(1,)"), "1234"), "big-endian");
  expect_refused(npy(header("'|O'", "(1,)"), "1234"), "pickled Python objects");
  expect_refused(npy(header("'<c8'", "(1,)"), "12345678"), "'<c8' are not supported");
  expect_refused(npy(header("[('a', '<f4')]", "(1,)"), "1234"), "structured");
  expect_refused(npy(header("'<f4'", "(1,)"), "123"), "truncated: 3 bytes of data, but its shape needs 4");
  expect_refused(npy(header("'<f4'", "(1,)"), "12345"), "1 bytes follow the array");
  expect_refused(npy(header("'<f4'", "(-1,)"), "1234"), "none negative");
  expect_refused(npy(header("'<f4'", "(9223372036854775807, 2)"), "1234"), "overflows");
  expect_refused(npy(header("'<f4'", "(99999999999999999999,)"), "1234"), "overflows");
  expect_refused(npy(header("'<f4'", "(1)"), "1234"), "must be a tuple");
  expect_refused(npy("{'descr': '<f4', 'descr': '<f4'}", ""), "given twice");
  expect_refused(npy("{'descr': '<f4'}", ""), "no 'fortran_order'");
  expect_refused(npy("{'descr': '<f4", ""), "without its closing quote");
  expect_refused(npy("{} x", ""), "text after the dictionary");
  expect_refused(npy(header("'<f4'", "(1,)"), "").substr(0, 20), "truncated in its header");
}

}  // namespace
}  // namespace kvcal::formats
