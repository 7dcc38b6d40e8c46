// Kernels by the names that nvcc gives them, for the emulated device (runtime/launch.cpp).
//
// A compiler for the host gives a kernel another mangled name than nvcc (what is in an anonymous namespace is
// numbered), but both read the same once demangled. `nm`'s list of this library's symbols lies beside it.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <utility>

#include "cuda_runtime.h"
#include "reports.h"

namespace emulator {
namespace {

std::map<std::string, Prepare>& signatures() {
  static std::map<std::string, Prepare> all;
  return all;
}

std::string readable(const char* mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string result = text != nullptr ? text : mangled;
  std::free(text);
  return result;
}

// A template's parameter types stand in its name as they are declared, so these are looked up as compilers
// do.
std::string resolved(std::string text) {
  static const std::pair<const char*, const char*> known[] = {
      {"frcnn::Compute<double>::type", "double"},
      {"frcnn::Compute<float>::type", "float"},
      {"frcnn::Compute<__half>::type", "float"},
      {"frcnn::Compute<__nv_bfloat16>::type", "float"},
      {"frcnn::(anonymous namespace)::Ordered<double>::type", "unsigned long long"},
      {"frcnn::(anonymous namespace)::Ordered<float>::type", "unsigned int"},
  };
  for (const auto& [declared, meant] : known)
    for (size_t at; (at = text.find(declared)) != std::string::npos;)
      text.replace(at, std::strlen(declared), meant);
  return text;
}

// "void f<int>(float*, long)" -> "(float*, long)"
std::string parameters_of(const std::string& function) {
  int depth = 0;
  for (size_t i = function.size(); i-- > 0;) {
    if (function[i] == ')') ++depth;
    if (function[i] == '(' && --depth == 0) return function.substr(i);
  }
  return {};
}

// Demangled name -> address, from the lines "ADDRESS TYPE MANGLED" of `nm`.
std::map<std::string, const void*> read_symbols() {
  std::map<std::string, const void*> found;
  Dl_info self{};
  static const char here = 0;
  dladdr(&here, &self);
  std::ifstream file(std::string(self.dli_fname) + ".symbols");
  std::string address, type, name;
  while (file >> address >> type >> name)
    if (name.rfind("_Z", 0) == 0 && (type == "t" || type == "T" || type == "W"))
      found[readable(name.c_str())] =
          static_cast<const char*>(self.dli_fbase) + std::strtoull(address.c_str(), nullptr, 16);
  return found;
}

}  // namespace

bool register_signature(const char* type, Prepare prepare) {
  signatures()[parameters_of(readable(type))] = prepare;
  return true;
}

}  // namespace emulator

extern "C" {

void* emulator_prepare(const char* mangled, void** arguments) {
  static const auto symbols = emulator::read_symbols();
  const std::string name = emulator::readable(mangled);
  const auto symbol = symbols.find(name);
  const auto signature = emulator::signatures().find(emulator::resolved(emulator::parameters_of(name)));
  if (symbol == symbols.end() || signature == emulator::signatures().end()) return nullptr;
  return new emulator::Launch(signature->second(symbol->second, arguments));
}

size_t emulator_addresses(const void* launch, const void** out, size_t most) {
  const auto& addresses = static_cast<const emulator::Launch*>(launch)->addresses;
  const size_t count = addresses.size() < most ? addresses.size() : most;
  for (size_t i = 0; i < count; ++i) out[i] = addresses[i];
  return count;
}

const char* emulator_run(const void* launch, const unsigned* grid, const unsigned* block, size_t dynamic) {
  static std::string wrong;
  const auto* prepared = static_cast<const emulator::Launch*>(launch);
  cudaLaunchConfig_t config;
  config.gridDim = dim3(grid[0], grid[1], grid[2]);
  config.blockDim = dim3(block[0], block[1], block[2]);
  config.dynamicSmemBytes = dynamic;
  emulator::allow_dynamic_shared(prepared->kernel, static_cast<int>(dynamic));  // the runtime has checked it
  const cudaError_t error = emulator::run(prepared->kernel, config, prepared->thread);
  wrong = emulator::reports::take();
  if (error == cudaSuccess && wrong.empty()) return nullptr;
  if (wrong.empty()) wrong = "error " + std::to_string(error);
  return wrong.c_str();
}

void emulator_discard(void* launch) { delete static_cast<emulator::Launch*>(launch); }
}
