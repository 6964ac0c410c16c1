// apps/commands.h: the subcommands of `kvcal`, each in a file of its own.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvcal::apps {

/// The exit codes of the program; an interrupted run ends with 128 + signal.
enum ExitCode : int { kDone = 0, kFailed = 1, kWrongUsage = 2, kLimitNotMet = 3 };

/// Each takes the arguments after its name, gives the exit code, and throws what went wrong (base/error.h).
int run_calibrate(const std::vector<std::string>& arguments);
int run_validate(const std::vector<std::string>& arguments);
int run_allocate(const std::vector<std::string>& arguments);
int run_merge(const std::vector<std::string>& arguments);
int run_export(const std::vector<std::string>& arguments);
int run_plan(const std::vector<std::string>& arguments);
int run_inspect(const std::vector<std::string>& arguments);
int run_diff(const std::vector<std::string>& arguments);
int run_kmeans(const std::vector<std::string>& arguments);

struct Command {
  std::string_view name;
  std::string_view summary;
  int (*run)(const std::vector<std::string>& arguments);
};

/// All subcommands, in the order of the help.
[[nodiscard]] std::span<const Command> commands();

/// `kvcal` with these arguments (without the program's name): runs the command, prints errors as one line on
/// standard error, gives the exit code. Never throws.
[[nodiscard]] int run_program(const std::vector<std::string>& arguments) noexcept;

}  // namespace kvcal::apps
