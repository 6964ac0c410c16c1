#include "formats/safetensors.h"

#include <cstring>
#include <vector>

#include "formats_testing.h"

namespace kvcal::formats {
namespace {

using testing::TemporaryFolder;
using testing::write_bytes;

std::string file_of(std::string_view header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes.append(header).append(data);
}

class Safetensors : public ::testing::Test {
 protected:
  std::string open_error(std::string_view header, std::string_view data) {
    write_bytes(path_, file_of(header, data));
    return testing::error_of([&] { SafetensorsFile file(path_); });
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "model.safetensors";
};

#define EXPECT_REFUSED(header, data, part)                                          \
  do {                                                                              \
    const std::string message = open_error(header, data);                           \
    EXPECT_NE(message.find(part), std::string::npos) << "the message: " << message; \
    EXPECT_NE(message.find("model.safetensors"), std::string::npos);                \
  } while (false)

TEST_F(Safetensors, ReadsTensorsByName) {
  write_bytes(
      path_,
      file_of(R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
              R"("a":{"shape":[2,1],"data_offsets":[8,12],"dtype":"BF16"},)"
              R"("empty":{"dtype":"F16","shape":[0,3],"data_offsets":[12,12]}}   )",
              std::string_view("\0\0\x80\x3f\0\0\0\xc0\x80\x3f\0\xc0", 12)));
  const SafetensorsFile file(path_);
  ASSERT_EQ(file.tensors().size(), 3U);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.get("a").shape, (std::vector<std::int64_t>{2, 1}));
  EXPECT_TRUE(file.get("empty").data.empty());
  EXPECT_EQ(file.find("c"), nullptr);
  for (const char* name : {"a", "b"}) {
    std::vector<float> values(2);
    copy_to_float(file.get(name).dtype, file.get(name).data, values, name);
    EXPECT_EQ(values, (std::vector<float>{1, -2})) << name;
  }
  EXPECT_ERROR((void)file.get("c"), "the tensor 'c' is missing");
}

TEST_F(Safetensors, RefusesABadLength) {
  write_bytes(path_, "1234567");
  EXPECT_ERROR(SafetensorsFile{path_}, "7 bytes are too short");
  write_bytes(path_, file_of("{}", "").substr(0, 9));
  EXPECT_ERROR(SafetensorsFile{path_}, "header of 2 bytes is longer than the file of 9 bytes");
  write_bytes(path_, std::string(8, '\xff') + "{}");
  EXPECT_ERROR(SafetensorsFile{path_}, "limit of 100000000");
  write_bytes(path_, "");
  EXPECT_ERROR(SafetensorsFile{path_}, "0 bytes are too short");
}

TEST_F(Safetensors, RefusesABadHeader) {
  EXPECT_REFUSED("[]", "", "does not begin with '{'");
  EXPECT_REFUSED("{", "", "not JSON");
  EXPECT_REFUSED("{} x", "", "not JSON");
  EXPECT_REFUSED("{\"\xff\":{}}", "", "not JSON");
  EXPECT_REFUSED(R"({"a":1})", "", "'a' must be an object");
  EXPECT_REFUSED(R"({"a":{}})", "", "tensor 'a': no dtype");
  EXPECT_REFUSED(R"({"a":{"dtype":"F32","shape":[]}})", "", "tensor 'a': no data_offsets");
  EXPECT_REFUSED(R"({"a":{"dtype":"F33"}})", "", "unknown dtype 'F33'");
  EXPECT_REFUSED(R"({"a":{"dtype":7}})", "", "wrong type of dtype");
  EXPECT_REFUSED(R"({"a":{"shape":[-1]}})", "", "negative number -1");
  EXPECT_REFUSED(R"({"a":{"shape":[1.5]}})", "", "the number 1.5");
  EXPECT_REFUSED(R"({"a":{"shape":[[1]]}})", "", "found an array");
  EXPECT_REFUSED(R"({"a":{"data_offsets":[1]}})", "", "must be two numbers");
  EXPECT_REFUSED(R"({"a":{"data_offsets":[1,2,3]}})", "", "wrong type of data_offsets");
  EXPECT_REFUSED(R"({"a":{"data_offsets":"x"}})", "", "wrong type of data_offsets");
  EXPECT_REFUSED(R"({"a":{"extra":1}})", "", "unknown key 'extra'");
  EXPECT_REFUSED(R"({"__metadata__":{"a":1}})", "", "__metadata__ must map text to text");
  EXPECT_REFUSED(R"({"__metadata__":"a"})", "", "'__metadata__' must be an object");
  EXPECT_REFUSED(R"({"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{}})", "x",
                 "the name 'a' is given twice");
  EXPECT_REFUSED(R"({"a":{"dtype":"U8","dtype":"U8"}})", "x", "the key 'dtype' is given twice");
  EXPECT_REFUSED("{\"a\":" + std::string(100'000, '['), "", "'a' must be an object");
}

TEST_F(Safetensors, RefusesTensorsThatDoNotFillTheDataExactly) {
  const std::string a = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})";
  EXPECT_REFUSED(a + "}", "123", "ends at byte 4, but the file holds 3 bytes");
  EXPECT_REFUSED(a + "}", "12345", "1 bytes after the last tensor");
  EXPECT_REFUSED(a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})", "12345",
                 "'a' and 'b' overlap at byte 3");
  EXPECT_REFUSED(a + R"(,"b":{"dtype":"U8","shape":[2],"data_offsets":[5,7]}})", "1234567",
                 "bytes 4 to 5 of the data");
  EXPECT_REFUSED(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "1234",
                 "hold 4 bytes, but its dtype F32");
  EXPECT_REFUSED(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", "12", "do not fill whole bytes");
  EXPECT_REFUSED(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[4,0]}})", "",
                 "begin at 4 after their end 0");
  EXPECT_REFUSED(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", "1234",
                 "overflows");
  EXPECT_REFUSED(R"({"a":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]}})", "1234",
                 "overflows");
  EXPECT_REFUSED(R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", "1234",
                 "overflows");
}

TEST_F(Safetensors, ReadsBackWhatWasWritten) {
  const std::vector<float> wide = {1.5F, -2, 3};
  const std::vector<std::uint16_t> narrow = {0x3f80};
  const std::vector<TensorView> tensors = {
      {"narrow", Dtype::BF16, {1}, std::as_bytes(std::span(narrow)), {}},
      {"wide \"1\"", Dtype::F32, {3, 1}, std::as_bytes(std::span(wide)), {}},
  };
  write_safetensors(path_, tensors, {{"made", "by us"}});
  const SafetensorsFile file(path_);
  EXPECT_EQ(file.metadata().at("made"), "by us");
  EXPECT_EQ(file.get("wide \"1\"").shape, (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(std::memcmp(file.get("wide \"1\"").data.data(), wide.data(), 12), 0);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.get("wide \"1\"").data.data()) % 4, 0U);

  const std::vector<TensorView> reversed = {tensors[1], tensors[0]};
  write_safetensors(folder_ / "reversed", reversed, {{"made", "by us"}});
  EXPECT_EQ(base::read_text_file(path_), base::read_text_file(folder_ / "reversed"));
}

TEST_F(Safetensors, RefusesToWriteWhatItWouldNotRead) {
  const std::vector<std::byte> data(4);
  const TensorView good{"a", Dtype::F32, {1}, data, {}};
  TensorView bad = good;
  EXPECT_ERROR(write_safetensors(path_, std::vector{good, good}), "'a' is given twice");
  bad.shape = {2};
  EXPECT_ERROR(write_safetensors(path_, std::vector{bad}), "given 4 bytes, but dtype and shape need 8");
  bad.name = "__metadata__";
  EXPECT_ERROR(write_safetensors(path_, std::vector{bad}), "not a name");
  EXPECT_ERROR(write_safetensors(path_, std::vector{good}, {{"a", "\xff"}}), "not UTF-8");
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

}  // namespace
}  // namespace kvcal::formats
