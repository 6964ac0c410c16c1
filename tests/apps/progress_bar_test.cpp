#include "apps/progress_bar.h"

#include <gtest/gtest.h>

namespace kvcal::apps {
namespace {

StageState state() {
  StageState result;
  result.name = "forward";
  result.unit = "tokens";
  result.detail = "layer 3 of 32";
  result.total = 10000;
  result.done = 5000;
  result.seconds = 10;
  result.elapsed = 12;
  return result;
}

TEST(ProgressBar, ABarHasStageLayerRateAndTimeLeftInTheWidth) {
  EXPECT_EQ(format_bar(state(), 79),
            "forward  layer 3 of 32  [###########...........]  50 %  500 tokens/s  10 s left");
  for (int width = 0; width <= 200; ++width) {
    EXPECT_LE(format_bar(state(), width).size(), static_cast<std::size_t>(width));
  }
}

TEST(ProgressBar, WhatAnEarlierRunDidIsNotInTheRate) {
  StageState resumed = state();
  resumed.first = 4000;
  EXPECT_DOUBLE_EQ(steps_per_second(resumed), 100);
  EXPECT_EQ(format_line(resumed), "forward: layer 3 of 32, 50 %, 100 tokens/s, 50 s left");
}

TEST(ProgressBar, NothingDoneHasNoRateAndAnUnknownTotalNoPercentage) {
  StageState fresh = state();
  fresh.done = 0;
  EXPECT_EQ(format_line(fresh), "forward: layer 3 of 32, 0 %");
  fresh.done = 1200;
  fresh.total = 0;
  EXPECT_EQ(format_line(fresh), "forward: layer 3 of 32, 1,200 tokens, 120 tokens/s");
}

TEST(ProgressBar, TheEndSaysHowMuchInWhatTime) {
  EXPECT_EQ(format_end(state()), "forward: 5,000 tokens in 12 s (500 tokens/s)");
  StageState once = state();
  once.first = once.done;
  EXPECT_EQ(format_end(once), "forward: 5,000 tokens in 12 s (417 tokens/s)");
}

}  // namespace
}  // namespace kvcal::apps
