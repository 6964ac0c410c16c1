#include "formats/codebook.h"

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <limits>
#include <thread>

#include "formats_testing.h"
#include "sample_codebook.h"

namespace kvcal::formats {
namespace {

using testing::sample_codebook;
using testing::TemporaryFolder;

/// What is read, less the hash, which the writer ignores.
Codebook round_trip(const std::filesystem::path& path, const Codebook& codebook) {
  write_codebook(path, codebook);
  Codebook read = read_codebook(path);
  EXPECT_EQ(read.content_sha256.size(), 64U);
  read.content_sha256 = codebook.content_sha256;
  return read;
}

TEST(Codebook, ReadsBackWhatWasWritten) {
  const TemporaryFolder folder;
  EXPECT_EQ(round_trip(folder / "a.h5", sample_codebook()), sample_codebook());
}

TEST(Codebook, OneLayerAloneIsAFile) {
  const TemporaryFolder folder;
  EXPECT_EQ(round_trip(folder / "layer.h5", sample_codebook({1})), sample_codebook({1}));
}

TEST(Codebook, TheSameCodebookGivesTheSameBytes) {
  const TemporaryFolder folder;
  Codebook shuffled = sample_codebook();
  std::swap(shuffled.layers[0], shuffled.layers[1]);
  for (LayerCodebook& layer : shuffled.layers) std::swap(layer.key.outliers[0], layer.key.outliers[1]);
  write_codebook(folder / "a.h5", sample_codebook());
  write_codebook(folder / "b.h5", sample_codebook());
  write_codebook(folder / "c.h5", shuffled);
  const std::string bytes = base::read_text_file(folder / "a.h5");
  EXPECT_EQ(bytes, base::read_text_file(folder / "b.h5"));
  EXPECT_EQ(bytes, base::read_text_file(folder / "c.h5"));
}

TEST(Codebook, TheFileHoldsNeitherPathNorHost) {
  const TemporaryFolder folder;
  write_codebook(folder / "unmistakable.h5", sample_codebook());
  EXPECT_EQ(base::read_text_file(folder / "unmistakable.h5").find("unmistakable"), std::string::npos);
}

TEST(Codebook, TakesTheSizesOfLargeModels) {
  const TemporaryFolder folder;
  Codebook codebook = sample_codebook({0});
  codebook.model.num_layers = 200;
  codebook.calibration.options_json =
      "\"" + std::string(200'000, 'x') + "\"";  // beyond what an object header takes
  LayerCodebook layer = codebook.layers[0];
  layer.kv_heads = 8;
  layer.key_dim = layer.value_dim = 128;
  layer.key = testing::sample_tensor(1024, true, 1);
  layer.value = testing::sample_tensor(1024, false, 1);
  codebook.layers.clear();
  for (layer.index = 0; layer.index < 200; ++layer.index) codebook.layers.push_back(layer);
  EXPECT_EQ(round_trip(folder / "large.h5", codebook), codebook);
}

TEST(Codebook, EmptyTextsAreKept) {
  const TemporaryFolder folder;
  Codebook codebook = sample_codebook();
  codebook.model.name.clear();
  codebook.calibration.texts.clear();
  EXPECT_EQ(round_trip(folder / "a.h5", codebook), codebook);
}

TEST(Codebook, OutlierGroupsAreNamedAsPrintfDoes) {
  EXPECT_EQ(outlier_group_name(0), "outliers_0");
  EXPECT_EQ(outlier_group_name(0.01), "outliers_0.01");
  EXPECT_EQ(outlier_group_name(0.005), "outliers_0.005");
  EXPECT_EQ(outlier_group_name(0.00001), "outliers_1e-05");
  EXPECT_EQ(outlier_group_name(1.0 / 3), "outliers_0.333333");
}

TEST(Codebook, AFractionThatPrintsRoundedIsKeptExactly) {
  const TemporaryFolder folder;
  Codebook codebook = sample_codebook();
  codebook.layers[0].key.outliers[1].fraction = 1.0 / 3;
  EXPECT_EQ(round_trip(folder / "a.h5", codebook), codebook);
}

TEST(Codebook, RefusesToWriteWhatItWouldNotRead) {
  const TemporaryFolder folder;
  const auto expect = [&](const auto& change, std::string_view part) {
    Codebook codebook = sample_codebook();
    change(codebook);
    EXPECT_ERROR(write_codebook(folder / "bad.h5", codebook), part);
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect([](Codebook& c) { c.layers.clear(); }, "/layers: no layer");
  expect([](Codebook& c) { c.layers[1].index = 0; }, "/layers/0000: the layer is given twice");
  expect([](Codebook& c) { c.layers[1].index = 3; }, "/layers/0003: the layer is 3");
  expect([](Codebook& c) { c.layers[0].key.fisher_channel.pop_back(); },
         "/layers/0000/key/fisher_channel: has 7 elements");
  expect([&](Codebook& c) { c.layers[0].value.fisher_channel[2] = nan; },
         "/value/fisher_channel: element 2 is not finite");
  expect([&](Codebook& c) { c.layers[0].value.fisher_channel[2] = -1; }, "element 2 is negative");
  expect([&](Codebook& c) { c.layers[0].key.outliers[1].lower[3] = nan; },
         "outliers_0.01/lower: element 3 is not finite");
  expect([](Codebook& c) { c.layers[0].key.outliers[1].lower[3] = 99; },
         "channel 3: lower 99 is above upper");
  expect([](Codebook& c) { c.layers[0].value.outliers[0].lower = {1}; },
         "/value/outliers_0/lower: has 1 elements");
  expect([](Codebook& c) { c.layers[0].key.outliers[0].datatypes[1].centroids[4] = -5; },
         "nuq3/centroids: centroid 4 (-5) is below");
  expect([](Codebook& c) { c.layers[0].key.outliers[0].datatypes[1].centroids.push_back(1); },
         "nuq3/centroids: has 9 elements");
  expect([](Codebook& c) { c.layers[0].key.outliers[0].datatypes[0].bits = 9; }, "bits of a datatype is 9");
  expect([](Codebook& c) { c.layers[0].key.outliers[0].datatypes[0].bits = 3; }, "has 4 elements");
  expect([](Codebook& c) { c.layers[0].key.outliers[0].fraction = 0.01; },
         "outliers_0.01: the fraction is given twice");
  expect([](Codebook& c) { c.layers[0].key.outliers[0].fraction = 0.5; }, "fraction of 0.5");
  expect([](Codebook& c) { c.layers[0].key.outliers[0].datatypes[0].qnorm_scale = INFINITY; },
         "qnorm_scale is inf");
  expect([](Codebook& c) { c.layers[0].kv_heads = 0; }, "kv_heads is 0");
  expect([](Codebook& c) { c.calibration.loss = NAN; }, "/calibration: loss is nan");
  expect([](Codebook& c) { c.model.rope_json = ""; }, "/model@rope: is not JSON");
  expect([](Codebook& c) { c.model.name = "\xff"; }, "/model@name: is not UTF-8");
  expect([](Codebook& c) { c.calibration.texts[0].name = std::string("a\0b", 3); },
         "/calibration@texts: is not UTF-8");
  expect([](Codebook& c) { c.schema_major = 2; }, "schema 2 cannot be written");
}

TEST(Codebook, AFullDiskIsASystemErrorThatLeavesNothingBehind) {
  const TemporaryFolder folder;
  write_codebook(folder / "a.h5", sample_codebook());
  const std::string before = base::read_text_file(folder / "a.h5");
  // A limit on the size of files does to a write what a full disk does.
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{1000, limit.rlim_max};
  auto* previous = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(write_codebook(folder / "a.h5", sample_codebook()), base::SystemError);
  EXPECT_THROW(write_codebook(folder / "b.h5", sample_codebook()), base::SystemError);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, previous);
  EXPECT_EQ(base::read_text_file(folder / "a.h5"), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(Codebook, AFolderThatIsNotThereIsASystemError) {
  const TemporaryFolder folder;
  EXPECT_THROW(write_codebook(folder / "no/a.h5", sample_codebook()), base::SystemError);
  EXPECT_THROW((void)read_codebook(folder / "no.h5"), base::SystemError);
}

TEST(Codebook, ThreadsReadAndWriteAtOnce) {
  const TemporaryFolder folder;
  std::vector<std::thread> threads;
  std::vector<int> equal(4, 0);
  for (std::size_t t = 0; t < equal.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) {
        const std::filesystem::path path = folder / base::concat(t, ".h5");
        write_codebook(path, sample_codebook());
        Codebook read = read_codebook(path);
        read.content_sha256.clear();
        equal[t] += read == sample_codebook() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(equal, std::vector<int>(4, 5));
}

}  // namespace
}  // namespace kvcal::formats
