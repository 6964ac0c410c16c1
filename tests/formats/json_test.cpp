#include "formats/json.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "base/error.h"

namespace kvcal::formats {
namespace {

std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') +
         std::string(static_cast<std::size_t>(depth), ']');
}

/// What InvalidInput says; "" where the text is taken. Keys in their order or not: the same.
std::string refusal(const std::string& text, const JsonLimits& limits = {}) {
  std::string plain, ordered;
  try {
    (void)parse_json(text, "config.json", limits);
  } catch (const base::InvalidInput& error) {
    plain = error.what();
  }
  try {
    (void)parse_ordered_json(text, "config.json", limits);
  } catch (const base::InvalidInput& error) {
    ordered = error.what();
  }
  EXPECT_EQ(plain, ordered);
  return plain;
}

TEST(Json, IsTakenAsItIs) {
  const std::string text =
      R"({"b": [1, -2, 2.5, null, true, "\u00e9\n"], "a": {"x": {}, "y": []}, "": 18446744073709551615})";
  EXPECT_EQ(parse_json(text, "x"), nlohmann::json::parse(text));
  EXPECT_EQ(parse_ordered_json(text, "x").dump(), nlohmann::ordered_json::parse(text).dump());
  for (const char* scalar : {"1", "\"text\"", "null", "[]", "{}", " false "})
    EXPECT_EQ(parse_json(scalar, "x"), nlohmann::json::parse(scalar));
}

TEST(Json, NestingEndsAtTheLimit) {
  const JsonLimits limits;
  EXPECT_EQ(refusal(nested(limits.depth)), "");
  EXPECT_EQ(refusal(nested(limits.depth + 1)), "config.json: JSON nested deeper than 64");
  EXPECT_EQ(refusal("{\"a\":" + nested(200000) + "}"), "config.json: JSON nested deeper than 64");
  // Brackets in text are no nesting.
  EXPECT_EQ(refusal("[\"" + std::string(1000, '[') + "\"]"), "");
}

TEST(Json, SizeAndValuesEndAtTheirLimits) {
  EXPECT_EQ(refusal("[1,2,3]", {.values = 4}), "");
  EXPECT_EQ(refusal("[1,2,3]", {.values = 3}), "config.json: more than 3 values");
  EXPECT_EQ(refusal("[1,2,3]", {.bytes = 6}), "config.json: 7 bytes of JSON; expected 6 at most");
}

TEST(Json, AKeyIsGivenOnce) {
  EXPECT_EQ(refusal(R"({"a": 1, "b": {"a": 2}, "c": [{"a": 3}, {"a": 4}]})"), "");
  EXPECT_EQ(refusal(R"({"x": {"a": 1, "b": 2, "a": 3}})"), "config.json: the key 'a' is given twice");
  EXPECT_EQ(refusal(R"({"a": 1, "\u0061": 3})"), "config.json: the key 'a' is given twice");
}

TEST(Json, WhatIsNoJsonIsRefusedWithItsPlace) {
  for (const char* text :
       {"", "{", "[1,]", "{\"a\"}", "nul", "[1] x", "\"\xff\"", "{'a': 1}", "[NaN]", "[01]"}) {
    EXPECT_EQ(refusal(text).rfind("config.json: not JSON: parse error at line 1, column ", 0), 0U) << text;
  }
  EXPECT_EQ(refusal("[1e999]"), "config.json: not JSON: number overflow parsing '1e999'");
}

// A parser that looks through all members again for each of them takes hours.
TEST(Json, ManyObjectsAndManyKeysTakeTimeInProportion) {
  std::string objects = "[{}", keys = "{\"k\": 0";
  for (int i = 0; i < 300000; ++i) {
    objects += ",{\"a\":1}";
    keys += ",\"k" + std::to_string(i) + "\":1";
  }
  EXPECT_EQ(refusal(objects + "]"), "");
  EXPECT_EQ(refusal(keys + "}"), "");
}

TEST(Json, AFileIsNamed) {
  const std::string file = ::testing::TempDir() + "json_test.json";
  std::ofstream(file) << "{\"a\": [1, 2}";
  try {
    (void)read_json_file(file);
    FAIL();
  } catch (const base::InvalidInput& error) {
    EXPECT_EQ(std::string(error.what()).rfind(file + ": not JSON: ", 0), 0U) << error.what();
  }
  EXPECT_THROW((void)read_json_file(file + ".none"), base::SystemError);
  std::ofstream(file) << "{\"a\": [1, 2]}";
  EXPECT_EQ(read_json_file(file).at("a").size(), 2U);
  EXPECT_THROW((void)read_json_file(file, {.bytes = 5}), base::InvalidInput);
}

}  // namespace
}  // namespace kvcal::formats
