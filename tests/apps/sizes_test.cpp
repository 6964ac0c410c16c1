#include "apps/sizes.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"

namespace kvcal::apps {
namespace {

TEST(Sizes, SuffixesArePowersOf1024) {
  EXPECT_EQ(parse_size("512", "--x"), 512);
  EXPECT_EQ(parse_size("8K", "--x"), 8192);
  EXPECT_EQ(parse_size("8k", "--x"), 8192);
  EXPECT_EQ(parse_size("1M", "--x"), 1 << 20);
  EXPECT_EQ(parse_size("80GB", "--x"), std::int64_t{80} << 30);
  EXPECT_EQ(parse_size("80 GiB", "--x"), std::int64_t{80} << 30);
  EXPECT_EQ(parse_size("1.5G", "--x"), std::int64_t{3} << 29);
  EXPECT_EQ(parse_size(" 7B ", "--x"), 7);
  EXPECT_EQ(parse_size("2T", "--x"), std::int64_t{2} << 40);
  EXPECT_EQ(parse_size("9223372036854775807", "--x"), std::numeric_limits<std::int64_t>::max());
}

TEST(Sizes, WhatIsNoSizeIsRefusedNamingTheOption) {
  for (const char* text : {"", "K", "-1", "-0.5K", "1.5", "8X", "8KK", "8Kx", "nan", "inf", "infG", "1e400",
                           "8E9G9", "9223372036854775808", "8388608T", "0x10"}) {
    EXPECT_THROW(static_cast<void>(parse_size(text, "--x")), base::WrongUsage) << text;
  }
  try {
    static_cast<void>(parse_size("lots", "--memory"));
    FAIL();
  } catch (const base::WrongUsage& error) {
    EXPECT_NE(std::string(error.what()).find("--memory is 'lots'"), std::string::npos) << error.what();
  }
}

TEST(Sizes, CountsHaveLimits) {
  EXPECT_EQ(parse_count("8K", "--seqlen", 2, 10000), 8192);
  EXPECT_THROW(static_cast<void>(parse_count("1", "--seqlen", 2, 10000)), base::WrongUsage);
  EXPECT_THROW(static_cast<void>(parse_count("10K", "--seqlen", 2, 10000)), base::WrongUsage);
}

TEST(Sizes, MemoryWithoutAUnitIsAskedAbout) {
  EXPECT_EQ(parse_memory("8GB", "--memory"), std::int64_t{8} << 30);
  EXPECT_EQ(parse_memory("1M", "--memory"), 1 << 20);
  try {
    static_cast<void>(parse_memory("8", "--memory"));
    FAIL();
  } catch (const base::WrongUsage& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean 8GB?"), std::string::npos) << error.what();
  }
}

TEST(Sizes, NumbersAreReadWhole) {
  EXPECT_EQ(parse_integer("-3", "--seed"), -3);
  EXPECT_THROW(static_cast<void>(parse_integer("3.5", "--seed")), base::WrongUsage);
  EXPECT_THROW(static_cast<void>(parse_integer("99999999999999999999", "--seed")), base::WrongUsage);
  EXPECT_DOUBLE_EQ(parse_number("1e-3", "--gap"), 1e-3);
  EXPECT_THROW(static_cast<void>(parse_number("1%", "--outliers")), base::WrongUsage);
  EXPECT_THROW(static_cast<void>(parse_number("nan", "--outliers")), base::WrongUsage);
}

TEST(Sizes, ListsAreCutAtCommas) {
  EXPECT_EQ(split_list({"2, 3", "4"}, "--bits"), (std::vector<std::string>{"2", "3", "4"}));
  EXPECT_THROW(static_cast<void>(split_list({"2,,3"}, "--bits")), base::WrongUsage);
  EXPECT_THROW(static_cast<void>(split_list({""}, "--bits")), base::WrongUsage);
}

TEST(Sizes, BytesArePrintedInPowersOf1024) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(std::int64_t{20} << 20), "20 MiB");
  EXPECT_EQ(format_bytes((std::int64_t{1} << 30) - 1), "1 GiB");
  EXPECT_EQ(format_bytes(1000), "0.977 KiB");
  EXPECT_EQ(format_bytes(std::int64_t{5000} << 40), "5,000 TiB");
}

TEST(Sizes, DurationsHaveTwoUnits) {
  EXPECT_EQ(format_duration(0.424), "0.42 s");
  EXPECT_EQ(format_duration(12.3), "12 s");
  EXPECT_EQ(format_duration(59.7), "1 min 0 s");
  EXPECT_EQ(format_duration(125), "2 min 5 s");
  EXPECT_EQ(format_duration(12000), "3 h 20 min");
  EXPECT_EQ(format_duration(187200), "2 d 4 h");
  EXPECT_EQ(format_duration(std::numeric_limits<double>::quiet_NaN()), "?");
}

TEST(Sizes, CountsAreGroupedInThousands) {
  EXPECT_EQ(format_count(7), "7");
  EXPECT_EQ(format_count(123), "123");
  EXPECT_EQ(format_count(1234567), "1,234,567");
  EXPECT_EQ(format_count(-1234), "-1,234");
  EXPECT_EQ(format_count(-123), "-123");
}

}  // namespace
}  // namespace kvcal::apps
