// Ending a long call early, as a user's Ctrl-C does.
#ifndef TIDEGATE_INTERRUPT_H_
#define TIDEGATE_INTERRUPT_H_

#include "tidegate/errors.h"
#include "tidegate/export.h"

namespace tidegate {

// While it lives, calls that the thread which made it makes (Model::run, Model::record,
// Tape::backward, Stream::run, those of Linear, losses, and reading and writing files) call `poll`
// about every tenth of a second, on that thread and in its own float environment. If it returns
// true the call throws Interrupted. `poll` may call the library itself; such calls are not polled.
// Polls nest: the innermost one is in force.
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
