// Another project's program: fits a datatype, writes it into a codebook, reads it back, and quantises a
// vector with it.
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include <kvcal/cuda/vector_codec.h>
#include <kvcal/formats/codebook.h>
#include <kvcal/kmeans/weighted_kmeans.h>

namespace {

kvcal::formats::Codebook make_codebook(const std::vector<float>& centroids) {
  kvcal::formats::Datatype datatype;
  datatype.bits = 2;
  datatype.centroids = centroids;
  using kvcal::formats::ThresholdScope;
  kvcal::formats::TensorCodebook value;
  value.tensor = {"value", 1, 4, ThresholdScope::token};
  value.fisher_channel.assign(4, 1.0F);
  value.outliers.push_back({0, {}, {}, {datatype}});
  kvcal::formats::TensorCodebook key = value;
  key.tensor = {"key", 1, 4, ThresholdScope::channel};
  key.outliers[0].lower.assign(4, -1.0F);
  key.outliers[0].upper.assign(4, 1.0F);
  kvcal::formats::LayerCodebook layer;
  layer.tensors = {key, value};

  kvcal::formats::Codebook codebook;
  const std::string digest(64, '0');
  codebook.created_by = "consumer";
  codebook.model = {"example", "LlamaForCausalLM", digest, digest, 1, 1, 1, 4, "null"};
  codebook.calibration.tokens_sha256 = digest;
  codebook.calibration.samples = 1;
  codebook.calibration.seqlen = codebook.calibration.tokens = 16;
  codebook.calibration.bos = "none";
  codebook.calibration.dtype = "float32";
  codebook.calibration.device = "cpu";
  codebook.calibration.value_scope = "token";
  codebook.calibration.sensitivity = "fisher";
  codebook.calibration.fisher_scale = "range";
  codebook.layers.push_back(layer);
  return codebook;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::vector<float> points = {-1, -0.9F, -0.2F, -0.1F, 0.2F, 0.3F, 0.9F, 1};
  const std::vector<float> weights(points.size(), 1.0F);
  const auto solution = kvcal::kmeans::solve(points, weights, {.clusters = 4});
  const std::vector<float> fitted(solution.centroids.begin(), solution.centroids.end());

  kvcal::formats::write_codebook(argv[1], make_codebook(fitted));
  const auto codebook = kvcal::formats::read_codebook(argv[1]);
  const auto& stored = codebook.layers.at(0).value().outliers.at(0).datatypes.at(0).centroids;

  const auto datatype = kvcal::codec::make_datatype(stored);
  const auto back = kvcal::codec::decode_value(kvcal::codec::encode_value(points, {}, datatype), datatype);
  for (std::size_t i = 0; i < points.size(); ++i) {
    // Two points for each centroid, 0.1 apart.
    if (std::abs(back[i] - points[i]) > 0.0501F) {
      std::cerr << "point " << i << ": " << points[i] << " came back as " << back[i] << '\n';
      return 1;
    }
  }
  std::cout << "fitted, stored, read and quantised\n";
  return 0;
}
