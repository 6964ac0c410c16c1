// apps/command_line.h: the options of one subcommand, on top of CLI11:
// --config, suggestions, help that ends with an example.
#pragma once

#include <CLI/CLI.hpp>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "apps/json_output.h"
#include "apps/log.h"
#include "apps/progress.h"
#include "base/choices.h"

namespace kvcal::apps {

/// Alone on the command line, of the program or of a subcommand: its description for programs (manual pages, completion).
inline constexpr const char* kHelpJson = "--help-json";

/// The command line of `kvcal NAME`. Fill app() with options, then parse().
class CommandLine {
 public:
  /// `example` is printed at the end of the help as it stands: lines of at most kColumns columns (terminal.h).
  CommandLine(const std::string& name, const std::string& description, const std::string& example);

  [[nodiscard]] CLI::App& app() { return app_; }

  /// Options that several commands share.
  void add_json(JsonOutput& output);
  void add_html(OutputFile& output);
  void add_verbosity(Verbosity& verbosity);
  void add_progress(ProgressForm& form);
  void add_threads(int& threads);

  /// Options whose value is converted by apps/sizes.h; `text` says what they do and their default.
  CLI::Option* add_count(const std::string& names, std::int64_t& target, std::int64_t least,
                         std::int64_t most, const std::string& text);

  /// {"name", "text", "options": [{"names", "positional", "value", "group", "text"}], "example"}
  [[nodiscard]] Json described() const;

  /// Reads `arguments` (those after the subcommand's name) and the file of --config. False where help was
  /// asked for and printed. Throws base::WrongUsage with the nearest option for one that is not known.
  [[nodiscard]] bool parse(std::vector<std::string> arguments);

 private:
  void refuse_unknown();

  CLI::App app_;
};

/// Throws base::WrongUsage naming `option` and the subcommand's help where `given` is false.
void require(bool given, const std::string& option, const std::string& what);

/// An option whose value is one of the names of `table`.
template <typename Enum, std::size_t N>
CLI::Option* add_choice(CLI::App& app, const std::string& option, Enum& target,
                        const std::array<base::Choice<Enum>, N>& table, const std::string& text) {
  return app
      .add_option_function<std::string>(
          option,
          [option, &target, &table](const std::string& name) {
            target = base::parse_choice(option, name, table);
          },
          text)
      ->type_name("NAME");
}

}  // namespace kvcal::apps
