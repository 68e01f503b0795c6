// What must stand in front of MindSpore's own libraries (LD_PRELOAD), for two reasons.
//
// 1. MindSpore finds most of CANN by name while it runs (dlsym): some 2,000 aclnn operators, of
//    which no list exists before a model is compiled. Here every such name is answered.
// 2. A few functions of MindSpore itself read what only a real CANN can give, and would end the
//    process. build.py finds their mangled names and lets them jump to the functions below.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

#include "overrides.h"  // generated: BASE_RESIZE, BASE_RESIZE_LIBRARY

namespace {

bool begins(const char* name, const char* with) { return strncmp(name, with, strlen(with)) == 0; }

// Names that MindSpore asks for and can do without: where they are missing, it takes another way
// that is right for a simulation. The few that it needs are in runtime.cpp or generated.
bool optional(const char* name) {
    for (const char* prefix : {"aclrt", "aclprof", "acltdt", "aclmdl"})
        if (begins(name, prefix)) return true;
    return false;
}

bool of_cann(const char* name) {
    // acl: operators (aclnn...), their arguments (aclCreateTensor ...), attributes (aclop...).
    // Msprof: marks for the profiler. The rest: set-up of the operator library.
    for (const char* prefix : {"acl", "Msprof", "InitPTA", "UnInit", "InitHuge", "ReleaseHuge"})
        if (begins(name, prefix)) return true;
    return false;
}

// DRY_RUN_ACLNN=1 names each operator when it is first looked up.
void note(const char* name) {
    static const bool log = getenv("DRY_RUN_ACLNN") != nullptr;
    static std::mutex mutex;
    static std::set<std::string> seen;
    if (!log) return;
    std::lock_guard<std::mutex> lock(mutex);
    if (seen.insert(name).second) fprintf(stderr, "DRY_RUN_ACLNN %s\n", name);
}

int64_t success() { return 0; }
void* handle() { return calloc(1, 256); }  // a tensor, a scalar, an attribute: kept, never read

using Dlsym = void* (*)(void*, const char*);
Dlsym real_dlsym() {
    static const Dlsym real = reinterpret_cast<Dlsym>(dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5"));
    return real;
}

}  // namespace

extern "C" {

void* dlsym(void* library, const char* name) {
    if (library == RTLD_NEXT) return real_dlsym()(library, name);
    if (begins(name, "aclnn")) {
        // Before the real one is asked for: the wheel's own operators (libcust_opapi.so) would take
        // the generated CANN for a real one.
        note(name);
        return reinterpret_cast<void*>(success);
    }
    void* found = real_dlsym()(library, name);
    if (found != nullptr || !of_cann(name) || optional(name)) return found;
    const bool makes = begins(name, "aclCreate") || begins(name, "aclopCreate");
    return makes ? reinterpret_cast<void*>(handle) : reinterpret_cast<void*>(success);
}

// ---- MindSpore's "acl" kernels: operators without an aclnn form, compiled by CANN at run time.
// They read the operator's attributes from GE's registry, which is empty here.

// AclKernelMod::Resize: sizes of outputs, by the base class, as for every other kernel.
int override_acl_resize(void* self, void* inputs, void* outputs) {
    using Resize = int (*)(void*, void*, void*);
    static const Resize base = [] {
        void* library = dlopen(BASE_RESIZE_LIBRARY, RTLD_LAZY | RTLD_NOLOAD);
        return library == nullptr ? nullptr
                                  : reinterpret_cast<Resize>(real_dlsym()(library, BASE_RESIZE));
    }();
    if (base == nullptr) {
        fprintf(stderr, "dry run: %s has no %s; memory of acl kernels is not planned\n",
                BASE_RESIZE_LIBRARY, BASE_RESIZE);
        return 0;
    }
    return base(self, inputs, outputs);
}

// AclKernelMod::Launch
bool override_true() { return true; }

// AclKernelMod::RefreshAclConverter, AclConverter::ConvertToAclAttr, ::ConvertInputToAclAttr
void override_nothing() {}

}  // extern "C"
