// libcuda.so.1, which libtorch_cuda is linked against: nothing in it is called for its effect.
#include <stddef.h>

int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  (void)device;
  if (flags) *flags = 0;
  if (active) *active = 1;
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}
int cuGetErrorString(int error, const char** text) {
  (void)error;
  *text = "error of the emulated GPU";
  return 0;
}
int cuGetProcAddress(void) { return 1; }
int cuGetProcAddress_v2(void) { return 1; }
#define SUCCEEDS(name) \
  int name(void) { return 0; }
SUCCEEDS(cuInit)
SUCCEEDS(cuCtxFromGreenCtx)
SUCCEEDS(cuCtxGetCurrent)
SUCCEEDS(cuCtxPopCurrent)
SUCCEEDS(cuCtxPushCurrent)
SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuDevResourceGenerateDesc)
SUCCEEDS(cuDevSmResourceSplitByCount)
SUCCEEDS(cuDeviceGet)
SUCCEEDS(cuDeviceGetAttribute)
SUCCEEDS(cuDeviceGetDevResource)
SUCCEEDS(cuDeviceGetName)
SUCCEEDS(cuDevicePrimaryCtxRetain)
SUCCEEDS(cuDeviceTotalMem_v2)
SUCCEEDS(cuFuncGetAttribute)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuGreenCtxCreate)
SUCCEEDS(cuGreenCtxDestroy)
SUCCEEDS(cuLaunchCooperativeKernel)
SUCCEEDS(cuLaunchKernel)
SUCCEEDS(cuLaunchKernelEx)
SUCCEEDS(cuLinkAddData_v2)
SUCCEEDS(cuLinkComplete)
SUCCEEDS(cuLinkCreate_v2)
SUCCEEDS(cuMemAddressFree)
SUCCEEDS(cuMemAddressReserve)
SUCCEEDS(cuMemCreate)
SUCCEEDS(cuMemExportToShareableHandle)
SUCCEEDS(cuMemGetAllocationGranularity)
SUCCEEDS(cuMemGetAllocationPropertiesFromHandle)
SUCCEEDS(cuMemImportFromShareableHandle)
SUCCEEDS(cuMemMap)
SUCCEEDS(cuMemRelease)
SUCCEEDS(cuMemSetAccess)
SUCCEEDS(cuMemUnmap)
SUCCEEDS(cuMemsetD32Async)
SUCCEEDS(cuModuleGetFunction)
SUCCEEDS(cuModuleLoad)
SUCCEEDS(cuModuleLoadData)
SUCCEEDS(cuModuleLoadDataEx)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuMulticastAddDevice)
SUCCEEDS(cuMulticastBindMem)
SUCCEEDS(cuMulticastCreate)
SUCCEEDS(cuMulticastUnbind)
SUCCEEDS(cuOccupancyMaxActiveBlocksPerMultiprocessor)
SUCCEEDS(cuPointerGetAttribute)
SUCCEEDS(cuStreamWriteValue32)
SUCCEEDS(cuStreamWriteValue32_v2)
SUCCEEDS(cuTensorMapEncodeTiled)
