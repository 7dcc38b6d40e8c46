// The driver's and cuBLAS's entry points that torch calls. Products are counted here; aten.cpp computes them.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>

#include "log.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

#define SUCCEEDS(name)   \
  EXPORT int name(...) { \
    CALLED;              \
    return 0;            \
  }

namespace {

int succeed(...) { return 0; }

int primary_context(int, unsigned* flags, int* active) {
  if (flags != nullptr) *flags = 0;
  if (active != nullptr) *active = 1;
  return 0;
}

void* new_handle() {
  static uintptr_t last = 0x100;
  return reinterpret_cast<void*>(last += 16);
}

}  // namespace

EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  CALLED;
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  *function = std::strcmp(name, "cuDevicePrimaryCtxGetState") == 0 ? reinterpret_cast<void*>(primary_context)
                                                                   : reinterpret_cast<void*>(succeed);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                           cudaDriverEntryPointQueryResult* result) {
  CALLED;
  return cudaGetDriverEntryPointByVersion(name, function, 0, 0, result);
}

// ---- cuBLAS ----------------------------------------------------------------------------------------------

#define PRODUCT(name)        \
  EXPORT int name(...) {     \
    CALLED;                  \
    gpu::log("gemm", #name); \
    return 0;                \
  }

EXPORT int cublasCreate_v2(void** handle) {
  CALLED;
  *handle = new_handle();
  return 0;
}
SUCCEEDS(cublasDestroy_v2)
SUCCEEDS(cublasSetStream_v2)
SUCCEEDS(cublasSetWorkspace_v2)
SUCCEEDS(cublasSetMathMode)
SUCCEEDS(cublasSetPointerMode_v2)
SUCCEEDS(cublasSetSmCountTarget)
EXPORT int cublasGetMathMode(void*, int* mode) {
  CALLED;
  *mode = 0;
  return 0;
}
EXPORT int cublasGetPointerMode_v2(void*, int* mode) {
  CALLED;
  *mode = 0;
  return 0;
}
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasGemmEx)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasSdot_v2)
PRODUCT(cublasDotEx)
PRODUCT(cublasLtMatmul)
EXPORT size_t cublasLtGetVersion() {
  CALLED;
  return 130100;
}
EXPORT int cublasLtCreate(void** handle) {
  CALLED;
  return cublasCreate_v2(handle);
}
EXPORT int cublasLtMatmulDescCreate(void** out, int, int) {
  CALLED;
  return cublasCreate_v2(out);
}
EXPORT int cublasLtMatrixLayoutCreate(void** out, int, unsigned long, unsigned long, long) {
  CALLED;
  return cublasCreate_v2(out);
}
EXPORT int cublasLtMatmulPreferenceCreate(void** out) {
  CALLED;
  return cublasCreate_v2(out);
}
SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatrixLayoutDestroy)
SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, char* results,
                                          int* found) {
  CALLED;
  constexpr size_t kResultBytes = 96;  // sizeof(cublasLtMatmulHeuristicResult_t)
  std::memset(results, 0, kResultBytes);
  *found = 1;
  return 0;
}
