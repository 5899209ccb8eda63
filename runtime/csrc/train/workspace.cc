#include "train/workspace.h"

#include <array>
#include <mutex>

namespace qcompile {
namespace {

// Two, so that accumulating gradients over two batches at once allocates nothing either.
class Idle {
 public:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard lock(mutex_);
    for (auto& place : places_) {
      if (place) return std::move(place);
    }
    return nullptr;
  }
  void put(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard lock(mutex_);
    for (auto& place : places_) {
      if (!place) {
        place = std::move(workspace);
        return;
      }
    }
  }

 private:
  std::mutex mutex_;
  std::array<std::unique_ptr<Workspace>, 2> places_;
};

// Never destroyed: a batch may outlive everything at the end of a process.
Idle& idle() {
  static Idle* const pool = new Idle;
  return *pool;
}

}  // namespace

void ReturnWorkspace::operator()(Workspace* workspace) const noexcept {
  idle().put(std::unique_ptr<Workspace>(workspace));
}

WorkspaceLease lease_workspace() {
  std::unique_ptr<Workspace> workspace = idle().take();
  if (!workspace) workspace = std::make_unique<Workspace>();
  return WorkspaceLease(workspace.release());
}

}  // namespace qcompile
