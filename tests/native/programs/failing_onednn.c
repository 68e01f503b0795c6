// Stands in for oneDNN's library: hands every call on to it, and lets one of them fail.
//
// fail_at(n) lets the call after n others fail, fail_at(-1) none; it returns 1 if one has failed
// since the last fail_at. Arguments are integers and pointers, at most 14: all of them are handed
// on, whatever the number.

#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>

static long left = -1;
static int failed = 0;
static void* library = NULL;

int fail_at(long calls) {
    const int before = failed;
    left = calls, failed = 0;
    return before;
}

static void* real(const char* name) {
    if (!library) library = dlopen(getenv("REAL_ONEDNN"), RTLD_NOW | RTLD_LOCAL);
    return library ? dlsym(library, name) : NULL;
}

typedef size_t Any(size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t, size_t,
                   size_t, size_t, size_t, size_t);

#define HAND_ON(name, failure)                                                                 \
    size_t dnnl_##name(size_t a, size_t b, size_t c, size_t d, size_t e, size_t f, size_t g,   \
                       size_t h, size_t i, size_t j, size_t k, size_t l, size_t m, size_t n) { \
        if (failure >= 0 && left >= 0 && left-- == 0) return failed = 1, (size_t)failure;      \
        return ((Any*)real("dnnl_" #name))(a, b, c, d, e, f, g, h, i, j, k, l, m, n);          \
    }

enum { status = 1, null = 0, never = -1 };  // what a call that fails returns
HAND_ON(engine_create, status)
HAND_ON(threadpool_interop_stream_create, status)
HAND_ON(threadpool_interop_get_max_concurrency, status)
HAND_ON(threadpool_interop_set_max_concurrency, status)
HAND_ON(memory_desc_create_with_strides, status)
HAND_ON(memory_desc_create_with_tag, status)
HAND_ON(memory_desc_destroy, never)
HAND_ON(memory_desc_equal, never)
HAND_ON(memory_desc_get_size, never)
HAND_ON(memory_create, status)
HAND_ON(memory_destroy, never)
HAND_ON(memory_set_data_handle, status)
HAND_ON(primitive_attr_create, status)
HAND_ON(primitive_attr_set_scratchpad_mode, status)
HAND_ON(primitive_attr_destroy, never)
HAND_ON(convolution_forward_primitive_desc_create, status)
HAND_ON(convolution_backward_data_primitive_desc_create, status)
HAND_ON(convolution_backward_weights_primitive_desc_create, status)
HAND_ON(matmul_primitive_desc_create, status)
HAND_ON(reorder_primitive_desc_create, status)
HAND_ON(primitive_desc_query_md, null)
HAND_ON(primitive_desc_destroy, never)
HAND_ON(primitive_create, status)
HAND_ON(primitive_execute, status)
HAND_ON(primitive_destroy, never)
