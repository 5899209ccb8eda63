// The part of onnxruntime's C interface that the plugin uses, as of version 1.17 (API 17).
//
// onnxruntime ships no headers in its Python wheel. Its interface is a table of functions that only
// ever grows at its end, and a structure of callbacks that says which version it was written for,
// so a plugin that asks for API 17 runs on every later release. Names are those of onnxruntime's
// onnxruntime_c_api.h; entries of the table are named by their place in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

extern "C" {

struct OrtApi;  // a table of function pointers
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtOpAttr;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version) noexcept;
  const char* (*GetVersionString)() noexcept;
};

// Callbacks of an operator; the first argument of all but the kernel's is this structure.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  // Fields of later versions; onnxruntime reads them only if `version` says so.
  void* later[4];
};

}  // extern "C"

static_assert(sizeof(void*) == 8, "the layout below is that of a 64-bit system");
static_assert(offsetof(OrtCustomOp, KernelCompute) == 64);
static_assert(offsetof(OrtCustomOp, GetInputCharacteristic) == 80);
static_assert(offsetof(OrtCustomOp, GetInputMemoryType) == 96);
static_assert(offsetof(OrtCustomOp, CreateKernelV2) == 136);
static_assert(offsetof(OrtCustomOp, InferOutputShapeFn) == 152);
static_assert(sizeof(OrtCustomOp) == 208);

namespace qcompile::ort {

inline constexpr uint32_t kApiVersion = 17;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUInt8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kUInt32 = 12,
  kBFloat16 = 16
};
enum AttributeType : int { kInt = 1 };
enum InputMemory : int { kDefaultMemory = 0 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

// A function's place in OrtApi. All return a status, or null for success, unless they say so.
template <typename Function>
struct Slot {
  int index;
};

using Info = OrtTensorTypeAndShapeInfo;
inline constexpr Slot<OrtStatus*(int, const char*)> kCreateStatus{0};
inline constexpr Slot<const char*(const OrtStatus*)> kGetErrorMessage{2};
inline constexpr Slot<OrtStatus*(const char*, OrtCustomOpDomain**)> kCreateCustomOpDomain{26};
inline constexpr Slot<OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)> kCustomOpDomainAdd{27};
inline constexpr Slot<OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> kAddCustomOpDomain{28};
inline constexpr Slot<OrtStatus*(OrtValue*, void**)> kGetTensorMutableData{51};
inline constexpr Slot<OrtStatus*(Info**)> kCreateTensorTypeAndShapeInfo{57};
inline constexpr Slot<OrtStatus*(Info*, int)> kSetTensorElementType{58};
inline constexpr Slot<OrtStatus*(Info*, const int64_t*, size_t)> kSetDimensions{59};
inline constexpr Slot<OrtStatus*(const Info*, int*)> kGetTensorElementType{60};
inline constexpr Slot<OrtStatus*(const Info*, size_t*)> kGetDimensionsCount{61};
inline constexpr Slot<OrtStatus*(const Info*, int64_t*, size_t)> kGetDimensions{62};
inline constexpr Slot<OrtStatus*(const Info*, const char**, size_t)> kGetSymbolicDimensions{63};
inline constexpr Slot<OrtStatus*(const OrtValue*, Info**)> kGetTensorTypeAndShape{65};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, const char*, float*)> kInfoGetFloat{85};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)> kInfoGetInt64{86};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, const char*, char*, size_t*)> kInfoGetString{
    87};
inline constexpr Slot<OrtStatus*(const OrtKernelContext*, size_t, const OrtValue**)> kGetInput{90};
inline constexpr Slot<OrtStatus*(OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**)>
    kGetOutput{91};
inline constexpr Slot<void(OrtStatus*)> kReleaseStatus{93};
inline constexpr Slot<void(Info*)> kReleaseTensorTypeAndShapeInfo{99};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, size_t*)> kInfoGetInputCount{230};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, size_t*)> kInfoGetOutputCount{231};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, size_t, char*, size_t*)> kInfoGetOutputName{
    233};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, char*, size_t*)> kInfoGetNodeName{244};
inline constexpr Slot<OrtStatus*(const OrtKernelInfo*, size_t, int*, const OrtValue**)>
    kInfoGetConstantInput{249};
inline constexpr Slot<OrtStatus*(const OrtShapeInferContext*, size_t, Info**)> kInferGetInput{268};
inline constexpr Slot<OrtStatus*(const OrtShapeInferContext*, const char*, const OrtOpAttr**)>
    kInferGetAttribute{269};
inline constexpr Slot<OrtStatus*(const OrtShapeInferContext*, size_t, const Info*)> kInferSetOutput{
    270};
inline constexpr Slot<OrtStatus*(Info*, const char**, size_t)> kSetSymbolicDimensions{271};
inline constexpr Slot<OrtStatus*(const OrtOpAttr*, int, void*, size_t, size_t*)> kReadOpAttr{272};
inline constexpr Slot<OrtStatus*(const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t,
                                 void*)>
    kParallelFor{274};

}  // namespace qcompile::ort
