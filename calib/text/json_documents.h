// calib/text/json_documents.h: the documents of JSONL (a JSON object on each line) or of a JSON array of objects, as
// one text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/progress.h"

namespace kvcal::calib {

/// The member of each object that holds its text, where nobody names one.
inline constexpr const char* kDefaultTextField = "text";

struct JsonDocuments {
  std::string text;            ///< joined by a blank line ("\n\n")
  std::int64_t documents = 0;  ///< at least 1
};

/// nullopt: `text` is neither. It is JSONL where its first byte that is not blank is `{` and its first line a whole
/// object (or the second is, below a first that begins `{"`: then the first is damaged), an array where it begins `[{"`;
/// blanks and a byte order mark may stand before and between. Blank lines of JSONL are passed over.
/// Throws InvalidInput naming `what` and the line (of an array: where the object begins): not JSON, beyond a limit of
/// formats/json.h, not an object, without a text in `field` (naming the members that there are and the option), a chat
/// (`messages` or `conversations`; saying how it is rendered).
[[nodiscard]] std::optional<JsonDocuments> json_documents(std::string_view text, const std::string& what,
                                                          const std::string& field, base::Progress& progress);

/// Whether a text that holds no such documents begins as JSON does, all the same: a `{` and then a `"`.
[[nodiscard]] bool begins_like_json(std::string_view text);

}  // namespace kvcal::calib
