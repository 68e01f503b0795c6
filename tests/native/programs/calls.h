// The libraries, and calls of their kernels from a file that calls.py wrote, for programs without
// Python and MindSpore around the kernels.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

using Kernel = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);

[[noreturn]] inline void fail(const std::string& message) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::exit(1);
}

template <typename Function>
Function symbol(void* library, const std::string& name) {
    void* found = dlsym(library, name.c_str());
    if (!found) fail("there is no " + name);
    return reinterpret_cast<Function>(found);
}

// The three libraries, which share the threads of the tokenizer's
class Libraries {
   public:
    // At the paths of the tokenizer's, the transformer's and the training's
    explicit Libraries(const char* const* paths) {
        for (const char* name : {"tokenizer", "transformer", "train"}) {
            libraries_[name] = dlopen(*paths++, RTLD_NOW | RTLD_LOCAL);
            if (!libraries_[name]) fail(dlerror());
        }
    }

    void* get(const std::string& name) const { return libraries_.at(name); }

    // Readies all of them for the best instruction set that the processor has; returns its name.
    // `onednn` is the path of its library. Any thread may call at any time.
    std::string open(int threads, const char* onednn) const {
        void* const pool = get("tokenizer");
        symbol<void (*)(int)>(pool, "start_threads")(threads);
        int best = 0;
        while (symbol<int (*)(int)>(pool, "processor_has")(best + 1)) ++best;
        for (const auto& [name, library] : libraries_) {
            using Open = int (*)(int, const char*, const void*, const void*);
            const int status = symbol<Open>(library, "open_kernels")(
                best, onednn, dlsym(pool, "thread_count"), dlsym(pool, "run_jobs"));
            if (status) fail("open_kernels of " + name + " returned " + std::to_string(status));
        }
        return symbol<const char* (*)(int)>(pool, "kernel_variant")(best);
    }

   private:
    std::map<std::string, void*> libraries_;
};

struct Array {
    std::vector<int64_t> shape;
    std::vector<char> bytes;  // on the heap: a sanitizer sees the byte after the last
};

struct Call {
    std::string name;
    Kernel kernel;
    std::vector<Array> arrays;

    // All arrays after the call, because some kernels write into their inputs
    std::vector<std::vector<char>> results() const {
        std::vector<std::vector<char>> copies;
        std::vector<void*> params;
        std::vector<int64_t*> shapes;  // no kernel writes into them
        std::vector<int> axes;
        for (const Array& array : arrays) {
            copies.push_back(array.bytes);
            shapes.push_back(const_cast<int64_t*>(array.shape.data()));
            axes.push_back(int(array.shape.size()));
        }
        for (std::vector<char>& copy : copies) params.push_back(copy.data());
        const int status = kernel(int(params.size()), params.data(), axes.data(), shapes.data(),
                                  nullptr, nullptr, nullptr);
        if (status) fail(name + " returned " + std::to_string(status));
        return copies;
    }
};

inline Array read_array(std::istream& file) {
    size_t bytes, axes;
    file >> bytes >> axes;
    Array array{std::vector<int64_t>(axes), std::vector<char>(bytes)};
    for (int64_t& size : array.shape) file >> size;
    file.ignore(2, '\n');
    file.read(array.bytes.data(), std::streamsize(bytes));
    if (!file) fail("the file of calls ends early");
    return array;
}

// As calls.py writes them
inline std::vector<Call> read_calls(const Libraries& libraries, const char* path) {
    std::vector<Call> calls;
    std::ifstream file(path, std::ios::binary);
    std::string library, name;
    for (int count; file >> library >> name >> count;) {
        Call call{name, symbol<Kernel>(libraries.get(library), name), {}};
        for (int i = 0; i < count; ++i) call.arrays.push_back(read_array(file));
        calls.push_back(std::move(call));
    }
    if (calls.empty()) fail(std::string("no calls in ") + path);
    return calls;
}
