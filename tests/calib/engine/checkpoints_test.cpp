#include "calib/engine/checkpoints.h"

#include <gtest/gtest.h>

namespace kvcal::calib {
namespace {

constexpr int kLayers = 4;
using Marks = std::vector<bool>;

// A run that is `done` layers down its backward pass: the files below are still there, those above are gone.
Checkpoints in_the_backward_pass(int done) {
  Checkpoints found(kLayers);
  const int next = kLayers - 1 - done;  // the layer that comes next
  for (int layer = 0; layer <= next; ++layer) found.hidden[static_cast<std::size_t>(layer)] = true;
  found.gradient[static_cast<std::size_t>(next) + 1] = true;
  for (int layer = next + 1; layer < kLayers; ++layer) found.fits[static_cast<std::size_t>(layer)].emplace();
  found.losses.emplace();
  return found;
}

TEST(RemainingWork, OfAFreshRunIsEverything) {
  const RemainingWork work = remaining_work(Checkpoints(kLayers), true);
  EXPECT_EQ(work.hidden, Marks(kLayers + 1, true));
  EXPECT_TRUE(work.head);
  EXPECT_EQ(work.gradient, (Marks{false, true, true, true, true}));
  EXPECT_EQ(work.fit, Marks(kLayers, true));
  EXPECT_EQ(work.forward_layers(), kLayers);
  EXPECT_EQ(work.backward_layers(), kLayers);
}

TEST(RemainingWork, WithoutGradientsNeedsHiddenStatesAndLossesOnly) {
  const RemainingWork work = remaining_work(Checkpoints(kLayers), false);
  EXPECT_EQ(work.hidden, Marks(kLayers + 1, true));
  EXPECT_TRUE(work.head);
  EXPECT_EQ(work.gradient, Marks(kLayers + 1, false));
}

TEST(RemainingWork, GoesOnWhereTheForwardPassStopped) {
  Checkpoints found(kLayers);
  found.hidden = {true, true, true, false, false};
  const RemainingWork work = remaining_work(found, true);
  EXPECT_EQ(work.hidden, (Marks{false, false, false, true, true}));
  EXPECT_EQ(work.forward_layers(), 2);
}

TEST(RemainingWork, GoesOnWhereTheBackwardPassStopped) {
  const RemainingWork work = remaining_work(in_the_backward_pass(2), true);
  EXPECT_EQ(work.forward_layers(), 0);
  EXPECT_FALSE(work.head);
  EXPECT_EQ(work.fit, (Marks{true, true, false, false}));
  EXPECT_EQ(work.gradient, (Marks{false, true, false, false, false}));
}

TEST(RemainingWork, OfAFinishedRunIsNothing) {
  Checkpoints found(kLayers);
  for (auto& fit : found.fits) fit.emplace();
  found.losses.emplace();
  const RemainingWork work = remaining_work(found, true);
  EXPECT_EQ(work.text(), "nothing");
  EXPECT_EQ(work.hidden, Marks(kLayers + 1, false));
}

// Layer 3 was done and its inputs removed: they are made again from the highest hidden states that are left.
TEST(RemainingWork, ADamagedLayerIsMadeAgainFromWhatIsStillThere) {
  Checkpoints found = in_the_backward_pass(2);
  found.fits[3].reset();
  const RemainingWork work = remaining_work(found, true);
  EXPECT_EQ(work.hidden, (Marks{false, false, true, true, true}));
  EXPECT_TRUE(work.head);
  // The gradient at layer 2's input is there, so layer 2 is not run backward again.
  EXPECT_EQ(work.gradient, (Marks{false, true, false, false, true}));
  EXPECT_EQ(work.fit, (Marks{true, true, false, true}));
  EXPECT_FALSE(work.visits(2));
}

TEST(RemainingWork, ALostGradientIsMadeAgainFromTheHead) {
  Checkpoints found = in_the_backward_pass(2);
  found.gradient[2] = false;
  const RemainingWork work = remaining_work(found, true);
  EXPECT_EQ(work.hidden, (Marks{false, false, true, true, true}));
  EXPECT_EQ(work.gradient, (Marks{false, true, true, true, true}));
  // Layers 2 and 3 are recomputed for their gradients only.
  EXPECT_EQ(work.fit, (Marks{true, true, false, false}));
  EXPECT_EQ(work.backward_layers(), 4);
  EXPECT_EQ(work.text(), "3 layers forward, the head, 4 layers backward");
}

TEST(RemainingWork, ALostHiddenStateIsMadeAgainFromTheOneBelow) {
  Checkpoints found = in_the_backward_pass(1);
  found.hidden[1] = false;
  const RemainingWork work = remaining_work(found, true);
  EXPECT_EQ(work.hidden, (Marks{false, true, false, false, false}));
  EXPECT_FALSE(work.head);
  EXPECT_EQ(work.text(), "1 layer forward, 3 layers backward");
}

TEST(RemainingWork, LostLossesNeedTheHeadButNoGradient) {
  Checkpoints found = in_the_backward_pass(1);
  found.losses.reset();
  const RemainingWork work = remaining_work(found, true);
  EXPECT_TRUE(work.head);
  EXPECT_FALSE(work.gradient[kLayers]);
  EXPECT_EQ(work.hidden, (Marks{false, false, false, true, true}));
}

}  // namespace
}  // namespace kvcal::calib
