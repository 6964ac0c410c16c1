#include "apps/suggest.h"

#include <gtest/gtest.h>

namespace kvcal::apps {
namespace {

TEST(Suggest, EditDistanceCountsASwapOnce) {
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("ab", "ba"), 1);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("same", "same"), 0);
}

TEST(Suggest, TheNearestIsFoundAndAFarOneIsNot) {
  const std::vector<std::string> options = {"--samples", "--seqlen", "--seed", "--model", "-m"};
  EXPECT_EQ(nearest("--sampels", options), "--samples");
  EXPECT_EQ(nearest("--modle", options), "--model");
  EXPECT_EQ(nearest("--SEQ_LEN", options), "--seqlen");
  EXPECT_EQ(nearest("--sam", options), "--samples");
  EXPECT_FALSE(nearest("--quantization", options));
  EXPECT_FALSE(nearest("", options));
  EXPECT_FALSE(nearest("-z", {"-m"}) && nearest("zz", {"aa"}));
}

TEST(Suggest, OptionsOfKvquantAreAnswered) {
  ASSERT_TRUE(foreign_option("sparsity-threshold"));
  EXPECT_NE(foreign_option("sparsity_threshold")->find("--outliers 0.01"), std::string::npos);
  EXPECT_NE(foreign_option("first_few_fp16")->find("--sinks"), std::string::npos);
  EXPECT_NE(foreign_option("abits")->find("--bits"), std::string::npos);
  EXPECT_FALSE(foreign_option("samples"));
}

}  // namespace
}  // namespace kvcal::apps
