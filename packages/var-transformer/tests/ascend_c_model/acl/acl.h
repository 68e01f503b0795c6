// What operators.cc takes from CANN's acl.h, for a compiler without CANN.
#pragma once

#include <cstdint>

using aclError = int;
constexpr aclError ACL_SUCCESS = 0;
enum aclDeviceInfo { ACL_DEVICE_INFO_VECTOR_CORE_NUM = 101 };

extern "C" {
aclError aclrtGetDevice(int32_t* device);
aclError aclGetDeviceCapability(uint32_t device, aclDeviceInfo info, int64_t* value);
}
