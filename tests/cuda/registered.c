// Preloaded before the CUDA runtime: notes which functions are registered as kernels, and lets the runtime go on.
#define _GNU_SOURCE
#include <dlfcn.h>

enum { kMost = 1 << 16 };

static const void* registered[kMost];
static int count;

typedef void Register(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*);

void __cudaRegisterFunction(void** handle, const char* host, char* device, const char* name, int limit, void* a, void* b,
                            void* c, void* d, int* e) {
  if (count < kMost) registered[count++] = host;
  ((Register*)dlsym(RTLD_NEXT, "__cudaRegisterFunction"))(handle, host, device, name, limit, a, b, c, d, e);
}

int is_registered(const void* function) {
  for (int i = 0; i < count; ++i)
    if (registered[i] == function) return 1;
  return 0;
}
