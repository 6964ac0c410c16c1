#include "formats/json_text.h"

#include <vector>

#include "formats_testing.h"

namespace kvcal::formats {
namespace {

TEST(CanonicalJson, SortsKeysAndDropsWhiteSpace) {
  EXPECT_EQ(canonical_json(" {\"b\" : [1, 2.50,\n1e-5], \"a\": {\"z\":null, \"y\":true}}", "x"),
            R"({"a":{"y":true,"z":null},"b":[1,2.5,1e-05]})");
  EXPECT_EQ(canonical_json("\"\\u00e9\"", "x"), "\"é\"");
}

TEST(CanonicalJson, TheSameDoubleInAnyWritingIsTheSameText) {
  EXPECT_EQ(canonical_json("1e4", "x"), canonical_json("10000.0", "x"));
  EXPECT_NE(canonical_json("10000", "x"), canonical_json("10001", "x"));
}

TEST(CanonicalJson, KeepsTheFieldsThatAreNamed) {
  const std::vector<std::string> keys = {"head_dim", "absent", "a"};
  EXPECT_EQ(canonical_json_fields(R"({"head_dim": 64, "b": 2, "a": [ ]})", keys, "x"),
            R"({"a":[],"head_dim":64})");
  EXPECT_ERROR((void)canonical_json_fields("[]", keys, "config.json"),
               "config.json: expected a JSON object, found array");
}

TEST(CanonicalJson, RefusesWhatIsNotJson) {
  EXPECT_ERROR((void)canonical_json("{", "config.json"), "config.json: not JSON");
  EXPECT_ERROR((void)canonical_json("{\"a\": NaN}", "config.json"), "config.json: not JSON");
  EXPECT_ERROR((void)canonical_json("\"\xff\"", "config.json"), "config.json: not JSON");
  EXPECT_ERROR((void)canonical_json("{\"a\": {\"b\": 1, \"b\": 2}}", "config.json"),
               "config.json: the key 'b' is given twice");
  EXPECT_ERROR((void)canonical_json(std::string(100'000, '['), "config.json"), "nested deeper than 64");
}

}  // namespace
}  // namespace kvcal::formats
