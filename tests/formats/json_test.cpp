#include "formats/json_depth.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace kvcal::formats {
namespace {

std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') +
         std::string(static_cast<std::size_t>(depth), ']');
}

TEST(JsonDepth, RefusesBeyondTheLimitOnly) {
  EXPECT_NO_THROW(check_json_depth(nested(kMaxJsonDepth), "x"));
  EXPECT_THROW(check_json_depth(nested(kMaxJsonDepth + 1), "x"), base::InvalidInput);
  EXPECT_THROW(check_json_depth("{\"a\":" + nested(200000) + "}", "x"), base::InvalidInput);
}

TEST(JsonDepth, BracketsInTextAreNoNesting) {
  const std::string brackets(1000, '[');
  EXPECT_NO_THROW(check_json_depth("[\"" + brackets + "\", \"\\\"" + brackets + "\"]", "x"));
  // Closed strings end: what follows counts again.
  EXPECT_THROW(check_json_depth("[\"\\\\\"" + brackets + "]", "x"), base::InvalidInput);
}

TEST(JsonDepth, NamesWhatItRefuses) {
  try {
    check_json_depth(nested(100), "config.json");
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find("config.json"), std::string::npos);
  }
}

}  // namespace
}  // namespace kvcal::formats
