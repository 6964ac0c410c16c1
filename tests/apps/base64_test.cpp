#include "apps/base64.h"

#include <gtest/gtest.h>

#include <span>
#include <string_view>

namespace kvcal::apps {
namespace {

std::string encoded(std::string_view text) {
  return base64_of(std::as_bytes(std::span(text)));
}

// RFC 4648, section 10.
TEST(Base64, TestVectorsOfTheRfc) {
  EXPECT_EQ(encoded(""), "");
  EXPECT_EQ(encoded("f"), "Zg==");
  EXPECT_EQ(encoded("fo"), "Zm8=");
  EXPECT_EQ(encoded("foo"), "Zm9v");
  EXPECT_EQ(encoded("foob"), "Zm9vYg==");
  EXPECT_EQ(encoded("fooba"), "Zm9vYmE=");
  EXPECT_EQ(encoded("foobar"), "Zm9vYmFy");
  EXPECT_EQ(encoded("\xff\xef\xbf"), "/++/");
}

TEST(Base64, NumbersAreLittleEndianFloat32) {
  EXPECT_EQ(base64_of(std::vector<float>{1.0F, -2.0F}), "AACAPwAAAMA=");
}

}  // namespace
}  // namespace kvcal::apps
