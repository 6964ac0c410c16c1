#include "apps/command_line.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "apps/commands.h"
#include "apps/sizes.h"
#include "apps/suggest.h"
#include "apps/terminal.h"
#include "base/error.h"

namespace kvcal::apps {
namespace {

using base::concat;
using base::WrongUsage;

// All names of options, with their dashes, short ones too.
std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::string without_dashes(const std::string& argument) {
  const std::string name = argument.substr(0, argument.find('='));
  const std::size_t first = name.find_first_not_of('-');
  return first == std::string::npos ? std::string{} : name.substr(first);
}

// The end of the message about an option that is not known: what the user may have meant.
std::string advice(const CLI::App& app, const std::string& argument) {
  const std::string name = without_dashes(argument);
  if (const auto answer = foreign_option(name)) return *answer;
  if (const auto near = nearest("--" + name, option_names(app))) return concat("did you mean ", *near, "?");
  return concat("kvcal ", app.get_name(), " --help lists all options");
}

// CLI11's TOML reader; a section may be the subcommand's, so that one file serves several,
// and an unknown key is an error.
class ConfigReader : public CLI::ConfigTOML {
 public:
  explicit ConfigReader(const CLI::App& app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> kept;
    for (CLI::ConfigItem& item : CLI::ConfigTOML::from_config(input)) {
      const bool is_section_mark = item.name == "++" || item.name == "--";
      const std::string section = item.parents.empty() ? std::string{} : item.parents.front();
      if (is_section_mark || is_other_command(section)) continue;
      if (!section.empty() && section != app_.get_name()) {
        throw WrongUsage(concat("--config: the section [", section, "] is not known; options stand in [",
                                app_.get_name(), "] or before any section"));
      }
      item.parents.clear();
      std::replace(item.name.begin(), item.name.end(), '_', '-');
      check(item);
      kept.push_back(std::move(item));
    }
    return kept;
  }

 private:
  [[nodiscard]] bool is_other_command(const std::string& section) const {
    if (section == app_.get_name()) return false;
    return std::any_of(commands().begin(), commands().end(),
                       [&](const Command& command) { return command.name == section; });
  }

  void check(const CLI::ConfigItem& item) const {
    const std::string dashed = (item.name.size() == 1 ? "-" : "--") + item.name;
    const CLI::Option* option = app_.get_option_no_throw(dashed);
    if (option == nullptr) option = app_.get_option_no_throw(item.name);  // a positional argument
    if (option == nullptr || !option->get_configurable()) {
      throw WrongUsage(concat("--config: the key '", item.name, "' is not an option of kvcal ",
                              app_.get_name(), "; ", advice(app_, dashed)));
    }
  }

  const CLI::App& app_;
};

// Help in the terminal's width, without CLI11's notes about which options exclude each other (an error says so
// when it happens).
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode) const override {
    std::string text = concat(wrapped(app->get_description(), width_), "\n\n", make_usage(app, name));
    text += group_text("Positionals", app->get_options([](const CLI::Option* option) {
      return option->get_positional() && !option->get_group().empty();
    }));
    for (const std::string& group : app->get_groups()) {
      if (group.empty()) continue;
      text += group_text(group, app->get_options([&group](const CLI::Option* option) {
        return option->nonpositional() && option->get_group() == group;
      }));
    }
    return concat(text, "\n", bold("Example:"), "\n", app->get_footer(), "\n");
  }

  std::string make_option(const CLI::Option* option, bool is_positional) const override {
    constexpr std::size_t kBelow = 6, kBeside = 32, kLeastForTwoColumns = 80;
    const bool two_columns = width_ >= kLeastForTwoColumns;
    const std::size_t column = two_columns ? kBeside : kBelow;
    std::string names = "  " + option_text(option, is_positional);
    std::string text = wrapped(option->get_description(), width_, column);
    if (!two_columns || text.empty() || names.size() + 2 > column) return concat(names, "\n", text, "\n");
    return concat(names, text.substr(names.size()), "\n");
  }

 private:
  [[nodiscard]] std::string group_text(const std::string& name,
                                       const std::vector<const CLI::Option*>& options) const {
    if (options.empty()) return "";
    std::string text = concat("\n", bold(name + ":"), "\n");
    for (const CLI::Option* option : options) text += make_option(option, option->get_positional());
    return text;
  }

  [[nodiscard]] std::string option_text(const CLI::Option* option, bool is_positional) const {
    std::string text = make_option_name(option, is_positional);
    const std::string mark = "{false}";
    if (const std::size_t at = text.find(mark); at != std::string::npos) text.erase(at, mark.size());
    const std::string type = option->get_type_size() == 0 ? "" : option->get_type_name();
    return type.empty() || type == " " ? text : concat(text, " ", type);
  }

  std::size_t width_ = help_width(Stream::kOutput);
};

}  // namespace

CommandLine::CommandLine(const std::string& name, const std::string& description, const std::string& example)
    : app_(description, name) {
  app_.footer(example);
  app_.set_help_flag("-h,--help", "Print this help and stop")->configurable(false);
  app_.formatter(std::make_shared<HelpFormatter>());
  app_.allow_extras();
  app_.set_config("--config", "",
                  "Read options from a file: one a line, such as seqlen = 8K; the command line wins")
      ->type_name("FILE")
      ->configurable(false);
  app_.config_formatter(std::make_shared<ConfigReader>(app_));
}

void CommandLine::add_json(JsonOutput& output) {
  app_.add_option_function<std::string>(
          "--json",
          [&output](const std::string& file) {
            if (file.empty()) throw WrongUsage("--json is empty; name a file, or - for standard output");
            output = JsonOutput(file);
          },
          "Write the result as JSON to FILE; - is standard output, which then holds nothing else")
      ->type_name("FILE");
}

void CommandLine::add_html(OutputFile& output) {
  app_.add_option_function<std::string>(
          "--html",
          [&output](const std::string& file) {
            if (file.empty() || file == "-")
              throw WrongUsage("--html needs the name of a file, such as page.html");
            output = OutputFile("--html", file);
          },
          "Write the result as a page that a browser shows without a network: pictures, tables and the data")
      ->type_name("FILE");
}

void CommandLine::add_verbosity(Verbosity& verbosity) {
  CLI::Option* quiet = app_.add_flag_callback(
      "-q,--quiet", [&verbosity] { verbosity = Verbosity::kQuiet; }, "Print warnings and errors only");
  app_.add_flag_callback(
          "-v,--verbose", [&verbosity] { verbosity = Verbosity::kVerbose; },
          "Print more of what is being done")
      ->excludes(quiet);
}

void CommandLine::add_progress(ProgressForm& form) {
  add_choice(app_, "--progress", form, kProgressForms,
             "On standard error: text, for people (the default), or json, an object a line, for programs");
}

void CommandLine::add_threads(int& threads) {
  app_.add_option_function<std::string>(
          "--threads",
          [&threads](const std::string& text) {
            threads = static_cast<int>(parse_count(text, "--threads", 1, 4096));
          },
          "Threads to use; by default as many as there are CPUs for this process")
      ->type_name("N");
}

CLI::Option* CommandLine::add_count(const std::string& names, std::int64_t& target, std::int64_t least,
                                    std::int64_t most, const std::string& text) {
  const std::string name = names.substr(0, names.find(','));
  return app_
      .add_option_function<std::string>(
          names,
          [&target, name, least, most](const std::string& typed) {
            target = parse_count(typed, name, least, most);
          },
          text)
      ->type_name("N");
}

Json CommandLine::described() const {
  Json options = Json::array();
  for (const CLI::Option* option : app_.get_options()) {
    Json names = Json::array();
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    if (option->get_positional()) names.push_back(option->get_name(true));
    const std::string value = option->get_type_size() == 0 ? "" : option->get_type_name();
    options.push_back({{"names", std::move(names)},
                       {"positional", option->get_positional()},
                       {"value", value == " " ? "" : value},
                       {"group", option->get_group()},
                       {"text", option->get_description()}});
  }
  return {{"name", app_.get_name()},
          {"text", app_.get_description()},
          {"options", std::move(options)},
          {"example", app_.get_footer()}};
}

bool CommandLine::parse(std::vector<std::string> arguments) {
  if (arguments == std::vector<std::string>{kHelpJson}) {
    print(text_of(described()));
    return false;
  }
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
  try {
    app_.parse(arguments);
    refuse_unknown();
  } catch (const CLI::CallForHelp&) {
    print(app_.help("kvcal"));
    return false;
  } catch (const CLI::FileError&) {
    const auto file = app_.get_config_ptr()->as<std::string>();
    throw WrongUsage(concat("--config: cannot read the file ", file));
  } catch (const CLI::ParseError& error) {
    refuse_unknown();
    throw WrongUsage(concat(error.what(), " (kvcal ", app_.get_name(), " --help explains the options)"));
  }
  return true;
}

void CommandLine::refuse_unknown() {
  const std::vector<std::string> left = app_.remaining();
  if (left.empty()) return;
  // An unknown option's value is left over as well, so options go first.
  const auto option = std::find_if(left.begin(), left.end(), [](const std::string& argument) {
    return argument.size() > 1 && argument.front() == '-';
  });
  if (option == left.end()) {
    throw WrongUsage(concat("kvcal ", app_.get_name(), " does not know what to do with '", left.front(),
                            "'; kvcal ", app_.get_name(), " --help explains the options"));
  }
  throw WrongUsage(
      concat("unknown option ", option->substr(0, option->find('=')), ": ", advice(app_, *option)));
}

void require(bool given, const std::string& option, const std::string& what) {
  if (!given) throw WrongUsage(concat(option, " is missing: ", what));
}

}  // namespace kvcal::apps
