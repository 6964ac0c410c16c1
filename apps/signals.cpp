#include "apps/signals.h"

#include <unistd.h>

#include <atomic>
#include <csignal>

namespace kvcal::apps {
namespace {

std::atomic<int> g_pending{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

void leave(int signal) {
  _exit(128 + signal);
}

void note(int signal) {
  if (g_pending.exchange(signal) != 0) leave(signal);
}

}  // namespace

void handle_signals(OnSignal reaction) {
  struct sigaction action = {};
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  action.sa_handler = reaction == OnSignal::kAsk ? note : leave;
  for (const int signal : {SIGINT, SIGTERM}) {
    struct sigaction present = {};
    sigaction(signal, nullptr, &present);
    if (present.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
  std::signal(SIGPIPE, SIG_IGN);
}

int pending_signal() {
  return g_pending.load();
}

const char* signal_name(int signal) {
  if (signal == SIGINT) return "SIGINT";
  if (signal == SIGTERM) return "SIGTERM";
  return "a signal";
}

}  // namespace kvcal::apps
