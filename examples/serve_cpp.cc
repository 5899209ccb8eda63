// Serves a model from C++ through onnxruntime's C interface, with the plugin.
//
//   serve_cpp LIBONNXRUNTIME PLUGIN MODEL INPUT WIDTH < float32 vectors > "id score" lines
//
// Needs no header of onnxruntime: c++ -std=c++20 -I runtime/csrc/ort examples/serve_cpp.cc -ldl
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace abi = qcompile::ort;
struct OrtEnv;
struct OrtMemoryInfo;
struct OrtSession;

constexpr abi::Slot<OrtStatus*(int, const char*, OrtEnv**)> kCreateEnv{3};
constexpr abi::Slot<OrtStatus*(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**)>
    kCreateSession{7};
constexpr abi::Slot<OrtStatus*(OrtSession*, const void*, const char* const*, const OrtValue* const*,
                               size_t, const char* const*, size_t, OrtValue**)>
    kRun{9};
constexpr abi::Slot<OrtStatus*(OrtSessionOptions**)> kCreateSessionOptions{10};
constexpr abi::Slot<OrtStatus*(OrtSessionOptions*, const char*, void**)> kRegisterLibrary{29};
constexpr abi::Slot<OrtStatus*(const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int,
                               OrtValue**)>
    kCreateTensor{49};
constexpr abi::Slot<OrtStatus*(int, int, OrtMemoryInfo**)> kCreateCpuMemoryInfo{69};
const OrtApi* api;

// Calls a function of onnxruntime's table and ends the program where it fails.
template <typename... Parameters, typename... Arguments>
void call(abi::Slot<OrtStatus*(Parameters...)> slot, Arguments... arguments) {
  const auto entry = reinterpret_cast<void* const*>(api)[slot.index];
  OrtStatus* status = reinterpret_cast<OrtStatus* (*)(Parameters...)>(entry)(arguments...);
  if (status == nullptr) return;
  const auto message = reinterpret_cast<void* const*>(api)[abi::kGetErrorMessage.index];
  std::fprintf(stderr, "%s\n", reinterpret_cast<const char* (*)(OrtStatus*)>(message)(status));
  std::exit(1);
}

int main(int count, char** arguments) {
  if (count != 6) return std::fprintf(stderr, "five arguments, please\n"), 2;
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
  api = base()->GetApi(abi::kApiVersion);
  const int64_t width = std::atoll(arguments[5]);
  std::vector<float> vectors;
  for (float value; std::fread(&value, sizeof value, 1, stdin) == 1;) vectors.push_back(value);
  const int64_t shape[] = {static_cast<int64_t>(vectors.size()) / width, width};
  OrtEnv* environment = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  OrtValue *input = nullptr, *outputs[2] = {};
  void *plugin, *scores, *ids;
  call(kCreateEnv, 2, "serve", &environment);
  call(kCreateSessionOptions, &options);
  call(kRegisterLibrary, options, arguments[2], &plugin);  // this is all that the plugin asks for
  call(kCreateSession, environment, arguments[3], options, &session);
  call(kCreateCpuMemoryInfo, 0, 0, &memory);
  call(kCreateTensor, memory, vectors.data(), vectors.size() * sizeof(float), shape, size_t{2},
       int{abi::kFloat}, &input);
  const char* const names[] = {"scores", "ids"};
  const OrtValue* inputs[] = {input};
  call(kRun, session, nullptr, &arguments[4], inputs, size_t{1}, names, size_t{2}, outputs);
  abi::Info* info = nullptr;
  int64_t answer[2] = {};
  call(abi::kGetTensorTypeAndShape, outputs[1], &info);
  call(abi::kGetDimensions, info, answer, size_t{2});
  call(abi::kGetTensorMutableData, outputs[0], &scores);
  call(abi::kGetTensorMutableData, outputs[1], &ids);
  for (int64_t i = 0; i < answer[0] * answer[1]; ++i)
    std::printf("%ld %.9g\n", static_cast<int64_t*>(ids)[i], static_cast<float*>(scores)[i]);
}
