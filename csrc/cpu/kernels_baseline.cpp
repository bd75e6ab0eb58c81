// The instruction set that every CPU of the architecture has.
#include "kernels.h"

#define CGA_SET baseline
#define CGA_VECTOR_BYTES 16
#if defined(__aarch64__)
#define CGA_TILE 5  // 32 registers
#else
#define CGA_TILE 3  // 16 registers
#endif
#include "kernels.inl"
