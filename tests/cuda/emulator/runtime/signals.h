// Turns a fault of a kernel (a bad address, a division by zero, a trap) into a report of the launch.
#pragma once
#include <sys/time.h>

#include <csignal>

namespace emulator {

// Our handlers, from the first launch that runs to the end of the last; before and after, those of the process.
class Handlers {
 public:
  Handlers();
  ~Handlers();
};

// Reports a launch that does not end.
class Alarm {
 public:
  explicit Alarm(int milliseconds);
  ~Alarm();

 private:
  itimerval before_;
};

// Fibers have small stacks, and one that has overflowed has none: handlers run on a stack of their own, one for each
// thread of the operating system.
class AlternateStack {
 public:
  AlternateStack();
  ~AlternateStack();

 private:
  stack_t before_;
};

}  // namespace emulator
