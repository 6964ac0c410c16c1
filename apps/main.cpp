// apps/main.cpp: the program.
#include <string>
#include <vector>

#include "apps/commands.h"

int main(int argc, char** argv) {
  return kvcal::apps::run_program(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
}
