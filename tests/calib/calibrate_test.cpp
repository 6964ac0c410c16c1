// What calibrate() promises, on a tiny model.
#include "tiny_run.h"

namespace kvcal::calib {
namespace {

TEST_F(CalibrateTest, AFinishedRunIsNotDoneAgain) {
  const CalibrationReport first = run();
  EXPECT_FALSE(first.already_done);
  ASSERT_EQ(first.codebook.layers.size(), std::size_t{kLayers});
  for (int layer = 0; layer < kLayers; ++layer)
    EXPECT_EQ(first.codebook.layers[static_cast<std::size_t>(layer)].index, layer);
  EXPECT_EQ(first.codebook.content_sha256.size(), 64U);
  EXPECT_EQ(names_in(root_), (std::vector<std::string>{"model", "out.h5", "tokens.npy"}));

  const auto before = snapshot(root_);
  Listener listener;
  const CalibrationReport second = calibrate(options_, listener);
  EXPECT_TRUE(second.already_done);
  EXPECT_EQ(second.codebook, first.codebook);
  EXPECT_EQ(second.codebook.content_sha256, first.codebook.content_sha256);
  EXPECT_TRUE(listener.stages.empty());
  EXPECT_EQ(snapshot(root_), before);
}

TEST_F(CalibrateTest, GivesTheSameBytesForAnyNumberOfThreads) {
  for (const int threads : {1, 3}) {
    options_.threads = threads;
    (void)run();
    expect_finished();
    fs::remove(options_.out);
  }
}

TEST_F(CalibrateTest, StoppedAtAnyMomentItGoesOnToTheSameBytes) {
  int stops = 0;
  for (;;) {
    Listener listener([&](const Listener& now) { return now.checks > stops; });
    if (!stopped(listener)) break;
    EXPECT_FALSE(fs::exists(options_.out)) << stops;
    ++stops;
    (void)run();
    expect_finished();
    fs::remove(options_.out);
  }
  expect_finished();
  EXPECT_GT(stops, 10);
}

TEST_F(CalibrateTest, StoppedAgainAndAgainItStillEnds) {
  // A run needs a check to begin and one for each sample of a layer: with fewer it would never get on.
  for (const int checks : {6, 7, 10, 15}) {
    int stops = 0;
    for (; stops < 60; ++stops) {
      Listener listener([&](const Listener& now) { return now.checks >= checks; });
      if (!stopped(listener)) break;
    }
    EXPECT_GE(stops, 1) << checks;
    ASSERT_LT(stops, 60) << checks;
    expect_finished();
    fs::remove(options_.out);
  }
}

TEST_F(CalibrateTest, WhatIsFinishedIsNotDoneAgain) {
  ASSERT_NO_FATAL_FAILURE(stop_at(kOneLayerFitted));
  const auto before = snapshot(work_);
  // Not at the very first check, which comes before the work folder is opened.
  Listener at_once([](const Listener& now) { return !now.stages.empty(); });
  ASSERT_TRUE(stopped(at_once));
  EXPECT_EQ(at_once.stages, std::vector<std::string>{"backward"});
  const auto after = snapshot(work_);
  EXPECT_TRUE(after.contains("layer_0002.h5"));
  for (const std::string& name : kOneLayerFitted.of_need) EXPECT_TRUE(after.contains(name)) << name;
  for (const auto& [name, state] : after) {
    ASSERT_TRUE(before.contains(name)) << name;
    EXPECT_EQ(state, before.at(name)) << name;
  }
  Listener to_the_end;
  EXPECT_FALSE(stopped(to_the_end));
  EXPECT_EQ(to_the_end.stages, std::vector<std::string>{"backward"});
  EXPECT_EQ(to_the_end.stage_checks, (kLayers - 1) * kSamples);
  EXPECT_FALSE(to_the_end.warned_of("the checkpoint "));
  expect_finished();
}

TEST_F(CalibrateTest, PlacesThatItWouldWriteOverOrRemoveAreRefused) {
  const auto before = snapshot(root_);
  const CalibrationOptions plain = options_;
  options_.work = root_ / "work";
  options_.out = options_.work / "out.h5";
  EXPECT_THROW((void)run(), base::WrongUsage);
  options_ = plain;
  options_.out = options_.tokens;
  options_.overwrite = true;
  EXPECT_THROW((void)run(), base::WrongUsage);
  options_ = plain;
  options_.work = fs::path(options_.model) / "work";
  EXPECT_THROW((void)run(), base::WrongUsage);
  options_ = plain;
  options_.out = fs::path(options_.model) / "out.h5";
  EXPECT_THROW((void)run(), base::WrongUsage);
  EXPECT_EQ(snapshot(root_), before);
}

TEST_F(CalibrateTest, AForeignFileInTheWorkFolderSurvives) {
  ASSERT_NO_FATAL_FAILURE(stop_at(kOneLayerFitted));
  write_bytes(work_ / "thesis.tex", "years of work");
  (void)run();
  EXPECT_TRUE(bytes_of(options_.out) == undisturbed());
  EXPECT_EQ(names_in(work_), std::vector<std::string>{"thesis.tex"});
  EXPECT_EQ(bytes_of(work_ / "thesis.tex"), "years of work");
}

TEST_F(CalibrateTest, AWorkFolderThatWasThereBeforeStays) {
  fs::create_directories(work_);
  (void)run();
  ASSERT_TRUE(fs::is_directory(work_));
  EXPECT_TRUE(fs::is_empty(work_));
}

TEST_F(CalibrateTest, AnotherRevisionsOrOptionsWorkFolderIsRefused) {
  ASSERT_NO_FATAL_FAILURE(stop_at(kTwoLayersForward));
  const auto expect_refused = [&](const std::string& reason) {
    const auto before = snapshot(root_);
    try {
      (void)run();
      ADD_FAILURE() << "not refused: " << reason;
    } catch (const base::InvalidInput& error) {
      EXPECT_NE(std::string(error.what()).find(reason), std::string::npos) << error.what();
    }
    EXPECT_EQ(snapshot(root_), before);
  };
  options_.sinks = 3;
  expect_refused("--sinks (1 there, 3 here)");
  options_.sinks = 1;
  nlohmann::json identity = nlohmann::json::parse(bytes_of(work_ / "run.json"));
  auto& revision = identity.at("revision of the algorithm");
  revision = revision.get<int>() + 1;
  write_bytes(work_ / "run.json", identity.dump());
  expect_refused("revision of the algorithm");
}

TEST_F(CalibrateTest, TooLittleOrTooMuchMemoryIsRefusedBeforeAnythingIsWritten) {
  const auto before = snapshot(root_);
  for (const bool dry_run : {false, true}) {
    options_.dry_run = dry_run;
    options_.memory_bytes = 1 << 20;
    EXPECT_THROW((void)run(), base::SystemError) << dry_run;
    options_.memory_bytes = total_memory_bytes() + 1;
    EXPECT_THROW((void)run(), base::WrongUsage) << dry_run;
  }
  EXPECT_EQ(snapshot(root_), before);
}

/// Keys of all samples by layer, from the model itself: [tokens, channels] each.
std::vector<std::vector<at::Tensor>> keys_of_model(const fs::path& folder, const fs::path& tokens) {
  const at::NoGradGuard no_graph;
  const auto model =
      load_model(read_model_definition(folder), std::make_shared<const WeightLoader>(folder, Placement{}));
  const TokenWindows windows = load_tokens(tokens, model->config().vocab_size);
  std::vector<std::vector<at::Tensor>> keys(kLayers);
  for (std::int64_t sample = 0; sample < kSamples; ++sample) {
    at::Tensor hidden = model->embed(windows.sample(sample));
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto block = model->load_block(layer);
      keys[static_cast<std::size_t>(layer)].push_back(fisher::block_cache(*block, 2, hidden).cached[0]);
      hidden = block->forward(hidden, nullptr);
    }
  }
  return keys;
}

TEST_F(CalibrateTest, SinksAreTheFirstTokensOfEachSample) {
  constexpr std::int64_t kSinks = 2;
  options_.sinks = kSinks;
  options_.sensitivity = Sensitivity::none;
  const formats::Codebook codebook = run().codebook;
  const auto keys = keys_of_model(options_.model, options_.tokens);
  const std::vector<float> rows(kChannels, static_cast<float>(kTokens - kSamples * kSinks));
  bool last_would_differ = false, all_would_differ = false;
  ASSERT_EQ(codebook.layers.size(), keys.size());
  for (std::size_t layer = 0; layer < keys.size(); ++layer) {
    EXPECT_EQ(codebook.layers[layer].key().fisher_channel, rows);
    EXPECT_EQ(codebook.layers[layer].value().fisher_channel, rows);
    const formats::OutlierSet& set = codebook.layers[layer].key().outliers[0];
    ASSERT_EQ(set.fraction, 0);
    const at::Tensor lower = at::tensor(at::ArrayRef<float>(set.lower));
    const at::Tensor upper = at::tensor(at::ArrayRef<float>(set.upper));
    const auto are_bounds_of = [&](std::int64_t first, std::int64_t left_at_end) {
      std::vector<at::Tensor> kept;
      for (const at::Tensor& sample : keys[layer])
        kept.push_back(sample.slice(0, first, sample.size(0) - left_at_end));
      const at::Tensor all = at::cat(kept);
      return at::allclose(lower, at::amin(all, 0), 0, 1e-5) && at::allclose(upper, at::amax(all, 0), 0, 1e-5);
    };
    EXPECT_TRUE(are_bounds_of(kSinks, 0)) << layer;
    last_would_differ |= !are_bounds_of(0, kSinks);
    all_would_differ |= !are_bounds_of(0, 0);
  }
  // The sample tells these apart.
  EXPECT_TRUE(last_would_differ);
  EXPECT_TRUE(all_would_differ);
}

}  // namespace
}  // namespace kvcal::calib
