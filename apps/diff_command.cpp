// kvcal diff: what changed between two codebooks.
#include <cmath>
#include <filesystem>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/sizes.h"
#include "base/error.h"
#include "formats/codebook.h"
#include "formats/codebook_diff.h"

namespace kvcal::apps {
namespace {

using base::concat;

Json to_json(const std::vector<formats::Difference>& differences, const std::filesystem::path& left,
             const std::filesystem::path& right, double tolerance) {
  Json list = Json::array();
  for (const formats::Difference& difference : differences) {
    const bool finite = std::isfinite(difference.magnitude);
    list.push_back({{"path", difference.path},
                    {"left", difference.left},
                    {"right", difference.right},
                    {"magnitude", finite ? Json(difference.magnitude) : Json(nullptr)}});
  }
  return {{"left", left.string()},
          {"right", right.string()},
          {"tolerance", tolerance},
          {"same", differences.empty()},
          {"differences", std::move(list)}};
}

std::string to_text(const std::vector<formats::Difference>& differences, double tolerance) {
  const std::string limit = tolerance > 0 ? concat(" within ", format_number(tolerance, 6)) : "";
  if (differences.empty()) return concat("the same", limit, "\n");
  std::string text;
  for (const formats::Difference& difference : differences) {
    text += concat(difference.path, ": ", difference.left, " -> ", difference.right);
    if (std::isfinite(difference.magnitude))
      text += concat(" (", format_number(difference.magnitude, 3), ")");
    text += "\n";
  }
  return text + concat(differences.size(), differences.size() == 1 ? " difference" : " differences",
                       tolerance > 0 ? concat(" above ", format_number(tolerance, 6)) : "", "\n");
}

}  // namespace

int run_diff(const std::vector<std::string>& arguments) {
  std::filesystem::path left, right;
  double tolerance = 0;
  JsonOutput json;
  CommandLine line("diff",
                   "Prints what changed from codebook A to codebook B, first where they come from, then "
                   "layer by layer. Ends "
                   "with 0 where they are the same and with 3 where they differ.",
                   "  kvcal diff old.h5 new.h5 --tolerance 1e-6");
  line.app().add_option("A", left, "A codebook")->type_name(" ");
  line.app().add_option("B", right, "The codebook to compare it with")->type_name(" ");
  line.app()
      .add_option_function<std::string>(
          "-t,--tolerance",
          [&tolerance](const std::string& text) {
            tolerance = parse_number(text, "--tolerance");
            if (tolerance < 0) throw base::WrongUsage(concat("--tolerance is ", text, ": the least is 0"));
          },
          "Numbers count as the same where they differ by at most this share of the largest in their array; "
          "0 by default")
      ->type_name("X");
  line.add_json(json);
  if (!line.parse(arguments)) return kDone;
  require(!left.empty() && !right.empty(), "A or B", "name two codebooks, such as kvcal diff old.h5 new.h5");
  json.check({left, right});

  const auto differences =
      formats::diff_codebooks(formats::read_codebook(left), formats::read_codebook(right), tolerance);
  json.write(to_json(differences, left, right, tolerance));
  if (!json.to_stdout()) print(to_text(differences, tolerance));
  return differences.empty() ? kDone : kLimitNotMet;
}

}  // namespace kvcal::apps
