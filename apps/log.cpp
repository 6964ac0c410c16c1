#include "apps/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <utility>

namespace kvcal::apps {

void start_log(Verbosity verbosity) {
  auto sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("kvcal", std::move(sink));
  logger->set_pattern("%v");
  const auto level = verbosity == Verbosity::kQuiet     ? spdlog::level::warn
                     : verbosity == Verbosity::kVerbose ? spdlog::level::debug
                                                        : spdlog::level::info;
  logger->set_level(level);
  spdlog::set_default_logger(std::move(logger));
}

void log_debug(const std::string& text) {
  spdlog::debug("{}", text);
}

void log_info(const std::string& text) {
  spdlog::info("{}", text);
}

void log_warning(const std::string& text) {
  spdlog::warn("kvcal: warning: {}", text);
}

void log_error(const std::string& text) {
  spdlog::error("{}", text);
}

}  // namespace kvcal::apps
