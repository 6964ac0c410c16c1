#include "formats/codebook.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <limits>
#include <thread>

#include "formats/internal/hdf5_tree.h"
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

TEST(Codebook, ReadsBackARecipeInWhateverOrder) {
  const TemporaryFolder folder;
  Codebook codebook = sample_codebook();
  testing::add_recipe(codebook);
  const Codebook sorted = codebook;
  std::ranges::reverse(codebook.recipe->tensors);
  EXPECT_EQ(round_trip(folder / "a.h5", codebook), sorted);
}

TEST(Codebook, OneLayerAloneIsAFile) {
  const TemporaryFolder folder;
  EXPECT_EQ(round_trip(folder / "layer.h5", sample_codebook({1})), sample_codebook({1}));
}

/// A tensor that is neither key nor value.
TensorCodebook gate(std::string_view name = "gate") {
  return testing::sample_tensor({std::string(name), 3, 5, ThresholdScope::channel}, 2);
}

Codebook with_gate() {
  Codebook codebook = sample_codebook();
  for (LayerCodebook& layer : codebook.layers) layer.tensors.push_back(gate());
  return codebook;
}

TEST(Codebook, ALayerMayCacheAThirdTensor) {
  const TemporaryFolder folder;
  EXPECT_EQ(round_trip(folder / "a.h5", with_gate()), with_gate());
  Codebook shuffled = with_gate();
  for (LayerCodebook& layer : shuffled.layers) std::ranges::reverse(layer.tensors);
  EXPECT_EQ(round_trip(folder / "b.h5", shuffled), with_gate());
}

TEST(Codebook, ALayerMayCacheNeitherKeysNorValues) {
  const TemporaryFolder folder;
  Codebook codebook = sample_codebook();
  for (LayerCodebook& layer : codebook.layers)
    layer.tensors = {testing::sample_tensor({"latent", 1, 7, ThresholdScope::token}, 1)};
  EXPECT_EQ(round_trip(folder / "a.h5", codebook), codebook);
  EXPECT_EQ(codebook.layers[1].find("key"), nullptr);
  EXPECT_ERROR((void)codebook.layers[1].key(), "layer 2: no tensor 'key'");
}

TEST(Codebook, KeysAndValuesNeedNotBeOfTheUsualKind) {
  const TemporaryFolder folder;
  const CachedTensor usual_key{"key", 2, 4, ThresholdScope::channel};
  const CachedTensor usual_value{"value", 2, 3, ThresholdScope::token};
  CachedTensor key_by_token = usual_key, value_of_three_heads = usual_value;
  key_by_token.thresholds = ThresholdScope::token;
  value_of_three_heads.heads = 3;
  for (const auto& tensors :
       {std::vector{key_by_token, usual_value}, std::vector{usual_key, value_of_three_heads},
        std::vector{usual_key}, std::vector{usual_value}}) {
    Codebook codebook = sample_codebook({0});
    codebook.layers[0].tensors.clear();
    for (const CachedTensor& tensor : tensors)
      codebook.layers[0].tensors.push_back(testing::sample_tensor(tensor, 1));
    EXPECT_EQ(round_trip(folder / "a.h5", codebook), codebook);
  }
}

/// A file with a third tensor in each layer, changed and sealed anew.
template <typename Change>
std::filesystem::path changed_file(const TemporaryFolder& folder, const Change& change) {
  const std::filesystem::path path = folder / "changed.h5";
  write_codebook(path, with_gate());
  Hdf5Tree tree = read_hdf5_tree(path);
  change(tree);
  tree.values.insert_or_assign("/@content_sha256", hdf5_text(content_sha256(tree)));
  write_hdf5_tree(path, tree);
  return path;
}

TEST(Codebook, ATensorThatLacksWhatDescribesItIsRefused) {
  const TemporaryFolder folder;
  const auto expect = [&](const auto& change, std::string_view part) {
    const std::filesystem::path path = changed_file(folder, change);
    EXPECT_ERROR((void)read_codebook(path), part);
  };
  expect([](Hdf5Tree& tree) { tree.values.erase("/layers/0000/gate@dim"); },
         "/layers/0000/gate@dim: the attribute is missing");
  expect([](Hdf5Tree& tree) { tree.values.erase("/layers/0002/gate@thresholds"); },
         "/layers/0002/gate@thresholds: the attribute is missing");
  expect(
      [](Hdf5Tree& tree) { tree.values.insert_or_assign("/layers/0000/gate@thresholds", hdf5_text("head")); },
      "/layers/0000/gate@thresholds: is 'head'");
  expect([](Hdf5Tree& tree) { tree.values.erase("/layers/0000@key_dim"); },
         "/layers/0000@key_dim: the attribute is missing");
}

TEST(Codebook, AGroupOfALayerThatIsNoTensorIsPassedOver) {
  const TemporaryFolder folder;
  Codebook read = read_codebook(
      changed_file(folder, [](Hdf5Tree& tree) { tree.values.erase("/layers/0000/gate@heads"); }));
  Codebook expected = with_gate();
  expected.layers[0].tensors.pop_back();
  read.content_sha256.clear();
  EXPECT_EQ(read, expected);
}

TEST(Codebook, ALayerWithNoTensorIsRefused) {
  const TemporaryFolder folder;
  const std::filesystem::path path = changed_file(folder, [](Hdf5Tree& tree) {
    for (const char* name : {"@kv_heads", "@key_dim", "@value_dim", "/gate@heads"})
      tree.values.erase(std::string("/layers/0000") + name);
  });
  EXPECT_ERROR((void)read_codebook(path), "/layers/0000@kv_heads: the attribute is missing");
}

TEST(Codebook, TheSameCodebookGivesTheSameBytes) {
  const TemporaryFolder folder;
  Codebook shuffled = sample_codebook();
  std::swap(shuffled.layers[0], shuffled.layers[1]);
  for (LayerCodebook& layer : shuffled.layers) std::swap(layer.key().outliers[0], layer.key().outliers[1]);
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
  codebook.calibration.options_json = "\"" + std::string(kMaxCodebookText - 2, 'x') + "\"";
  LayerCodebook layer = codebook.layers[0];
  layer.tensors = testing::sample_tensors(8, 128, 128, 1);
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
  TensorCodebook& key = codebook.layers[0].key();
  for (auto* sets : {&key.outliers, &key.with_sinks, &key.rotated}) sets->at(1).fraction = 1.0 / 3;
  EXPECT_EQ(round_trip(folder / "a.h5", codebook), codebook);
}

TEST(Codebook, RefusesToWriteWhatItWouldNotRead) {
  const TemporaryFolder folder;
  const auto expect = [&](const auto& change, std::string_view part) {
    Codebook codebook = sample_codebook();
    testing::add_recipe(codebook);
    change(codebook);
    EXPECT_ERROR(write_codebook(folder / "bad.h5", codebook), part);
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect([](Codebook& c) { c.layers.clear(); }, "/layers: no layer");
  expect([](Codebook& c) { c.layers[1].index = 0; }, "/layers/0000: the layer is given twice");
  expect([](Codebook& c) { c.layers[1].index = 3; }, "/layers/0003: the layer is 3");
  expect([](Codebook& c) { c.layers[0].key().fisher_channel.pop_back(); },
         "/layers/0000/key/fisher_channel: has 7 elements");
  expect([&](Codebook& c) { c.layers[0].value().fisher_channel[2] = nan; },
         "/value/fisher_channel: element 2 is not finite");
  expect([&](Codebook& c) { c.layers[0].value().fisher_channel[2] = -1; }, "element 2 is negative");
  expect([&](Codebook& c) { c.layers[0].key().outliers[1].lower[3] = nan; },
         "outliers_0.01/lower: element 3 is not finite");
  expect([](Codebook& c) { c.layers[0].key().outliers[1].lower[3] = 99; },
         "channel 3: lower 99 is above upper");
  expect([](Codebook& c) { c.layers[0].value().outliers[0].lower = {1}; },
         "/value/outliers_0/lower: has 1 elements");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].datatypes[1].centroids[4] = -5; },
         "nuq3/centroids: centroid 4 (-5) is below");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].datatypes[1].centroids.push_back(1); },
         "nuq3/centroids: has 9 elements");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].datatypes[0].bits = 9; }, "bits of a datatype is 9");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].datatypes[0].bits = 3; }, "has 4 elements");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].fraction = 0.01; },
         "outliers_0.01: the fraction is given twice");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].fraction = 0.5; }, "fraction of 0.5");
  expect([](Codebook& c) { c.layers[0].key().with_sinks.pop_back(); },
         "key/with_sinks: has other outlier fractions");
  expect([](Codebook& c) { c.layers[0].key().rotated[0].upper[3] = -9; }, "key_rope/outliers_0: channel 3");
  expect([](Codebook& c) { c.layers[0].key().rotated[0].datatypes.resize(1); }, "expected thresholds alone");
  expect([](Codebook& c) { c.layers[0].value().outliers[0].histogram.pop_back(); },
         "value/outliers_0/histogram: has 127 elements");
  expect([](Codebook& c) { c.layers[0].value().outliers[0].histogram[5] = -1; }, "element 5 is negative");
  expect([](Codebook& c) { c.layers[0].value().magnitudes->cached.head.best.pop_back(); },
         "value/magnitudes/head_best: has 5 elements");
  expect([](Codebook& c) { c.layers[0].key().magnitudes->envelope->tensor.quantiles[2] = -1; },
         "key_envelope/magnitudes/tensor: a magnitude is negative");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].datatypes[0].qnorm_scale = INFINITY; },
         "qnorm_scale is inf");
  expect([](Codebook& c) { c.layers[0].key().tensor.heads = c.layers[0].value().tensor.heads = 0; },
         "/layers/0000: kv_heads is 0");
  expect([](Codebook& c) { c.layers[0].key().tensor.dim = 0; }, "/layers/0000: key_dim is 0");
  expect([](Codebook& c) { c.layers[0].value().tensor.dim = 0; }, "/layers/0000: value_dim is 0");
  expect([](Codebook& c) { c.layers[0].tensors.clear(); }, "/layers/0000: no tensor");
  expect([](Codebook& c) { c.layers[0].tensors.push_back(c.layers[0].key()); },
         "/layers/0000/key: the tensor is given twice");
  for (const std::string_view name : {"", "Gate", "1gate", "_gate", "gate/key", "gate-2", "gâte"}) {
    expect([&](Codebook& c) { c.layers[0].tensors.push_back(gate(name)); },
           base::concat("/layers/0000/", name, ": '", name, "' is no name of a tensor"));
  }
  expect(
      [](Codebook& c) {
        c.layers[0].tensors.push_back(gate());
        c.layers[0].tensors.back().tensor.dim = 0;
      },
      "/layers/0000/gate: dim is 0");
  expect(
      [](Codebook& c) {
        c.layers[0].tensors.push_back(gate());
        c.layers[0].tensors.back().tensor.thresholds = ThresholdScope::token;
      },
      "/layers/0000/gate/outliers_0/lower: has 15 elements; the layer's shape asks for 0");
  expect([](Codebook& c) { c.calibration.options_json = "\"" + std::string(kMaxCodebookText, 'x') + "\""; },
         "/calibration@options: has 64002 bytes; expected 64000 at most");
  expect(
      [](Codebook& c) {
        c.calibration.texts.assign(700, {"a text's name", std::string(64, 'f')});
      },
      "/calibration@texts: has ");
  const auto datatype = [](Codebook& c) -> Datatype& { return c.layers[0].key().outliers[0].datatypes[1]; };
  const auto fitted = [](Codebook& c) -> Datatype& { return c.layers[0].key().outliers[0].datatypes[0]; };
  expect([&](Codebook& c) { fitted(c).zero.clear(); },
         "/layers/0000/key/outliers_0/nuq2/zero: has 0 elements; the layer's shape asks for 8");
  expect([&](Codebook& c) { fitted(c).scale.pop_back(); }, "outliers_0/nuq2/scale: has 7 elements");
  expect([&](Codebook& c) { fitted(c).scale[2] = -1; }, "outliers_0/nuq2/scale: element 2 is negative: -1");
  expect([&](Codebook& c) { fitted(c).zero[3] = INFINITY; }, "outliers_0/nuq2/zero: element 3 is not finite");
  expect([&](Codebook& c) { fitted(c).histogram.pop_back(); }, "outliers_0/nuq2/histogram: has 127 elements");
  expect([&](Codebook& c) { c.layers[0].value().outliers[0].datatypes[0].scale = fitted(c).scale; },
         "/layers/0000/value/outliers_0/nuq2/scale: there is one, and thresholds are a token's");
  expect([](Codebook& c) { c.recipe->tensors[0].bits = 4; },
         "/recipe/0000/key: asks for 4 bits and an outlier fraction of 0.01, and the tensor holds no such "
         "datatype");
  expect([](Codebook& c) { c.recipe->tensors[0].fraction = 0.02; }, "/recipe/0000/key: asks for 3 bits");
  expect([](Codebook& c) { c.recipe->tensors[1].divergence = -1; }, "/recipe/0000/value: divergence is -1");
  expect([](Codebook& c) { c.recipe->tensors.pop_back(); }, "/recipe/0002/value: is missing");
  expect([](Codebook& c) { c.recipe->tensors.erase(c.recipe->tensors.begin()); },
         "/recipe/0000/value: found where /recipe/0000/key is expected");
  expect(
      [](Codebook& c) {
        c.recipe->tensors.push_back({7, "key", 2, 0, 0});
      },
      "/recipe/0007/key: is no tensor of this codebook");
  expect([](Codebook& c) { c.recipe->source = "guessed"; }, "/recipe@source: is 'guessed'");
  expect([](Codebook& c) { c.recipe->context = 0; }, "/recipe: context is 0");
  expect([](Codebook& c) { c.recipe->curve.clear(); }, "/recipe/curve: has 0 numbers; expected pairs");
  expect([](Codebook& c) { c.recipe->curve[2] = 2; }, "/recipe/curve: row 1 has fewer bits");
  expect([](Codebook& c) { c.layers[0].value().rotation_block = 2; },
         "/layers/0000/value: rotation_block is 2; expected a power of two that divides the 3 channels");
  expect([](Codebook& c) { c.layers[0].value().rotation_block = 4; },
         "/layers/0000/value: rotation_block is 4; expected 1 to 3");
  expect([](Codebook& c) { c.layers[0].key().rotation_block = 4; },
         "/layers/0000/key: is turned, and its thresholds are a channel's");
  expect([&](Codebook& c) { datatype(c).centroids.back() = 1e30F; },
         "/layers/0000/key/outliers_0/nuq3/centroids: centroid 7 is 1e+30; expected -1 to 1");
  expect([&](Codebook& c) { datatype(c).weights = "banana"; },
         "/layers/0000/key/outliers_0/nuq3/centroids@weights: is 'banana'; expected one of fisher, uniform, "
         "none");
  expect([&](Codebook& c) { datatype(c).lower_bound = datatype(c).objective * 1.001; },
         "is above the objective");
  expect([](Codebook& c) { c.layers[0].key().outliers[0].fraction = -0.0; }, "an outlier fraction of -0");
  expect([](Codebook& c) { c.calibration.value_scope = "row"; }, "/calibration@value_scope: is 'row'");
  expect([](Codebook& c) { c.layers[0].key().magnitudes->cached.head.quantiles[3] = 0; },
         "/layers/0000/key/magnitudes/head_quantiles: row 0 descends");
  expect([](Codebook& c) { c.calibration.loss = NAN; }, "/calibration: loss is nan");
  expect([](Codebook& c) { c.model.rope_json = ""; }, "/model@rope: not JSON");
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
