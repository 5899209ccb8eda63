// The plugin's entry point: registers every operator of domain qcompile.
#include <map>
#include <memory>
#include <mutex>

#include "ort/linear.h"
#include "ort/linear_softmax.h"
#include "ort/linear_top_k.h"

namespace qcompile::ort {
namespace {

constexpr const char* kDomain = "qcompile";

// The operators for one copy of onnxruntime. Sessions refer to it, so it lives for ever.
struct Registration {
  explicit Registration(const Api& api) : linear(api), linear_softmax(api), linear_top_k(api) {
    api.call(kCreateCustomOpDomain, kDomain, &domain);
    for (const OrtCustomOp* op : {static_cast<const OrtCustomOp*>(&linear),
                                  static_cast<const OrtCustomOp*>(&linear_softmax),
                                  static_cast<const OrtCustomOp*>(&linear_top_k)}) {
      api.call(kCustomOpDomainAdd, domain, op);
    }
  }

  CustomOp<Linear> linear;
  CustomOp<LinearSoftmax> linear_softmax;
  CustomOp<LinearTopK> linear_top_k;
  OrtCustomOpDomain* domain = nullptr;
};

const Registration& registration(const OrtApi* table) {
  static std::mutex mutex;
  static auto& known = *new std::map<const OrtApi*, std::unique_ptr<Registration>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<Registration>& entry = known[table];
  if (!entry) entry = std::make_unique<Registration>(Api(table));
  return *entry;
}

}  // namespace
}  // namespace qcompile::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace qcompile::ort;
  if (const OrtApi* table = base->GetApi(kApiVersion)) {
    const Api api(table);
    return api.guard([&] {
      const Parallelism checked;  // a bad environment variable is reported here
      api.call(kAddCustomOpDomain, options, registration(table).domain);
    });
  }
  const std::string version = base->GetVersionString();
  const OrtApi* oldest = base->GetApi(1);
  if (oldest == nullptr) return nullptr;  // nothing to make a status with
  return Api(oldest).guard([&] {
    throw std::runtime_error("qcompile needs onnxruntime 1.17 or later, this is " + version);
  });
}
