// calib/open_session.h: what every job over a model begins with: its folder, weights and configuration.
#pragma once

#include <filesystem>
#include <string>

#include "calib/dtype_choice.h"
#include "calib/engine/session.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// bfloat16 halves the time where the CPU multiplies it natively, and moves results by less than another sample
/// would (docs/method.md). Elsewhere it would be slower than float32.
[[nodiscard]] at::ScalarType resolve_dtype(DtypeChoice asked);

/// The name of the type that the model is computed in.
[[nodiscard]] const char* dtype_text(at::ScalarType type);

/// A session without windows. model: a folder, or a name in the local Hugging Face cache; threads: 0 for all.
/// Throws InvalidInput and SystemError naming file and tensor.
[[nodiscard]] Session open_session(const std::string& model, DtypeChoice dtype, int threads);

/// Throws InvalidInput where a codebook, read from `file`, is of another model than the session's, saying which of
/// configuration and weights differs, and that --force uses it all the same.
void check_same_model(const formats::Codebook& codebook, const std::filesystem::path& file,
                      const Session& session);

/// Throws InvalidInput where the tokenizer gave an id that the model does not have.
void check_vocabulary(const Session& session, const TokenWindows& windows);

}  // namespace kvcal::calib
