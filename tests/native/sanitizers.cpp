// Calls every pair of kernels from two threads, and compares their results with what each gives
// alone. sanitizers.py builds this and the libraries with a sanitizer, which then watches them
// without Python and MindSpore around them.
//
//     sanitizers TOKENIZER_LIBRARY TRANSFORMER_LIBRARY TRAIN_LIBRARY ONEDNN_LIBRARY CALLS

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace {

using Kernel = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);
constexpr int threads = 3;  // one more than those that call
constexpr int times = 3;    // so often does a thread call its kernel, so that the two overlap

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "sanitizers: %s\n", message.c_str());
    std::exit(1);
}

template <typename Function>
Function symbol(void* library, const std::string& name) {
    void* found = dlsym(library, name.c_str());
    if (!found) fail("there is no " + name);
    return reinterpret_cast<Function>(found);
}

struct Array {
    std::vector<int64_t> shape;
    std::vector<char> bytes;  // on the heap: a sanitizer sees the byte after the last
};

// An array as calls.py writes it
Array read_array(std::istream& file) {
    size_t bytes, axes;
    file >> bytes >> axes;
    Array array{std::vector<int64_t>(axes), std::vector<char>(bytes)};
    for (int64_t& size : array.shape) file >> size;
    file.ignore(2, '\n');
    file.read(array.bytes.data(), std::streamsize(bytes));
    if (!file) fail("the file of calls ends early");
    return array;
}

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

template <typename Work>
void in_two_threads(Work work) {
    std::thread first([&] { work(0); }), second([&] { work(1); });
    first.join(), second.join();
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 6) fail("expected five paths");
    std::map<std::string, void*> libraries;
    const char* const names[] = {"tokenizer", "transformer", "train"};
    for (int i = 0; i < 3; ++i) {
        libraries[names[i]] = dlopen(argv[1 + i], RTLD_NOW | RTLD_LOCAL);
        if (!libraries[names[i]]) fail(dlerror());
    }
    void* const shared = libraries["tokenizer"];
    const auto open = [&](int) {
        symbol<void (*)(int)>(shared, "start_threads")(threads);
        for (const auto& [name, library] : libraries) {
            int best = 0;
            while (symbol<int (*)(int)>(library, "processor_has")(best + 1)) ++best;
            const auto open_kernels = symbol<int (*)(int, const char*, const void*, const void*)>(
                library, "open_kernels");
            const int status = open_kernels(best, argv[4], dlsym(shared, "thread_count"),
                                            dlsym(shared, "run_jobs"));
            if (status) fail("open_kernels of " + name + " returned " + std::to_string(status));
        }
    };
    in_two_threads(open);

    std::vector<Call> calls;
    std::ifstream file(argv[5], std::ios::binary);
    std::string library, name;
    for (int count; file >> library >> name >> count;) {
        Call call{name, symbol<Kernel>(libraries.at(library), name), {}};
        for (int i = 0; i < count; ++i) call.arrays.push_back(read_array(file));
        calls.push_back(std::move(call));
    }
    if (calls.empty()) fail(std::string("no calls in ") + argv[5]);

    std::vector<std::vector<std::vector<char>>> alone;
    for (const Call& call : calls) alone.push_back(call.results());
    int pairs = 0;
    for (size_t i = 0; i < calls.size(); ++i) {
        for (size_t j = i; j < calls.size(); ++j, ++pairs) {
            in_two_threads([&](int second) {
                const size_t mine = second ? j : i, other = second ? i : j;
                for (int k = 0; k < times; ++k) {
                    if (calls[mine].results() != alone[mine]) {
                        fail(calls[mine].name + " is wrong beside " + calls[other].name);
                    }
                }
                if (second) open(0);
            });
        }
    }
    std::printf("%d pairs of %zu calls: as alone\n", pairs, calls.size());
    return 0;
}
