#include "base/checked.h"

#include <gtest/gtest.h>

#include <array>

namespace kvcal::base {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

TEST(Checked, ExactUpToTheLargest) {
  EXPECT_EQ(checked_multiply<std::int64_t>(kLargest / 7, 7, "x"), kLargest / 7 * 7);
  EXPECT_EQ(checked_add<std::int64_t>(kLargest - 1, 1, "x"), kLargest);
  EXPECT_EQ(checked_cast<std::uint8_t>(255, "x"), 255);
}

TEST(Checked, ThrowsWhereTheResultDoesNotFit) {
  EXPECT_THROW((void)checked_multiply<std::int64_t>(kLargest / 7 + 1, 7, "x"), InvalidInput);
  EXPECT_THROW((void)checked_multiply<std::uint64_t>(std::uint64_t{1} << 32, std::uint64_t{1} << 32, "x"),
               InvalidInput);
  EXPECT_THROW((void)checked_add<std::int64_t>(kLargest, 1, "x"), InvalidInput);
  EXPECT_THROW((void)checked_add<std::uint8_t>(255, 1, "x"), InvalidInput);
  EXPECT_THROW((void)checked_cast<std::uint8_t>(256, "x"), InvalidInput);
  EXPECT_THROW((void)checked_cast<std::uint64_t>(-1, "x"), InvalidInput);
}

TEST(Checked, TheMessageNamesWhatOverflowed) {
  try {
    (void)checked_cast<std::uint8_t>(-1, "the header's length");
    FAIL();
  } catch (const InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("the header's length"), std::string::npos);
  }
}

TEST(Checked, ElementCount) {
  EXPECT_EQ(element_count({}, "x"), 1);
  EXPECT_EQ(element_count(std::array<std::int64_t, 3>{2, 3, 4}, "x"), 24);
  EXPECT_EQ(element_count(std::array<std::int64_t, 2>{0, kLargest}, "x"), 0);
  EXPECT_THROW((void)element_count(std::array<std::int64_t, 2>{-1, 4}, "x"), InvalidInput);
  EXPECT_THROW((void)element_count(std::array<std::int64_t, 2>{kLargest, 2}, "x"), InvalidInput);
}

}  // namespace
}  // namespace kvcal::base
