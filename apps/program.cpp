// Chooses the subcommand, and turns whatever it throws into one line on standard error and an exit code.
#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <new>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/log.h"
#include "apps/signals.h"
#include "apps/suggest.h"
#include "apps/terminal.h"
#include "apps/text_table.h"
#include "base/error.h"
#include "calib/version.h"
#include "formats/codebook.h"

namespace kvcal::apps {
namespace {

using base::concat;

std::string help_text(Stream stream) {
  const std::size_t width = help_width(stream);
  TextTable subcommands({{"", Align::kLeft}, {"", Align::kLeft, true}}, width, 2);
  for (const Command& command : commands())
    subcommands.add_row({std::string(command.name), std::string(command.summary)});
  return concat(
      wrapped("kvcal computes the codebooks from which a serving system holds a language model's KV cache at "
              "2, 3 or 4 bits.",
              width),
      "\n\nUsage: kvcal SUBCOMMAND [OPTIONS]\n\n", bold("Subcommands:", stream), "\n", subcommands.text(),
      "\nkvcal SUBCOMMAND --help explains the options of one.\nkvcal --version prints the version.\n\n",
      bold("Example:", stream),
      "\n"
      "  kvcal calibrate --model ./Llama-3.1-8B \\\n"
      "      --text prose.txt --out llama.h5\n"
      "  kvcal validate --model ./Llama-3.1-8B \\\n"
      "      --codebook llama.h5 --text other.txt\n");
}

// Messages of libraries (libtorch's, with its backtrace) may have many lines; the first says what happened.
std::string first_line(const char* message) {
  std::string text(message);
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "an error without a message";
  const std::size_t end = text.find_first_of("\r\n", begin);
  return text.substr(begin, end - begin);
}

// Our own messages are one line already, save for what a file's name may hold.
std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char letter) { return letter == '\n' || letter == '\r'; }, ' ');
  return text;
}

void print_error(const std::string& message) {
  const std::string line = concat("kvcal: error: ", message, "\n");
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

int dispatch(const std::vector<std::string>& arguments) {
  if (arguments.empty()) {
    std::fputs(help_text(Stream::kError).c_str(), stderr);
    return kWrongUsage;
  }
  const std::string& first = arguments.front();
  if (first == "--version" || first == "-V") {
    print(base::concat("kvcal ", calib::version(), "\n"));
    return kDone;
  }
  if (first == kHelpJson) {
    Json list = Json::array();
    for (const Command& command : commands())
      list.push_back({{"name", command.name}, {"summary", command.summary}});
    print(text_of({{"version", calib::version()}, {"commands", std::move(list)}}));
    return kDone;
  }
  if (first == "--help" || first == "-h" || first == "help") {
    const bool of_command = first == "help" && arguments.size() > 1;
    if (of_command) return dispatch({arguments[1], "--help"});
    print(help_text(Stream::kOutput));
    return kDone;
  }
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (command.name == first) return command.run({arguments.begin() + 1, arguments.end()});
    names.emplace_back(command.name);
  }
  if (first.front() == '-') {
    throw base::WrongUsage(concat("the subcommand comes first, and then its options such as ", first,
                                  "; kvcal --help lists the subcommands"));
  }
  const auto near = nearest(first, names);
  throw base::WrongUsage(
      concat("unknown subcommand '", first, "'; ",
             near ? concat("did you mean kvcal ", *near, "?") : "kvcal --help lists them"));
}

}  // namespace

std::span<const Command> commands() {
  static constexpr std::array kCommands = {
      Command{"calibrate", "make the codebook of a model from calibration text", run_calibrate},
      Command{"validate", "show what a codebook costs: perplexity, divergence, error by layer", run_validate},
      Command{"allocate", "choose bits by layer and tensor under a budget of bytes", run_allocate},
      Command{"merge", "one codebook from those of several runs over other texts", run_merge},
      Command{"export", "hand a codebook, or scales of the same calibration, to a serving system",
              run_export},
      Command{"plan", "what a context costs in memory and what fits, from config.json", run_plan},
      Command{"inspect", "what is in a codebook and where it comes from", run_inspect},
      Command{"diff", "what changed between two codebooks", run_diff},
      Command{"kmeans", "the solver alone: optimal centroids of numbers in a .npy file", run_kmeans},
  };
  return kCommands;
}

int run_program(const std::vector<std::string>& arguments) noexcept {
  try {
    start_log(Verbosity::kNormal);
    handle_signals(OnSignal::kExit);
    formats::skip_hdf5_exit();
    return dispatch(arguments);
  } catch (const base::Interrupted& error) {
    print_error(one_line(error.what()));
    return 128 + error.signal();
  } catch (const base::WrongUsage& error) {
    print_error(one_line(error.what()));
    return kWrongUsage;
  } catch (const base::Error& error) {
    print_error(one_line(error.what()));
    return kFailed;
  } catch (const std::bad_alloc&) {
    std::fputs(
        "kvcal: error: out of memory: the machine refused an allocation; free some, or use a machine with "
        "more\n",
        stderr);
    return kFailed;
  } catch (const std::exception& error) {
    print_error(first_line(error.what()));
    return kFailed;
  } catch (...) {
    std::fputs("kvcal: error: stopped by an exception that says nothing about itself\n", stderr);
    return kFailed;
  }
}

}  // namespace kvcal::apps
