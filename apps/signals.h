// apps/signals.h: what SIGINT, SIGTERM and a closed pipe do to the program.
#pragma once

namespace kvcal::apps {

/// How a command ends when it is told to.
enum class OnSignal {
  kExit,  ///< at once, with the exit code 128 + signal
  kAsk,   ///< the command asks pending_signal() between steps; a second signal ends it at once
};

/// Installs the handlers of SIGINT and SIGTERM (one that is ignored, as under nohup, stays so), and ignores
/// SIGPIPE, so that a reader that has gone away is a failed write and not a killed run.
void handle_signals(OnSignal reaction);

/// The signal that came since handle_signals(kAsk); 0 for none.
[[nodiscard]] int pending_signal();

/// "SIGINT", "SIGTERM" or "a signal".
[[nodiscard]] const char* signal_name(int signal);

}  // namespace kvcal::apps
