// The instruction sets that every kernel is compiled for, lowest first (building.py).
#pragma once

#if defined(__x86_64__)
#define FOR_EACH_VARIANT(DO, name) DO(name, baseline) DO(name, v3) DO(name, v4)
#elif defined(__aarch64__)
#define FOR_EACH_VARIANT(DO, name) DO(name, neon)
#else
#error "there are no kernels for this architecture"
#endif

// The one that this process runs, as a position in the list; open.cpp sets it before the first
// call.
extern int chosen_variant;
