// apps/main.cpp: the program.
#include <cstdlib>  // says whether the C library is glibc
#include <string>
#include <vector>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "apps/commands.h"

namespace {

// A pass allocates and frees the same tensors for every sample. By default the allocator gives the large ones
// back to the system each time, to be mapped and zeroed again: a tenth of the time.
void keep_freed_memory() {
#if defined(__GLIBC__)
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most it takes
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  ::mallopt(M_TOP_PAD, 64 << 20);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_memory();
  return kvcal::apps::run_program(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
