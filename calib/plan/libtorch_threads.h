// calib/plan/libtorch_threads.h: the number of libtorch's threads, given back to who had set it.
#pragma once

#include <ATen/Parallel.h>

namespace kvcal::calib {

/// At its end libtorch has as many threads again as at its beginning.
class KeptLibtorchThreads {
 public:
  KeptLibtorchThreads() : threads_(at::get_num_threads()) {}
  ~KeptLibtorchThreads() { at::set_num_threads(threads_); }
  KeptLibtorchThreads(const KeptLibtorchThreads&) = delete;
  KeptLibtorchThreads& operator=(const KeptLibtorchThreads&) = delete;

 private:
  int threads_;
};

}  // namespace kvcal::calib
