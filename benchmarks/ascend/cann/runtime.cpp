// The functions of CANN that have to answer something, for a run that launches nothing.
//
// Everything else that MindSpore's Ascend plug-in asks of CANN is generated (see build.py): a
// function that returns 0, which is ACL's, HCCL's and GE's word for success. Here is what 0 is not
// enough for. Signatures are those of CANN's public headers (acl/acl_rt.h, hccl/hccl.h).
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

const char* setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value != nullptr && *value != '\0' ? value : otherwise;
}

std::mutex sizes_mutex;
std::map<void*, size_t> sizes;

// Addresses that can be read (as zeros) and written but take no memory until they are: a plan may
// ask for far more than this machine has.
void* reserve(size_t bytes) {
    if (bytes == 0) bytes = 1;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (address == MAP_FAILED) return nullptr;
    std::lock_guard<std::mutex> lock(sizes_mutex);
    sizes[address] = bytes;
    return address;
}

void release(void* address) {
    std::lock_guard<std::mutex> lock(sizes_mutex);
    auto found = sizes.find(address);
    if (found == sizes.end()) return;
    munmap(address, found->second);
    sizes.erase(found);
}

}  // namespace

extern "C" {

// Called by every generated function. DRY_RUN_CALLS=1 names each one, which tells what a new
// version of MindSpore does before it stops.
int dry_run_called(const char* name) {
    static const bool log = getenv("DRY_RUN_CALLS") != nullptr;
    if (log) fprintf(stderr, "DRY_RUN_CALL %s\n", name);
    return 0;
}

// The chip decides which kernels MindSpore selects; dry_run.py --soc sets it.
const char* aclrtGetSocName() { return setting("DRY_RUN_SOC", "Ascend910B2"); }

// Read by the generator of fused kernels (jit_level O1), which parses the numbers. CANN_VERSION is
// build.py's, "8.5.0"; the layout is aclCANNPackageVersion's.
int aclsysGetCANNVersion(int, void* answer) {
    struct Version {
        char all[128], part[4][64], reserved[128];
    }* version = static_cast<Version*>(answer);
    int number[3] = {};
    sscanf(CANN_VERSION, "%d.%d.%d", &number[0], &number[1], &number[2]);
    snprintf(version->all, sizeof version->all, "%s", CANN_VERSION);
    for (int i = 0; i < 4; ++i)
        snprintf(version->part[i], sizeof version->part[i], "%d", i < 3 ? number[i] : 0);
    return 0;
}

int aclrtGetDeviceCount(uint32_t* count) {
    *count = static_cast<uint32_t>(atoi(setting("DRY_RUN_CARDS", "1")));
    return 0;
}

int aclrtGetDevice(int32_t* device) {
    *device = 0;
    return 0;
}

// Vector cores (of a 910B2), the one thing that the operators in Ascend C ask for.
int aclGetDeviceCapability(uint32_t, int, int64_t* value) {
    *value = 48;
    return 0;
}

// Device memory. In a simulation MindSpore plans its pool without asking for it; what asks
// nevertheless (constants, host buffers) gets addresses.
int aclrtMalloc(void** address, size_t bytes, int) {
    *address = reserve(bytes);
    return *address == nullptr;
}
int aclrtFree(void* address) {
    release(address);
    return 0;
}
int aclrtMallocHost(void** address, size_t bytes) { return aclrtMalloc(address, bytes, 0); }
int aclrtFreeHost(void* address) { return aclrtFree(address); }

// Streams and events are compared with null and used as keys, so each is an address of its own.
int aclrtCreateStream(void** stream) {
    *stream = malloc(8);
    return 0;
}

}  // extern "C"

// The one class of CANN whose data MindSpore reads (inline, from ge's headers): the texts of error
// codes, an empty map.
namespace ge {
class StatusFactory {
   public:
    static StatusFactory* Instance();

   private:
    std::map<uint32_t, std::string> texts_;
    char room_[256] = {};
};
StatusFactory* StatusFactory::Instance() {
    static StatusFactory factory;
    return &factory;
}
}  // namespace ge
