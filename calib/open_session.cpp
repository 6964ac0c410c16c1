#include "calib/open_session.h"

#include <ATen/core/Tensor.h>

#include "base/cpu.h"
#include "base/error.h"
#include "base/parallel.h"

namespace kvcal::calib {

at::ScalarType resolve_dtype(DtypeChoice asked) {
  if (asked == DtypeChoice::automatic) return base::multiplies_bfloat16() ? at::kBFloat16 : at::kFloat;
  return asked == DtypeChoice::bfloat16 ? at::kBFloat16 : at::kFloat;
}

const char* dtype_text(at::ScalarType type) {
  return base::choice_name(type == at::kBFloat16 ? DtypeChoice::bfloat16 : DtypeChoice::float32,
                           kDtypeChoices);
}

Session open_session(const std::string& model, DtypeChoice dtype, int threads) {
  Session session;
  session.placement = {.dtype = resolve_dtype(dtype), .threads = base::resolve_threads(threads)};
  session.folder = find_model_folder(model);
  const ModelDefinition definition = read_model_definition(session.folder.path);
  session.weights = std::make_shared<const WeightLoader>(session.folder.path, session.placement);
  session.model = load_model(definition, session.weights);
  return session;
}

void check_same_model(const formats::Codebook& codebook, const std::filesystem::path& file,
                      const Session& session) {
  const bool config = codebook.model.config_sha256 == session.config().sha256();
  const bool weights = codebook.model.weights_sha256 == session.weights->checkpoint().weights_sha256();
  if (config && weights) return;
  throw base::InvalidInput(
      base::concat(file.string(), " is the codebook of another model, ", codebook.model.name, ": its ",
                   !config && !weights ? "configuration and weights differ"
                   : config            ? "weights differ"
                                       : "configuration differs",
                   " from ", session.folder.path.string(), "'s; give --force to use it all the same"));
}

void check_vocabulary(const Session& session, const TokenWindows& windows) {
  for (const std::int32_t id : windows.ids) {
    if (id < session.config().vocab_size) continue;
    throw base::InvalidInput(base::concat(session.folder.path.string(), ": the tokenizer gives id ", id,
                                          ", outside the model's vocabulary of ", session.config().vocab_size,
                                          "; are tokenizer and weights of the same model?"));
  }
}

}  // namespace kvcal::calib
