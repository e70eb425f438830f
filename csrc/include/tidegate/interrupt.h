// Early termination of a long call, for example on a user's Ctrl-C.
#ifndef TIDEGATE_INTERRUPT_H_
#define TIDEGATE_INTERRUPT_H_

#include "tidegate/errors.h"
#include "tidegate/export.h"

namespace tidegate {

// During the lifetime of an InterruptPoll, long calls on the thread that constructed it
// (Model::run, Model::record, Tape::backward, Stream::run, those of Linear, losses, and reading and
// writing files) call `poll` about every tenth of a second, on that thread and in its own
// floating-point environment. If `poll` returns true, the call throws Interrupted. `poll` may
// itself call the library; such calls are not polled. Polls nest: the innermost one is in force.
class TIDEGATE_EXPORT InterruptPoll {
 public:
  using Function = bool (*)(void* context) noexcept;

  InterruptPoll(Function poll, void* context) noexcept;
  ~InterruptPoll();
  InterruptPoll(const InterruptPoll&) = delete;
  InterruptPoll& operator=(const InterruptPoll&) = delete;

 private:
  Function outer_poll_;
  void* outer_context_;
};

}  // namespace tidegate

#endif  // TIDEGATE_INTERRUPT_H_
