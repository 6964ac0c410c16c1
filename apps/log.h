// apps/log.h: messages to standard error, through spdlog. Apart from the rest because libtorch's headers
// bring an fmt of their own, with which spdlog's do not compile.
#pragma once

#include <string>

namespace kvcal::apps {

/// How much is said on standard error.
enum class Verbosity { kQuiet, kNormal, kVerbose };

/// Sets up spdlog. Call first; a second call changes the verbosity.
void start_log(Verbosity verbosity);

void log_debug(const std::string& text);    ///< shown with --verbose
void log_info(const std::string& text);     ///< not shown with --quiet
void log_warning(const std::string& text);  ///< "kvcal: warning: " goes before it
void log_error(const std::string& text);

}  // namespace kvcal::apps
